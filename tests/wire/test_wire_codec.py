"""Every message there and back, and any bytes at all: accepted, or refused with RemoteProtocolError."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusepipe.wire import (
    MAX_HEADER,
    ROWS,
    Attr,
    Entry,
    ErrorCode,
    LocalProtocolError,
    Op,
    RemoteProtocolError,
    Secret,
    decode_error,
    decode_reply,
    decode_request,
    encode_errno,
    encode_error,
    encode_reply,
    encode_request,
    op_of,
    read_page,
)
from fusepipe.wire.codec import MAX_ARRAY, MAX_ERROR_TEXT, Shape, unpack
from fusepipe.wire.messages import (
    AttachRequest,
    CleanupRequest,
    ConfirmRequest,
    Field,
    GetattrRequest,
    HelloReply,
    ListxattrReply,
    LookupReply,
    LookupRequest,
    MkdirRequest,
    OpenRequest,
    ReadRequest,
    ResumeReply,
    ResumeRequest,
    SetxattrRequest,
    SymlinkRequest,
    UnlinkReply,
)

from . import reference

MANY = settings(
    max_examples=int(os.environ.get("FUSEPIPE_EXAMPLES", "100")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],  # a slow machine is no reason to fail
)

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
I64 = st.integers(-(2**63), 2**63 - 1)


def string(limit: int) -> st.SearchStrategy[bytes]:
    """Bytes without NUL, at least one."""
    return st.binary(min_size=1, max_size=limit).map(lambda raw: raw.replace(b"\0", b"\1"))


ATTR = st.builds(Attr, U64, U32, U32, U32, U32, U64, U64, U32, U64, I64, U32, I64, U32, I64, U32)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "u32": U32,
    "u64": U64,
    "i64": I64,
    "bool": st.booleans(),
    "bin": st.binary(max_size=300),
    "text": st.text(max_size=40),
    "id": st.binary(min_size=16, max_size=16),
    "secret": st.binary(min_size=32, max_size=32).map(Secret),
    "name": string(300),
    "xattr": string(255),
    "path": string(4095),
    "attr": ATTR,
    "entry": st.builds(Entry, U64, ATTR),
    "[u32]": st.lists(U32, max_size=70).map(tuple),
    "[u64]": st.lists(U64, max_size=70).map(tuple),
    "[u64 u64]": st.lists(st.tuples(U64, U64), max_size=40).map(lambda pairs: tuple(n for pair in pairs for n in pair)),
    "[xattr]": st.lists(string(255), max_size=20).map(tuple),
    "[text]": st.lists(st.text(max_size=20), max_size=MAX_ARRAY).map(tuple),
}


def messages(kind: type[tuple[Any, ...]], fields: tuple[Field, ...]) -> st.SearchStrategy[Any]:
    return st.tuples(*(VALUES[field.type] for field in fields)).map(lambda values: kind(*values))


REQUESTS = st.sampled_from(sorted(ROWS)).flatmap(lambda op: messages(ROWS[op].request, ROWS[op].request_fields))
REPLIES = st.sampled_from(sorted(ROWS)).flatmap(
    lambda op: st.tuples(st.just(op), messages(ROWS[op].reply, ROWS[op].reply_fields))
)


def slot_of(op: Op, slot: int) -> int | None:
    return None if ROWS[op].channel == "control" else slot


def test_every_type_has_values() -> None:
    used = {field.type for row in ROWS.values() for field in (*row.request_fields, *row.reply_fields)}
    assert used <= VALUES.keys()


@MANY
@given(REQUESTS, U32, U64)
def test_requests_there_and_back(request: Any, slot: int, seq: int) -> None:
    op = op_of(request)
    header = encode_request(slot_of(op, slot), seq, request)
    assert header == reference.request(op.name.lower(), slot_of(op, slot), seq, request)
    decoded = decode_request(header)
    assert decoded.op is op
    assert type(decoded.message) is type(request)
    assert decoded == (slot_of(op, slot), seq, op, request)


@MANY
@given(REPLIES, U32, U64)
def test_replies_there_and_back(op_and_reply: tuple[Op, Any], slot: int, seq: int) -> None:
    op, reply = op_and_reply
    header = encode_reply(slot_of(op, slot), seq, op, reply)
    assert header == reference.reply(op.name.lower(), slot_of(op, slot), seq, reply)
    decoded = decode_reply(op, header)
    assert type(decoded.message) is type(reply)
    assert decoded == (slot_of(op, slot), seq, 0, reply)


@MANY
@given(U32, U64, st.integers(1, 4095), st.sampled_from(sorted(ROWS)))
def test_errnos_there_and_back(slot: int, seq: int, errno: int, op: Op) -> None:
    assert decode_reply(op, encode_errno(slot, seq, errno)) == (slot, seq, errno, None)


@MANY
@given(
    st.sampled_from(ErrorCode),
    st.text(max_size=50),
    st.lists(st.one_of(U64, st.text(max_size=9), st.binary(max_size=9), st.none()), max_size=5),
)
def test_errors_there_and_back(code: ErrorCode, text: str, detail: list[Any]) -> None:
    assert decode_error(encode_error(code, text, *detail)) == (code, text, tuple(detail))


def test_a_long_error_text_is_cut() -> None:
    assert decode_error(encode_error(ErrorCode.FAILED, "x" * 5000)).text == "x" * MAX_ERROR_TEXT


# ---- any bytes ------------------------------------------------------------------------------------------------------


def accept_or_refuse(header: bytes) -> None:
    """Every decoder, on any bytes: a result, or RemoteProtocolError."""
    decoders: list[Callable[[], object]] = [
        lambda: decode_request(header),
        lambda: decode_error(header),
        lambda: list(read_page(header)),
        *(partial(decode_reply, op, header) for op in (Op.HELLO, Op.LOOKUP, Op.LISTXATTR, Op.STATFS)),
    ]
    for decode in decoders:
        try:
            decode()
        except RemoteProtocolError as error:
            assert error.text


@MANY
@given(st.binary(max_size=200))
def test_any_bytes(header: bytes) -> None:
    accept_or_refuse(header)


ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.binary(max_size=20), st.text(max_size=9)),
    lambda inner: st.lists(inner, max_size=8),
    max_leaves=20,
)


@MANY
@given(st.integers(0, 110), st.lists(ANYTHING, max_size=18), st.one_of(st.none(), st.integers(0, 70)))
def test_any_fields(number: int, fields: list[Any], slot: int | None) -> None:
    accept_or_refuse(reference.pack([slot, 1, number, *fields]))


@MANY
@given(REQUESTS, st.data())
def test_requests_with_wrong_bytes(request: Any, data: st.DataObject) -> None:
    op = op_of(request)
    header = bytearray(encode_request(slot_of(op, 3), 77, request))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(header) - 1))
        choice = data.draw(st.integers(0, 2))
        if choice == 0:
            header[at] = data.draw(st.integers(0, 255))
        elif choice == 1:
            del header[at:]
            break
        else:
            header[at:at] = data.draw(st.binary(min_size=1, max_size=5))
    accept_or_refuse(bytes(header))


def test_hostile_nesting_and_counts_cost_no_memory() -> None:
    import tracemalloc

    bombs = [
        b"\xdd\xff\xff\xff\xff" * 10_000,
        b"\xdc\xff\xff" * 20_000,
        b"\xdc\x00\x40" * 20_000,
        b"\x9f" * 60_000,
        b"\xdf\xff\xff\xff\xff" * 10_000,
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
    ]
    tracemalloc.start()
    try:
        for bomb in bombs:
            with pytest.raises(RemoteProtocolError):
                unpack(bomb)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


# ---- versions -------------------------------------------------------------------------------------------------------


def test_fields_of_a_later_minor_are_ignored() -> None:
    header = reference.pack([3, 77, 16, 1, b"name", 5, [1, b"x"], None, "later"])
    assert decode_request(header).message == LookupRequest(1, b"name")
    attr = [*range(15), 99, b"later"]
    reply = decode_reply(Op.LOOKUP, reference.pack([3, 77, 0, [5, attr, True], "later"]))
    assert reply.message == LookupReply(Entry(5, Attr(*range(15))))
    assert decode_reply(Op.UNLINK, reference.pack([3, 77, 0, 1, 2, 3])).message == UnlinkReply()


def test_fields_after_an_errno_are_ignored() -> None:
    assert decode_reply(Op.LOOKUP, reference.pack([3, 77, 2, "later"])) == (3, 77, 2, None)


class Grown(tuple[Any, ...]):
    """A message of a later minor, to which fields were added."""


def test_fields_of_a_later_minor_have_defaults() -> None:
    fields = [("node", "u64", 0), ("name", "name", 0), ("flags", "u32", 1), ("kill", "bool", 1), ("groups", "[u32]", 2)]
    shape = Shape(Grown, tuple(Field(*field) for field in fields))
    assert shape.read([1, b"n"]) == (1, b"n", 0, False, ())
    assert shape.read([1, b"n", 7]) == (1, b"n", 7, False, ())
    assert shape.read([1, b"n", 7, True, b"\1\0\0\0"]) == (1, b"n", 7, True, (1,))
    assert shape.read([1, b"n", 7, True, b"", "even later"]) == (1, b"n", 7, True, ())
    with pytest.raises(ValueError, match="there are 1 fields; at least 2 are needed"):
        shape.read([1])
    with pytest.raises(ValueError, match="flags is bytes instead of int"):
        shape.read([1, b"n", b"7"])


# ---- what cannot be sent --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (LookupRequest(-1, b"x"), "LOOKUP: parent is -1, which is not in the range of u64"),
        (LookupRequest(2**64, b"x"), "not in the range of u64"),
        (LookupRequest("1", b"x"), "parent is str"),  # type: ignore[arg-type]  # what is tested
        (LookupRequest(1, "x"), "name"),  # type: ignore[arg-type]  # what is tested
        (LookupRequest(1, b""), "LOOKUP: name is empty"),
        (LookupRequest(1, b"a\0"), "name contains a NUL byte"),
        (ReadRequest(1, 0, 2**32), "size is 4294967296, which is not in the range of u32"),
        (OpenRequest(1, 0, 1, 0, 0), "kill is int instead of bool"),  # type: ignore[arg-type]  # what is tested
        (SetxattrRequest(1, b"u" * 256, b"", 0), "name is 256 bytes long; at most 255"),
        (SetxattrRequest(1, b"u", "text", 0), "value is str instead of bytes"),  # type: ignore[arg-type]  # what is tested
        (SymlinkRequest(1, b"l", b"t" * 4096, 0, 0, ()), "target is 4096 bytes long; at most 4095"),
        (MkdirRequest(1, b"d", 0, 0, 0, 0, (1, -1)), "groups has an element that does not fit"),
        (MkdirRequest(1, b"d", 0, 0, 0, 0, (2**32,)), "groups has an element that does not fit"),
        (MkdirRequest(1, b"d", 0, 0, 0, 0, None), "groups"),  # type: ignore[arg-type]  # what is tested
        (CleanupRequest((1,), (), ()), "forgets has 1 elements, which is no multiple of 2"),
        (ConfirmRequest(Secret(b"short")), "secret is 5 bytes long instead of 32"),
        (AttachRequest(bytes(16), Secret(32), ("x",) * 65), "features has 65 elements; at most 64"),
    ],
)  # fmt: skip
def test_what_the_peer_would_refuse_is_not_sent(request_: Any, says: str) -> None:
    with pytest.raises(LocalProtocolError, match=says):
        encode_request(None if isinstance(request_, ConfirmRequest | AttachRequest) else 3, 77, request_)


def test_other_misuse() -> None:
    with pytest.raises(LocalProtocolError, match="UnlinkReply is not the reply of LOOKUP"):
        encode_reply(3, 77, Op.LOOKUP, UnlinkReply())
    with pytest.raises(LocalProtocolError, match="UnlinkReply is not a request"):
        encode_request(3, 77, UnlinkReply())
    with pytest.raises(LocalProtocolError, match="0 is not an errno"):
        encode_errno(3, 77, 0)
    with pytest.raises(LocalProtocolError, match="4096 is not an errno"):
        encode_errno(3, 77, 4096)
    with pytest.raises(LocalProtocolError, match="names has a name that is empty or contains NUL"):
        encode_reply(3, 77, Op.LISTXATTR, ListxattrReply((b"user.a\0", b"")))
    with pytest.raises(LocalProtocolError, match="entry attr mode is -1"):
        attr = Attr(1, -1, *(0 for _ in range(13)))
        encode_reply(3, 77, Op.LOOKUP, LookupReply(Entry(1, attr)))
    with pytest.raises(LocalProtocolError, match="a header of 262"):
        encode_request(3, 77, SetxattrRequest(1, b"u", bytes(MAX_HEADER), 0))


def test_lists_may_be_any_sequence() -> None:
    tuples = MkdirRequest(1, b"d", 0, 0, 0, 0, (4, 27))
    assert encode_request(3, 77, tuples._replace(groups=[4, 27])) == encode_request(3, 77, tuples)
    assert encode_request(3, 77, tuples._replace(groups=range(4, 5))) == encode_request(
        3, 77, tuples._replace(groups=(4,))
    )


# ---- secrets --------------------------------------------------------------------------------------------------------


def test_secrets_are_not_shown() -> None:
    secret = Secret(b"do not show this to anyone at all")[:32]
    secret = Secret(secret)
    shown = [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret!r:>5}",
        repr(ConfirmRequest(secret)),
        repr(ResumeRequest(bytes(16), secret, (1,), ())),
        repr(AttachRequest(bytes(16), secret, ())),
        repr(ResumeReply(secret, ())),
        repr(HelloReply(1, 0, (), bytes(16), secret, 1, 1, 1, 1, 1, 1, 1, 1, False, "")),
        repr(decode_request(encode_request(None, 1, ConfirmRequest(secret)))),
        repr(decode_reply(Op.RESUME, encode_reply(None, 1, Op.RESUME, ResumeReply(secret, ())))),
    ]
    assert not [text for text in shown if "do not show" in text]
    for wrong in (secret[:31], secret + b"x"):
        with pytest.raises(RemoteProtocolError) as caught:
            decode_request(reference.request("confirm", None, 1, (wrong,)))
        assert "do not show" not in str(caught.value)


def test_names_that_are_no_text() -> None:
    request = GetattrRequest(1, 0)
    assert decode_request(encode_request(0, 1, request)).message == request
    for name in (b"\xff\xfe", b"\n", b" ", b"a" * 255, bytes(range(1, 256)).replace(b"/", b"")):
        assert decode_request(encode_request(0, 1, LookupRequest(1, name))).message == (1, name)
