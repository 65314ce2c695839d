"""One connection of a session: its socket and the protocol's end of it."""

import select
import socket
import threading
from contextlib import suppress

from fusepipe.server.leading import Led
from fusepipe.transport import Buffer, send_limit, send_now
from fusepipe.wire import ServerConnection
from fusepipe.wire.server_session import Close, Event

MAX_UNSENT = 4 << 20
"""Bytes of replies that wait for the client to read, beyond which nothing more is taken from it."""


class Connection(Led):
    """A connected socket.  At any time at most one thread leads, that is, calls `receive`; any thread may `send`.

    No thread ever waits in `send`: what the socket does not take stays here, and `flush`, in a thread that has nothing
    else to do, waits until the client has read it.

    The socket is closed when it has been `shut`, nobody leads any more and nobody flushes: before that its number might
    already stand for another file in a system call that is just being made.

    Locks: `_send` is acquired with any other lock held, and nothing else is acquired under it.
    """

    def __init__(self, sock: socket.socket, wire: ServerConnection) -> None:
        """Take over `sock`.  The caller leads."""
        sock.setblocking(True)  # for receiving; sends are told not to wait
        super().__init__(wire)
        self._socket = sock
        self._limit = send_limit(sock)
        self._send = threading.Lock()
        self._room = threading.Condition(self._send)
        self._unsent: list[Buffer] = []
        self._unsent_bytes = 0
        self._flushing = False
        self._receiving = True
        self._shut = False

    # ---- receiving: the leader only ----

    def feed(self, data: bytes) -> None:
        """Take bytes that were received elsewhere, before anything is received here."""
        self.wire.feed(data)

    def receive(self) -> Event:
        """Wait for the next event; without an end, since a guest may be paused for days.

        Ends with Close when the client closes the connection or breaks it, or when `shut` was called.
        """
        wire = self.wire
        while True:
            # Before each frame: one receive may bring thousands of small requests for much data.
            if self._unsent:
                self._wait_for_room()
            if (event := wire.next_event()) is not None:
                return event
            try:
                count = self._socket.recv_into(wire.buffer())
            except OSError as error:
                wire.lost()
                return Close(f"the connection is broken: {error.strerror}", None)
            self.hung_up = not count
            wire.received(count)

    def _wait_for_room(self) -> None:
        """Wait while the client leaves too much unread; ends when it reads or the connection ends."""
        with self._room:
            while self._unsent_bytes > MAX_UNSENT and not self._shut:
                self._room.wait()

    def end_receiving(self) -> None:
        """Nobody will lead any more."""
        with self._send:
            self._receiving = False
            self._close_if_unused()

    # ---- sending: any thread ----

    def send(self, header: bytes, payload: Buffer = b"") -> bool:
        """Send a frame as far as the socket takes it.  Returns whether the caller must see to it that `flush` runs.

        A connection that has ended takes everything: whoever is to know learns it from `receive`.
        """
        with self._send:
            if self._shut:
                return False
            buffers = self.wire.frame(header, payload)
            if self._unsent:
                self._unsent += buffers
                self._unsent_bytes += sum(map(len, buffers))
                return False
            return self._send_now(buffers) and self._claim_flushing()

    def flush(self) -> None:
        """Wait until the client has read what is unsent; without an end, but for the end of the connection."""
        poll = select.poll()
        poll.register(self._socket, select.POLLOUT)
        while True:
            poll.poll()
            with self._send:
                if self._shut or not self._send_now(self._unsent):
                    self._flushing = False
                    self._close_if_unused()
                    return

    @property
    def unsent(self) -> bool:
        """Whether something waits for the client to read."""
        return bool(self._unsent)

    def _send_now(self, buffers: list[Buffer]) -> bool:
        """Send what the socket takes and keep the rest: whether there is any.  Under the send lock."""
        try:
            self._unsent = send_now(self._socket, buffers, self._limit)
        except OSError:
            self._shut_now()
            return False
        if self._unsent or self._unsent_bytes:
            self._unsent_bytes = sum(map(len, self._unsent))
            self._room.notify_all()
        return bool(self._unsent)

    def _claim_flushing(self) -> bool:
        claimed, self._flushing = not self._flushing, True
        return claimed

    # ---- the end ----

    def shut(self) -> None:
        """End the connection now: the leader gets Close, what is unsent is dropped.  Doing it twice is no error."""
        with self._send:
            self._shut_now()

    def _shut_now(self) -> None:
        if self._shut:
            return
        self._shut = True
        self._unsent = []
        self._unsent_bytes = 0
        self._room.notify_all()
        with suppress(OSError):  # the client was faster
            self._socket.shutdown(socket.SHUT_RDWR)
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._shut and not self._receiving and not self._flushing:
            self._socket.close()
