"""A client that may break every rule: it packs its own headers, and checks nothing of what it sends."""

import errno
import socket
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from msgpack import packb, unpackb  # type: ignore[import-untyped]  # it brings no type information

from fusepipe.wire import ROWS, ErrorCode, Frame, FrameReceiver, FrameSender, Op
from tests.server.sessions import PATIENCE, offer

MAX = 1 << 21


class Rogue:
    """One connection of raw frames.  What never comes raises TimeoutError."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE)
        self.sock = sock
        self.sender = FrameSender()
        self.receiver = FrameReceiver(MAX, MAX)
        self.seqs: dict[int, int] = {}
        self.control = 1
        self.session = b""
        self.secret = b""

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- sending

    def raw(self, data: bytes) -> None:
        """Send bytes; a server that has closed the connection meanwhile is no error."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.sock.sendall(data)

    def values(self, *values: Any, payload: bytes = b"") -> None:
        """Send a frame whose header is these values."""
        self.raw(b"".join(self.sender.frame(packb(list(values)), payload)))

    def request(self, op: int, *fields: Any, slot: int = 0, payload: bytes = b"") -> int:
        """Send a request with the slot's next seq, which is returned."""
        seq = self.seqs[slot] = self.seqs.get(slot, 0) + 1
        self.values(slot, seq, op, *fields, payload=payload)
        return seq

    def hello_only(self, volume: bytes = b"v", **changed: Any) -> None:
        """Send HELLO."""
        message = offer(volume)._replace(**changed)
        self.values(None, 1, Op.HELLO, *[list(one) if type(one) is tuple else one for one in message])

    def hello(self, volume: bytes = b"v") -> list[Any]:
        """Open a session: the reply's elements."""
        self.hello_only(volume)
        reply = self.reply()
        if reply[2] == 0 and reply[0] is None and reply[1] == 1:
            names = [field.name for field in ROWS[Op.HELLO].reply_fields]
            self.session, self.secret = reply[3 + names.index("session")], reply[3 + names.index("secret")]
        return reply

    # ---- receiving

    def frame(self) -> Frame | None:
        """The next frame; None where the server has closed the connection."""
        while (frame := self.receiver.next()) is None:
            try:
                count = self.sock.recv_into(self.receiver.buffer())
            except ConnectionResetError:
                return None
            if not count:
                return None
            self.receiver.received(count)
        return frame

    def reply(self) -> list[Any]:
        """The elements of the next frame's header."""
        frame = self.frame()
        assert frame is not None, "the server closed the connection"
        values: list[Any] = unpackb(frame.header)
        return values

    def call(self, op: int, *fields: Any, slot: int = 0, payload: bytes = b"") -> list[Any]:
        """Send a request and wait for its reply: errno and fields."""
        seq = self.request(op, *fields, slot=slot, payload=payload)
        values = self.reply()
        assert values[:2] == [slot, seq], values
        return values[2:]

    def errno(self, op: int, *fields: Any, slot: int = 0, payload: bytes = b"") -> str:
        """The same where it is to fail: the errno's name."""
        number = self.call(op, *fields, slot=slot, payload=payload)[0]
        return errno.errorcode[number] if number else "0"

    def closed(self) -> None:
        """The server closes the connection, with or without an error frame."""
        while self.frame() is not None:
            pass

    def refused(self) -> tuple[ErrorCode, str]:
        """The server closes the connection and says why, whatever else was on its way."""
        error: tuple[ErrorCode, str] | None = None
        while (frame := self.frame()) is not None:
            values = unpackb(frame.header)
            assert error is None, "nothing follows an error frame"
            if values[0] is None and values[1] is None:
                error = ErrorCode(values[2]), values[3]
        assert error is not None, "no error frame"
        return error
