"""A VMM's socket that damages what it carries: between a client that dials through it and a server behind it.

It answers `CONNECT port` as Firecracker does, so a `fusepipe mount firecracker-connect:PATH:PORT/...` goes through it,
with a checksum on every frame.  It knows where frames begin, and so damages exactly the part that a test names.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Self

PREFIX = struct.Struct("<IIII")
PARTS = ("header length", "payload length", "number", "prefix crc", "header", "payload", "body crc")
ACTIONS = ("flip", "drop", "withhold")


@dataclass(frozen=True)
class Fault:
    """What is done, once, to the next frame with a payload of at least `least` bytes that goes `to` one side.

    flip: one bit of the part is another; drop: a byte of it is missing; withhold: it and all after it never comes.
    """

    to: str
    part: str
    action: str
    least: int = 1

    def __str__(self) -> str:
        return f"{self.action} {self.part} to {self.to}"


class Relay:
    """Listens on `path` and carries every connection on to the Unix socket `server`.

    `fault` may be set at any time, by any thread; it is None again when it has happened.
    """

    def __init__(self, path: Path, server: Path) -> None:
        self.fault: Fault | None = None
        self.happened = threading.Event()
        self._server = server
        self._lock = threading.Lock()  # guards the next two; a leaf
        self._sockets: list[socket.socket] = []
        self._closed = False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
            sockets = [self._listener, *self._sockets]
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(30)
        for one in sockets:
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                server = socket.socket(socket.AF_UNIX)
                with self._lock:
                    self._sockets += [client, server]
                    if self._closed:
                        return
                line = b""
                while not line.endswith(b"\n"):
                    line += client.recv(1)
                assert line.startswith(b"CONNECT "), line
                server.connect(str(self._server))
                client.sendall(b"OK 1024\n")
                for source, target, to in ((client, server, "server"), (server, client, "client")):
                    thread = threading.Thread(target=self._carry, args=(source, target, to))
                    self._threads.append(thread)
                    thread.start()

    def _carry(self, source: socket.socket, target: socket.socket, to: str) -> None:
        """Carry whole frames until one side has ended; then end the other."""
        first = True
        with contextlib.suppress(OSError, EOFError):
            while True:
                prefix = _exactly(source, PREFIX.size)
                header, payload, _number, _crc = PREFIX.unpack(prefix)
                body = _exactly(source, header + payload + 4)
                frame = prefix + body
                fault = self.fault
                if not first and fault is not None and fault.to == to and payload >= fault.least:
                    self.fault = None
                    frame = _damaged(frame, header, payload, fault)
                    self.happened.set()
                    target.sendall(frame)
                    if fault.action == "withhold":
                        while source.recv(65536):
                            pass  # it is lost on the way; the connection looks well
                        return
                else:
                    target.sendall(frame)
                first = False
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


def _exactly(source: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        more = source.recv(min(count - len(data), 1 << 20))
        if not more:
            raise EOFError
        data += more
    return bytes(data)


def _damaged(frame: bytes, header: int, payload: int, fault: Fault) -> bytes:
    starts = dict(zip(PARTS, (0, 4, 8, 12, 16, 16 + header, 16 + header + payload), strict=True))
    lengths = dict(zip(PARTS, (4, 4, 4, 4, header, payload, 4), strict=True))
    # In the middle of what has many bytes; in a number, its lowest byte but one: a length is then wrong by some KiB.
    place = starts[fault.part] + (lengths[fault.part] // 2 if lengths[fault.part] > 4 else 1)
    match fault.action:
        case "flip":
            return frame[:place] + bytes([frame[place] ^ 0x10]) + frame[place + 1 :]
        case "drop":
            return frame[:place] + frame[place + 1 :]
        case "withhold":
            return frame[:place]
    raise ValueError(fault.action)
