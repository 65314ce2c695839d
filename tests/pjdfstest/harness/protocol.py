"""What goes over the socket between the suite and a helper process.

A message is a little-endian u32 length and a pickle.  Request: a list of `(name, arguments)`; all of them are executed,
in order, also after one failed.  Reply: a list of `(errno, value)`, errno 0 for success.  Both ends are the same
program of the same user (root), so pickle is safe here.
"""

import enum
import pickle
import socket
import struct
from typing import Any

Request = list[tuple[str, tuple[Any, ...]]]
Reply = list[tuple[int, Any]]

_LENGTH = struct.Struct("<I")


class Pointer(enum.Enum):
    """Path arguments that point nowhere."""

    NULL = "null"
    UNMAPPED = "unmapped"
    KERNEL = "kernel"


def send(sock: socket.socket, message: object) -> None:
    """Send one message."""
    body = pickle.dumps(message, protocol=5)
    sock.sendall(_LENGTH.pack(len(body)) + body)


def receive(sock: socket.socket) -> Any:
    """Receive one message.

    Raises EOFError when the other end has closed, TimeoutError after the socket's time-out.
    """
    (length,) = _LENGTH.unpack(_exactly(sock, _LENGTH.size))
    return pickle.loads(_exactly(sock, length))


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = sock.recv(min(size - len(data), 1 << 20))
        if not part:
            raise EOFError("the other end of the socket has closed")
        data += part
    return bytes(data)
