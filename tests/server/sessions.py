"""Sessions to test: one in this process with handlers of the test's own, and a client that needs no mount."""

import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from secrets import token_bytes
from typing import Any

from fusepipe import log
from fusepipe.server.dispatcher import Handler, dispatcher
from fusepipe.server.session import Session
from fusepipe.syscalls import install_interrupt_handler
from fusepipe.wire import (
    KIND_OF_CHANNEL,
    ROWS,
    Buffer,
    ClientConnection,
    ClientSession,
    HelloReply,
    HelloRequest,
    ListServerStore,
    Message,
    Op,
    ServerLimits,
    ServerSession,
    Ticket,
    op_of,
)
from fusepipe.wire.client_session import Ended, Established, Lost, Pong, Refused, Replied, Send

PATIENCE = 20.0
"""Seconds after which a test gives up waiting; far more than anything takes on a busy machine."""


def offer(volume: bytes = b"v", *, slots: int = 64, major: int = 1, connections: int = 16) -> HelloRequest:
    """The HELLO of a client."""
    sizes = (1 << 20, 1 << 20, 16 << 20, 255)
    return HelloRequest(b"fusepipe", major, 0, 0, (), volume, slots, 4, 64, connections, *sizes, "test")


class Client:
    """A session's client over blocking sockets, for one thread.  What never comes raises TimeoutError."""

    def __init__(
        self, sock: socket.socket, hello: HelloRequest | None = None, *, body_crc: bool = False, wait: bool = True
    ) -> None:
        self.session = ClientSession(hello or offer(), body_crc=body_crc)
        self.replies: dict[Ticket, Replied] = {}
        self.reply: HelloReply | None = None
        self.pongs = 0
        self.ended = False
        self.refused: Refused | None = None
        self.lost: Lost | None = None
        self.connections: list[tuple[socket.socket, ClientConnection]] = []
        self._old: list[socket.socket] = []
        self.attach(sock, wait=wait)

    def attach(self, sock: socket.socket, *, wait: bool = True) -> None:
        """Use one more connection: the first says HELLO, further ones ATTACH."""
        connection = self.session.connection()
        self.connections.append((sock, connection))
        self._send(sock, connection.start())
        if wait:
            self.pump(lambda: connection.established or self.over)

    def come_back(self, sock: socket.socket) -> None:
        """Give up all connections and resume the session on this one; the old sockets stay open until `close`."""
        for old, connection in self.connections:
            connection.lost()
            self._old.append(old)
        self.connections.clear()
        self.lost = None
        self.attach(sock)

    @property
    def over(self) -> bool:
        return self.refused is not None or self.lost is not None or self.ended

    def close(self) -> None:
        for sock in self._old + [sock for sock, _ in self.connections]:
            sock.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- requests ----

    def send(self, request: Message, payload: Buffer = b"", *, via: int = 0) -> Ticket:
        """Send a request; its reply is to be asked for with `wait`."""
        kind = KIND_OF_CHANNEL[ROWS[op_of(request)].channel]
        ticket = self.session.take(kind, request, payload)
        assert ticket is not None, "no free slot"
        sock, connection = self.connections[via]
        self._send(sock, connection.request(ticket))
        return ticket

    def wait(self, ticket: Ticket) -> Replied:
        self.pump(lambda: ticket in self.replies or self.over)
        assert ticket in self.replies, (self.refused, self.lost)
        return self.replies.pop(ticket)

    def call(self, request: Message, payload: Buffer = b"", *, via: int = 0) -> Any:
        """Send a request and wait for its reply: (errno, message, payload)."""
        replied = self.wait(self.send(request, payload, via=via))
        return replied.errno, replied.reply, bytes(replied.payload)

    def interrupt(self, ticket: Ticket, *, via: int = 0) -> None:
        sock, connection = self.connections[via]
        self._send(sock, connection.interrupt(ticket.slot, ticket.seq))

    def ping(self, *, via: int = 0) -> None:
        sock, connection = self.connections[via]
        before = self.pongs
        self._send(sock, connection.ping())
        self.pump(lambda: self.pongs > before or self.over)
        assert self.pongs > before

    def bye(self) -> None:
        sock, connection = self.connections[0]
        self._send(sock, connection.bye())
        # The server closes the other connections as well, perhaps first.
        self.pump(lambda: self.ended or connection.dead)

    # ---- bytes ----

    def pump(self, until: Callable[[], object]) -> None:
        """Take what comes on all connections until something holds."""
        end = time.monotonic() + PATIENCE
        while not until():
            sockets = {sock: connection for sock, connection in self.connections if not connection.dead}
            ready, _, _ = select.select(list(sockets), [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise TimeoutError("the server does not answer")
            for sock in ready:
                self._receive(sock, sockets[sock])

    def _receive(self, sock: socket.socket, connection: ClientConnection) -> None:
        try:
            count = sock.recv_into(connection.buffer())
        except ConnectionError:
            count = 0
        for event in connection.received(count):
            if isinstance(event, Established):
                self.reply = event.reply or self.reply
            elif isinstance(event, Send):
                self._send(sock, event.buffers)
            elif isinstance(event, Replied):
                self.replies[event.ticket] = event
            elif isinstance(event, Pong):
                self.pongs += 1
            elif isinstance(event, Ended):
                self.ended = True
            elif isinstance(event, Refused):
                self.refused = event
            else:
                self.lost = event

    @staticmethod
    def _send(sock: socket.socket, buffers: list[Buffer]) -> None:
        sock.sendall(b"".join(buffers))


class Fake:
    """A session in this process that runs handlers of the test's own."""

    def __init__(self, handlers: Mapping[Op, Handler], *, limits: ServerLimits | None = None) -> None:
        limits = limits or ServerLimits()
        logger = log.get_logger("server")
        install_interrupt_handler(signal.SIGUSR1)
        locks = [threading.Lock() for _ in range(limits.slots)]
        self.store = ListServerStore(limits.slots)
        self.wire = ServerSession(
            b"0123456789abcdef",
            limits,
            self.store,
            token_bytes=token_bytes,
            read_only=False,
            slot_locks=locks,
        )
        self.ends = 0
        self.session = Session(
            self.wire,
            locks,
            dispatcher(None, handlers, logger),
            interrupt_signal=signal.SIGUSR1,
            keep=False,
            on_end=self._count_end,
            logger=logger,
        )

    def _count_end(self) -> None:
        self.ends += 1

    def connect(self, first_frame: bytes = b"", *, body_crc: bool = False) -> socket.socket:
        """The client's end of a new connection."""
        ours, theirs = socket.socketpair()
        self.session.add(theirs, first_frame, body_crc=body_crc)
        return ours


@contextmanager
def running(handlers: Mapping[Op, Handler], *, limits: ServerLimits | None = None) -> Iterator[Fake]:
    """A `Fake` that has been closed, with all its threads, afterwards."""
    before = set(threading.enumerate())
    fake = Fake(handlers, limits=limits)
    try:
        yield fake
    finally:
        fake.session.close(5.0)
    assert set(threading.enumerate()) <= before
