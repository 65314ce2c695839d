"""Headers to messages and back.  SPEC.md, sections "Headers" and "Types".

Decoding accepts any bytes and raises nothing but RemoteProtocolError.  Encoding raises LocalProtocolError for what the
peer would refuse.  Everything here may be called from any thread.
"""

import struct
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, Final, NamedTuple

from msgpack import packb, unpackb  # type: ignore[import-untyped]  # it brings no type information

from .errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from .frames import MAX_HEADER
from .messages import ROWS, STRUCTS, Field, Op, Secret

ID_SIZE: Final = 16
"""Length of a session's id, in bytes."""
SECRET_SIZE: Final = 32
"""Length of a session's secret, in bytes."""
XATTR_NAME_MAX: Final = 255
"""Longest name of an extended attribute, in bytes: Linux's XATTR_NAME_MAX."""
PATH_MAX: Final = 4095
"""Longest target of a symlink, in bytes: Linux's PATH_MAX without the NUL."""
ERRNO_MAX: Final = 4095
"""Highest errno in a reply: Linux's MAX_ERRNO."""
MAX_ARRAY: Final = 64
"""Most elements of any msgpack array.  With msgpack's bound on nesting it bounds what hostile bytes can allocate."""
MAX_ERROR_TEXT: Final = 1000
"""Longest text of an error frame, in characters; longer ones are cut."""

U32_MAX: Final = 0xFFFF_FFFF
U64_MAX: Final = 0xFFFF_FFFF_FFFF_FFFF

Message = tuple[Any, ...]
_unpack = partial(unpackb, raw=False, use_list=True, max_array_len=MAX_ARRAY, max_map_len=0, max_ext_len=0)


class Request(NamedTuple):
    """What the client sends.  `slot` is None for control messages, and `seq` is then a counter of the connection."""

    slot: int | None
    seq: int
    op: Op
    message: Message


class Reply(NamedTuple):
    """What the server answers.  `message` is None where `errno` is not 0."""

    slot: int | None
    seq: int
    errno: int
    message: Message | None


class ErrorFrame(NamedTuple):
    """Why the server closes the connection."""

    code: ErrorCode
    text: str
    detail: tuple[int | str | bytes | None, ...]


# ---- field types ----------------------------------------------------------------------------------------------------
#
# A field's msgpack type is compared exactly (so a bool is not a number); numbers are checked for their range by packing
# them with `struct`, all at once; the rest have a reader and a writer each, which raise ValueError.

_NUMBERS: Final = {"u32": "I", "u64": "Q", "i64": "q"}


def _same(value: Any) -> Any:
    return value


def _exactly(size: int) -> Callable[[bytes], bytes]:
    def check(value: bytes) -> bytes:
        if len(value) != size:
            raise ValueError(f"is {len(value)} bytes long instead of {size}")
        return value

    return check


def _string(limit: int | None) -> Callable[[bytes], bytes]:
    def check(value: bytes) -> bytes:
        if not value:
            raise ValueError("is empty")
        if b"\0" in value:
            raise ValueError("contains a NUL byte")
        if limit is not None and len(value) > limit:
            raise ValueError(f"is {len(value)} bytes long; at most {limit} are allowed")
        return value

    return check


def _read_secret(value: bytes) -> Secret:
    return Secret(_exactly(SECRET_SIZE)(value))


def _read_texts(value: list[Any]) -> tuple[str, ...]:
    if not all(type(text) is str for text in value):
        raise ValueError("has an element that is not text")
    return tuple(value)


def _write_texts(value: Sequence[str]) -> list[str]:
    if len(value) > MAX_ARRAY:
        raise ValueError(f"has {len(value)} elements; at most {MAX_ARRAY} are allowed")
    return list(value)


def _read_numbers(letter: str, group: int) -> Callable[[bytes], tuple[int, ...]]:
    size = struct.calcsize(f"<{letter}")

    def read(value: bytes) -> tuple[int, ...]:
        if len(value) % (size * group):
            raise ValueError(f"is {len(value)} bytes long, which is no multiple of {size * group}")
        return struct.unpack(f"<{len(value) // size}{letter}", value)

    return read


