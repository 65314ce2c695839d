"""A connected stream socket under trio."""

import errno
import socket as sockets
from collections.abc import Sequence

import trio

from fusepipe.transport.peers import Peer, peer_of
from fusepipe.transport.sending import Buffer, send_limit, send_now

DEFAULT_RECEIVE_SIZE = 65536


class _Turn:
    """Lets one task at a time into one direction of an open stream.  (A generator would cost a microsecond a time.)"""

    __slots__ = ("_busy", "_socket", "_what")

    def __init__(self, sock: sockets.socket, what: str) -> None:
        self._socket = sock
        self._what = what
        self._busy = False

    def __enter__(self) -> None:
        if self._socket.fileno() == -1:
            raise trio.ClosedResourceError("this stream was closed")
        if self._busy:
            raise trio.BusyResourceError(f"another task is {self._what} this stream")
        self._busy = True

    def __exit__(self, *_: object) -> None:
        self._busy = False


class Stream(trio.abc.HalfCloseableStream):
    """A byte stream over a connected socket, which it owns.  For one trio loop; never use it from another thread.

    Beside trio's own interface: `receive_into` a buffer, `send_all` of several buffers in one call, and `send_now`,
    which does not wait.  One task may send while another receives; two senders (or two receivers) at once get
    `trio.BusyResourceError`.

    Every method that talks to the socket raises `trio.ClosedResourceError` after `aclose` or `detach`, and
    `trio.BrokenResourceError` when the connection is broken.  After a cancelled `send_all` nobody knows how much was
    sent: the stream is then good for closing only.
    """

    def __init__(self, sock: sockets.socket) -> None:
        """Take over `sock`, a connected stream socket of any family, and make it non-blocking."""
        sock.setblocking(False)
        self._socket = sock
        self._limit = send_limit(sock)
        self._eof_sent = False
        self._sending = _Turn(sock, "sending on")
        self._receiving = _Turn(sock, "receiving from")

    @property
    def socket(self) -> sockets.socket:
        """The socket underneath; its file descriptor is -1 once the stream is closed."""
        return self._socket

    @property
    def peer(self) -> Peer:
        """Who is at the other end."""
        return peer_of(self._socket)

    @property
    def send_limit(self) -> int | None:
        """How many bytes one call may send on the socket; None: any number."""
        return self._limit

    # ---- receiving ----

    async def receive_into(self, view: memoryview | bytearray) -> int:
        """Wait for bytes and put them at the start of `view`.  Returns how many there were; 0 means the end."""
        if not len(view):
            raise ValueError("the buffer to receive into is empty")
        with self._receiving:
            while True:
                await trio.lowlevel.wait_readable(self._socket)
                try:
                    return self._socket.recv_into(view)
                except BlockingIOError:
                    continue  # readiness may be a false alarm: select(2), BUGS
                except OSError as error:
                    raise self._failure(error) from error

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for bytes and return them, at most `max_bytes`; b"" means the end."""
        size = DEFAULT_RECEIVE_SIZE if max_bytes is None else max_bytes
        if size < 1:
            raise ValueError("max_bytes must be at least 1")
        buffer = bytearray(size)
        return bytes(memoryview(buffer)[: await self.receive_into(buffer)])

    # ---- sending ----

    async def send_all(self, data: Buffer | Sequence[Buffer]) -> None:
        """Send one buffer or several, in order and without copying; waits while the other side does not read."""
        buffers: list[Buffer] = [data] if isinstance(data, bytes | bytearray | memoryview) else list(data)
        with self._sending:
            await trio.lowlevel.checkpoint()
            while True:
                buffers = self._send_now(buffers)
                if not buffers:
                    return
                await trio.lowlevel.wait_writable(self._socket)

    def send_now(self, buffers: Sequence[Buffer]) -> list[Buffer]:
        """Send what the socket takes without waiting; return the rest in order, [] when it took everything."""
        with self._sending:
            return self._send_now(buffers)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the socket takes at least some bytes."""
        with self._sending:
            await trio.lowlevel.wait_writable(self._socket)

    async def send_eof(self) -> None:
        """Say that nothing more will be sent; receiving goes on.  Doing it twice is no error."""
        with self._sending:
            await trio.lowlevel.checkpoint()
            if not self._eof_sent:
                try:
                    self._socket.shutdown(sockets.SHUT_WR)
                except OSError as error:
                    raise self._failure(error) from error
                self._eof_sent = True

    def _send_now(self, buffers: Sequence[Buffer]) -> list[Buffer]:
        try:
            return send_now(self._socket, buffers, self._limit)
        except OSError as error:
            raise self._failure(error) from error

    # ---- the end ----

    async def aclose(self) -> None:
        """Close the socket and wake whoever waits on it.  Doing it twice is no error."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """What `aclose` does, without giving other tasks a turn."""
        if self._socket.fileno() != -1:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    def detach(self) -> sockets.socket:
        """Give the socket away, still non-blocking; the stream is closed afterwards.  Nobody may be waiting on it."""
        with self._sending, self._receiving:
            family, kind, proto = self._socket.family, self._socket.type, self._socket.proto
            return sockets.socket(family, kind, proto, fileno=self._socket.detach())

    # ---- errors ----

    def _failure(self, error: OSError) -> trio.ClosedResourceError | trio.BrokenResourceError:
        if self._socket.fileno() == -1 or error.errno == errno.EBADF:
            return trio.ClosedResourceError("this stream was closed")
        if self._eof_sent and error.errno == errno.EPIPE:
            return trio.ClosedResourceError("the sending side of this stream was closed")
        return trio.BrokenResourceError(f"the connection is broken: {error.strerror}")
