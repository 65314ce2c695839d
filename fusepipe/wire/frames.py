"""Frames: 16 bytes of prefix, a header, a payload, and sometimes a checksum.  SPEC.md, section "Frames".

Nothing here is safe to use from two threads at once: whoever sends holds the connection's send lock from `frame` until
the bytes are handed to the socket, whoever receives holds its receive lock.
"""

from struct import Struct
from typing import Final, NamedTuple, Protocol, TypeAlias
from zlib import crc32

from .errors import RemoteProtocolError

Buffer: TypeAlias = bytes | bytearray | memoryview

PREFIX: Final = Struct("<IIII")
LENGTHS: Final = Struct("<III")
CHECKSUM: Final = Struct("<I")

MAX_HEADER: Final = 256 * 1024
"""Longest header of any frame but the first, in bytes."""
MAX_FIRST_HEADER: Final = 32 * 1024
"""Longest header of the first frame of a connection, in either direction, in bytes."""

_BUFFER_SIZE: Final = 64 * 1024
_NUMBERS: Final = 1 << 32
_EMPTY: Final = memoryview(b"")


class Frame(NamedTuple):
    """A frame that arrived whole and intact.  Its memory belongs to it alone."""

    header: bytes
    payload: memoryview


class FrameSink(Protocol):
    """Makes the frames of one direction: FrameSender, or native code."""

    body_crc: bool

    def frame(self, header: bytes, payload: Buffer = b"") -> list[Buffer]:
        """The buffers to send for one frame."""


class FrameSource(Protocol):
    """Gives the frames of one direction: FrameReceiver, or native code."""

    max_header: int
    max_payload: int
    body_crc: bool

    def buffer(self) -> memoryview:
        """Where to put the next bytes."""

    def received(self, count: int) -> None:
        """They were put there; 0: the stream has ended.  Raises RemoteProtocolError within a frame."""

    def next(self) -> Frame | None:
        """The next frame that has arrived whole, or None.  Raises RemoteProtocolError."""


class FrameSender:
    """Makes the frames of one direction of one connection, in the order in which they are sent."""

    def __init__(self) -> None:
        self.body_crc = False
        """Whether frames after the first carry a checksum of header and payload; the first always does."""
        self.number = 0
        """Of the next frame."""
        self._first = True

    def frame(self, header: bytes, payload: Buffer = b"") -> list[Buffer]:
        """The buffers to send for one frame, in order; the payload is passed on, not copied.

        Every call takes a frame number, so what it returns must be sent, whole, before the next call's.
        """
        lengths = LENGTHS.pack(len(header), len(payload), self.number)
        head = b"".join((lengths, CHECKSUM.pack(crc32(lengths)), header))
        self.number = (self.number + 1) % _NUMBERS
        buffers: list[Buffer] = [head, payload] if len(payload) else [head]
        if self.body_crc or self._first:
            self._first = False
            buffers.append(CHECKSUM.pack(crc32(payload, crc32(header))))
        return buffers


class FrameReceiver:
    """Takes the frames of one direction of one connection out of a stream of bytes.

    `buffer`, then `received` with the number of bytes put there, then `next` until it returns None; and so on.
    Small frames are collected in one buffer of 64 KiB, so that one receive can bring many.  A payload that did not come
    with its header whole gets memory of its own, and what is left of it is received straight into that.
    """

    def __init__(self, max_header: int, max_payload: int) -> None:
        """The limits are in bytes and are checked before anything of that size is allocated."""
        self.max_header = max_header
        self.max_payload = max_payload
        self.body_crc = False
        """Whether frames after the first carry a checksum of header and payload; the first always does."""
        self.number = 0
        """Of the next frame."""
        self._first = True
        self._memory = memoryview(bytearray(_BUFFER_SIZE))
        self._start = 0
        self._end = 0
        self._lengths: tuple[int, int] | None = None
        self._header: bytes | None = None
        self._payload: memoryview | None = None
        self._target: memoryview | None = None
        self._filled = 0

    def buffer(self) -> memoryview:
        """Where to put the next bytes; never empty.  Valid until the next call of `received`."""
        if self._target is not None:
            return self._target[self._filled :]
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end > _BUFFER_SIZE // 2:
            # What is left is the beginning of one frame: `next` took everything before it.
            rest = bytes(self._memory[self._start : self._end])
            self._memory[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        return self._memory[self._end :]

    def received(self, count: int) -> None:
        """`count` bytes were put into `buffer()`; 0 means that the stream has ended.

        Raises RemoteProtocolError where the stream ends in the middle of a frame.
        """
        if count == 0:
            if self.within_frame:
                raise RemoteProtocolError("the stream ended in the middle of a frame")
        elif self._target is not None:
            self._filled += count
        else:
            self._end += count

    @property
    def within_frame(self) -> bool:
        """Whether bytes have arrived that `next` has not returned."""
        return self._start != self._end or self._lengths is not None

    def next(self) -> Frame | None:
        """The next frame that has arrived whole, or None.  Raises RemoteProtocolError."""
        if self._lengths is None:
            start, end = self._start, self._start + PREFIX.size
            if end > self._end:
                return None
            prefix = self._memory[start:end]
            self._lengths = read_prefix(prefix, self.number, self.max_header, self.max_payload)
            self.number = (self.number + 1) % _NUMBERS
            self._start = end
        header_len, payload_len = self._lengths
        if self._header is None:
            raw = self._take(header_len)
            if raw is None:
                return None
            self._header = bytes(raw)
        if self._payload is None:
            raw = self._take(payload_len, own=True) if payload_len else _EMPTY
            if raw is None:
                return None
            self._payload = raw
        if self.body_crc or self._first:
            raw = self._take(CHECKSUM.size)
            if raw is None:
                return None
            if CHECKSUM.unpack(raw)[0] != crc32(self._payload, crc32(self._header)):
                raise RemoteProtocolError("the checksum of a frame's header and payload is wrong")
        frame = Frame(self._header, self._payload)
        self._first = False
        self._lengths = self._header = self._payload = None
        return frame

    def _take(self, count: int, own: bool = False) -> memoryview | None:
        """`count` bytes, once they have all arrived; with `own`, in memory that nobody else uses."""
        if self._target is not None:
            if self._filled < count:
                return None
            target, self._target = self._target, None
            return target
        have = self._end - self._start
        if have >= count:
            raw = self._memory[self._start : self._start + count]
            self._start += count
            return memoryview(bytes(raw)) if own else raw
        if own or count > _BUFFER_SIZE // 2:
            self._target = memoryview(bytearray(count))
            self._target[:have] = self._memory[self._start : self._end]
            self._filled = have
            self._start = self._end = 0
        return None


def read_prefix(raw: Buffer, number: int, max_header: int, max_payload: int) -> tuple[int, int]:
    """The lengths of header and payload from the 16 bytes of a prefix.  Raises RemoteProtocolError."""
    header_len, payload_len, got, checksum = PREFIX.unpack(raw)
    if checksum != crc32(raw[: LENGTHS.size]):
        raise RemoteProtocolError("the checksum of a frame's prefix is wrong")
    if got != number:
        raise RemoteProtocolError(f"frame {got} came where frame {number} was due: bytes were lost")
    if not 0 < header_len <= max_header:
        raise RemoteProtocolError(f"a header of {header_len} bytes, where 1 to {max_header} are allowed")
    if payload_len > max_payload:
        raise RemoteProtocolError(f"a payload of {payload_len} bytes, where at most {max_payload} are allowed")
    return header_len, payload_len