def _write_numbers(letter: str, group: int) -> Callable[[Sequence[int]], bytes]:
    def write(value: Sequence[int]) -> bytes:
        if len(value) % group:
            raise ValueError(f"has {len(value)} elements, which is no multiple of {group}")
        try:
            return struct.pack(f"<{len(value)}{letter}", *value)
        except struct.error as error:
            raise ValueError(f"has an element that does not fit: {error}") from None

    return write


def _read_names(value: bytes) -> tuple[bytes, ...]:
    if not value:
        return ()
    *names, rest = value.split(b"\0")
    if rest or not all(names):
        raise ValueError("is not a sequence of names that end with NUL")
    return tuple(names)


def _write_names(value: Sequence[bytes]) -> bytes:
    if not all(name and b"\0" not in name for name in value):
        raise ValueError("has a name that is empty or contains NUL")
    return b"".join(name + b"\0" for name in value)


def _only(kind: type) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if not isinstance(value, kind):
            raise ValueError(f"is {type(value).__name__} instead of {kind.__name__}")
        return value

    return check


class _Type(NamedTuple):
    packed: type
    read: Callable[[Any], Any]
    write: Callable[[Any], Any]
    default: Any


_TYPES: Final[dict[str, _Type]] = {
    "u32": _Type(int, _same, _same, 0),
    "u64": _Type(int, _same, _same, 0),
    "i64": _Type(int, _same, _same, 0),
    "bool": _Type(bool, _same, _only(bool), False),
    "bin": _Type(bytes, _same, _only(bytes), b""),
    "text": _Type(str, _same, _only(str), ""),
    "id": _Type(bytes, _exactly(ID_SIZE), _exactly(ID_SIZE), bytes(ID_SIZE)),
    "secret": _Type(bytes, _read_secret, _exactly(SECRET_SIZE), Secret(SECRET_SIZE)),
    "name": _Type(bytes, _string(None), _string(None), b""),
    "xattr": _Type(bytes, _string(XATTR_NAME_MAX), _string(XATTR_NAME_MAX), b""),
    "path": _Type(bytes, _string(PATH_MAX), _string(PATH_MAX), b""),
    "[u32]": _Type(bytes, _read_numbers("I", 1), _write_numbers("I", 1), ()),
    "[u64]": _Type(bytes, _read_numbers("Q", 1), _write_numbers("Q", 1), ()),
    "[u64 u64]": _Type(bytes, _read_numbers("Q", 2), _write_numbers("Q", 2), ()),
    "[xattr]": _Type(bytes, _read_names, _write_names, ()),
    "[text]": _Type(list, _read_texts, _write_texts, ()),
}


