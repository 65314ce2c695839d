"""Non-blocking sends of several buffers, within what the socket's family bears in one call."""

import socket
from collections.abc import Sequence
from itertools import islice
from typing import TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Bytes to be sent.  A memoryview must be one-dimensional and of single bytes."""

VSOCK_SEND_LIMIT = 32_000
"""Guest kernels such as 6.12 put each vsock send into one linear buffer and lose data where it has more than 32,404
bytes (net/vmw_vsock/virtio_transport_common.c), so no call on AF_VSOCK is given more than this."""

_MAX_BUFFERS = 512
"""sendmsg(2) takes at most IOV_MAX, 1024, buffers."""


def send_limit(sock: socket.socket) -> int | None:
    """How many bytes one call may send on this socket; None: any number."""
    return VSOCK_SEND_LIMIT if sock.family == socket.AF_VSOCK else None


def send_now(sock: socket.socket, buffers: Sequence[Buffer], limit: int | None) -> list[Buffer]:
    """Send what the socket takes without waiting and return the rest, in order; [] when it took everything.

    The socket may be blocking or not.  `limit` is what `send_limit` said of it.  Raises OSError where the connection is
    broken; how much was sent is then unknown.  Not thread-safe: callers that share a socket hold a lock, or their bytes
    mix.
    """
    while buffers:
        try:
            if limit is None and len(buffers) <= _MAX_BUFFERS:
                sent = sock.sendmsg(buffers, (), socket.MSG_DONTWAIT)
                if sent == sum(map(len, buffers)):
                    break
                return rest_of(buffers, sent)  # a short send on a stream means that the socket is full
            sent = sock.sendmsg(_head_of(buffers, limit), (), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return list(buffers)
        buffers = rest_of(buffers, sent)
    return []


def rest_of(buffers: Sequence[Buffer], sent: int) -> list[Buffer]:
    """What is left of `buffers` after their first `sent` bytes, without copying."""
    for index, buffer in enumerate(buffers):
        if sent < len(buffer):
            rest = list(buffers[index:])
            if sent:
                rest[0] = memoryview(buffer)[sent:]
            return rest
        sent -= len(buffer)
    return []


def _head_of(buffers: Sequence[Buffer], limit: int | None) -> list[Buffer]:
    """As many of the first bytes of `buffers` as one call may carry, without copying."""
    head: list[Buffer] = []
    for buffer in islice(buffers, _MAX_BUFFERS):
        if limit is not None and len(buffer) >= limit:
            head.append(memoryview(buffer)[:limit])
            break
        head.append(buffer)
        if limit is not None:
            limit -= len(buffer)
    return head