class Shape:
    """The fields of one message or struct, compiled so that reading and writing are a few calls into C."""

    def __init__(self, made: type[Message], fields: tuple[Field, ...]) -> None:
        self.made = made
        self.fields = fields
        kinds = [_TYPES[field.type] for field in fields]
        self._packed = tuple(kind.packed for kind in kinds)
        self._count = len(fields)
        self._required = sum(field.since == 0 for field in fields)
        self._defaults = [kind.default for kind in kinds]
        self._make: Callable[[list[Any]], Message] = partial(tuple.__new__, made)
        numbers = [index for index, field in enumerate(fields) if field.type in _NUMBERS]
        self._pack = struct.Struct("<" + "".join(_NUMBERS[fields[index].type] for index in numbers)).pack
        self._numbers: Callable[[Sequence[Any]], Sequence[Any]] | None = _getter(numbers, len(fields))
        self._readers = [(i, kind.read) for i, kind in enumerate(kinds) if kind.read is not _same]
        self._writers = [(i, kind.write) for i, kind in enumerate(kinds) if kind.write is not _same]

    def read(self, fields: list[Any]) -> Message:
        """The message of these fields, whose list it may change.  Raises ValueError."""
        if len(fields) != self._count:
            if len(fields) < self._count:
                return self._read_earlier(fields)
            fields = fields[: self._count]
        if tuple(map(type, fields)) != self._packed:
            raise ValueError(self._explain(fields))
        if self._numbers is not None:
            try:
                self._pack(*self._numbers(fields))
            except struct.error:
                raise ValueError(self._explain(fields)) from None
        for index, read in self._readers:
            try:
                fields[index] = read(fields[index])
            except ValueError as error:
                raise ValueError(f"{self.fields[index].name} {error}") from None
        return self._make(fields)

    def write(self, message: Message) -> Sequence[Any]:
        """What msgpack is to pack for the message.  Raises ValueError."""
        if self._numbers is not None:
            try:
                self._pack(*self._numbers(message))
            except struct.error:
                raise ValueError(self._explain(message)) from None
        if not self._writers:
            return message
        fields = list(message)
        for index, write in self._writers:
            try:
                fields[index] = write(fields[index])
            except (TypeError, ValueError) as error:
                raise ValueError(f"{self.fields[index].name} {error}") from None
        return fields

    def _read_earlier(self, fields: list[Any]) -> Message:
        """The message of an earlier minor's fields, with the defaults of those that it did not have."""
        count = len(fields)
        if count < self._required:
            raise ValueError(f"there are {count} fields; at least {self._required} are needed")
        return self._make([*Shape(tuple, self.fields[:count]).read(fields), *self._defaults[count:]])

    def _explain(self, fields: Sequence[Any]) -> str:
        for field, kind, value in zip(self.fields, self._packed, fields, strict=True):
            if type(value) is not kind:
                return f"{field.name} is {type(value).__name__} instead of {kind.__name__}"
            if field.type in _NUMBERS:
                try:
                    struct.pack("<" + _NUMBERS[field.type], value)
                except struct.error:
                    return f"{field.name} is {value}, which is not in the range of {field.type}"
        return "the fields have the wrong types"


def _getter(indices: list[int], count: int) -> Callable[[Sequence[Any]], Sequence[Any]] | None:
    """What picks these elements out of a sequence of `count`, as a sequence; None where there are none."""
    if not indices:
        return None
    if len(indices) == count:
        return _same
    if len(indices) == 1:
        return itemgetter(slice(indices[0], indices[0] + 1))
    return itemgetter(*indices)


def _add_structs() -> None:
    for name, (made, fields) in STRUCTS.items():
        shape = Shape(made, fields)
        _TYPES[name] = _Type(list, shape.read, shape.write, None)


_add_structs()
REQUESTS: Final = {op: Shape(row.request, row.request_fields) for op, row in ROWS.items()}
REPLIES: Final = {op: Shape(row.reply, row.reply_fields) for op, row in ROWS.items()}
_OPS: Final[dict[type[Message], Op]] = {row.request: op for op, row in ROWS.items()}
_KNOWN: Final = {int(op): (op, REQUESTS[op], row.channel == "control") for op, row in ROWS.items()}


def op_of(request: Message) -> Op:
    """The operation that a request message belongs to."""
    try:
        return _OPS[type(request)]
    except KeyError:
        raise LocalProtocolError(f"{type(request).__name__} is not a request") from None


# ---- encoding -------------------------------------------------------------------------------------------------------


def _pack(values: list[Any]) -> bytes:
    try:
        packed: bytes = packb(values)
    except (TypeError, ValueError, OverflowError) as error:
        raise LocalProtocolError(f"a header cannot be packed: {error}") from error
    if len(packed) > MAX_HEADER:
        raise LocalProtocolError(f"a header of {len(packed)} bytes, where at most {MAX_HEADER} are allowed")
    return packed


def encode_request(slot: int | None, seq: int, request: Message) -> bytes:
    """The header of a request.  Raises LocalProtocolError where a field does not fit its type."""
    op = op_of(request)
    try:
        return _pack([slot, seq, op, *REQUESTS[op].write(request)])
    except ValueError as error:
        raise LocalProtocolError(f"{op.name}: {error}") from None


def encode_reply(slot: int | None, seq: int, op: Op, reply: Message) -> bytes:
    """The header of a reply without error.  Raises LocalProtocolError where a field does not fit its type."""
    shape = REPLIES[op]
    if type(reply) is not shape.made:
        raise LocalProtocolError(f"{type(reply).__name__} is not the reply of {op.name}")
    try:
        return _pack([slot, seq, 0, *shape.write(reply)])
    except ValueError as error:
        raise LocalProtocolError(f"{op.name} reply: {error}") from None


def encode_errno(slot: int | None, seq: int, errno: int) -> bytes:
    """The header of a reply with an error, a Linux errno from 1 to 4095."""
    if not 0 < errno <= ERRNO_MAX:
        raise LocalProtocolError(f"{errno} is not an errno")
    return _pack([slot, seq, errno])


def encode_error(code: ErrorCode, text: str, *detail: int | str | bytes | None) -> bytes:
    """The header of an error frame."""
    return _pack([None, None, code, text[:MAX_ERROR_TEXT], *detail])


# ---- decoding -------------------------------------------------------------------------------------------------------


def unpack(header: bytes) -> list[Any]:
    """The elements of a header: at least three, the first two number or nil, the third a number."""
    try:
        values = _unpack(header)
    except Exception as error:  # msgpack raises many kinds; whatever it is, the bytes were the cause
        raise RemoteProtocolError(f"a header is not valid msgpack: {type(error).__name__}: {error}") from None
    if type(values) is not list or len(values) < 3:
        raise RemoteProtocolError("a header is not an array of at least three elements")
    slot, seq, third = values[:3]
    if not (slot is None or (type(slot) is int and 0 <= slot <= U32_MAX)):
        raise RemoteProtocolError("the slot of a header is neither nil nor a number of 32 bits")
    if not (seq is None or (type(seq) is int and 0 <= seq <= U64_MAX)):
        raise RemoteProtocolError("the seq of a header is neither nil nor a number of 64 bits")
    if not (type(third) is int and 0 <= third <= U32_MAX):
        raise RemoteProtocolError("the third element of a header is not a number of 32 bits")
    return values


def decode_request(header: bytes) -> Request:
    """The request of a header.  Raises RemoteProtocolError."""
    values = unpack(header)
    slot, seq, number = values[:3]
    known = _KNOWN.get(number)
    if known is None:
        raise RemoteProtocolError(f"{number} is not the number of an operation")
    op, shape, control = known
    if seq is None:
        raise RemoteProtocolError(f"{op.name} has no seq")
    if control is not (slot is None):
        raise RemoteProtocolError(f"{op.name} {'takes no slot' if control else 'needs a slot'}")
    try:
        return Request(slot, seq, op, shape.read(values[3:]))
    except ValueError as error:
        raise RemoteProtocolError(f"{op.name}: {error}") from None


def read_reply(op: Op, values: list[Any]) -> Reply:
    """The reply to `op` from the elements that `unpack` gave.  Raises RemoteProtocolError."""
    slot, seq, errno = values[:3]
    if seq is None:
        raise RemoteProtocolError(f"the reply to {op.name} has no seq")
    if errno > ERRNO_MAX:
        raise RemoteProtocolError(f"the reply to {op.name} has the errno {errno}")
    if errno:
        return Reply(slot, seq, errno, None)
    try:
        return Reply(slot, seq, 0, REPLIES[op].read(values[3:]))
    except ValueError as error:
        raise RemoteProtocolError(f"the reply to {op.name}: {error}") from None


def decode_reply(op: Op, header: bytes) -> Reply:
    """The reply to `op` of a header.  Raises RemoteProtocolError."""
    return read_reply(op, unpack(header))


def read_error(values: list[Any]) -> ErrorFrame:
    """The error of an error frame from the elements that `unpack` gave.  Raises RemoteProtocolError."""
    code, text, detail = values[2], values[3:4], values[4:]
    if not text or type(text[0]) is not str:
        raise RemoteProtocolError("an error frame has no text")
    if not all(value is None or type(value) in (int, str, bytes) for value in detail):
        raise RemoteProtocolError("an error frame's detail is not of numbers, text and bytes")
    try:
        known = ErrorCode(code)
    except ValueError:
        known = ErrorCode.FAILED
    return ErrorFrame(known, text[0], tuple(detail))


def decode_error(header: bytes) -> ErrorFrame:
    """The error of an error frame's header.  Raises RemoteProtocolError."""
    values = unpack(header)
    if values[0] is not None or values[1] is not None:
        raise RemoteProtocolError("an error frame has a slot or a seq")
    return read_error(values)
