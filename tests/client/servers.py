"""A server for tests of the client: the real protocol over a socket pair in the same trio loop, a fake behind it."""

import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio

from fusepipe.client.handshake import Offer, open_link
from fusepipe.client.link import Link
from fusepipe.client.resuming import Resuming
from fusepipe.transport import Stream
from fusepipe.wire import (
    Buffer,
    ListServerStore,
    Op,
    ServerConnection,
    ServerLimits,
    ServerSession,
    Verdict,
    encode_errno,
    encode_reply,
)
from fusepipe.wire.server_session import Answer, Arrived, Close, Interrupted, Opened

Handler = Callable[[Any, memoryview], Awaitable[tuple[Any, bytes]]]


class Server:
    """Answers each request with `handler(request, payload)`, a reply and its payload, or the errno of an OSError."""

    def __init__(self, stream: Stream, handler: Handler, limits: ServerLimits | None = None) -> None:
        self.stream = stream
        self.handler = handler
        self.requests: list[Any] = []
        self.answered: Counter[str] = Counter()
        self.interrupted: list[tuple[int, int]] = []
        self.deaf = trio.Event()
        self.deaf.set()  # cleared: nothing is read, as by a server that hangs
        limits = limits or ServerLimits()
        self.store = ListServerStore(limits.slots)
        self.session = ServerSession(os.urandom(16), limits, self.store, token_bytes=os.urandom, read_only=False)
        self._lines: dict[ServerConnection, tuple[Stream, trio.Lock]] = {}
        self.mute = False  # replies are made and not sent, and BYE is not answered

    async def run(self) -> None:
        """Serves the first stream until the client closes the connection."""
        await self.serve(self.stream)

    async def serve(self, stream: Stream) -> None:
        """Serves a connection until one side closes it; what runs goes on for the next one."""
        connection = self.session.connection(body_crc=False)
        self._lines[connection] = (stream, trio.Lock())
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    while (event := connection.next_event()) is None:
                        await self.deaf.wait()
                        try:
                            count = await stream.receive_into(connection.buffer())
                        except (trio.ClosedResourceError, trio.BrokenResourceError):
                            count = 0
                        connection.received(count)
                    match event:
                        case Answer():
                            if not (self.mute and self.session.ended):
                                await self._send(connection, event.header, b"")
                        case Arrived():
                            match connection.arrive(event):
                                case Verdict.RUN:
                                    nursery.start_soon(self._work, event)
                                case Verdict.REPLAY:
                                    kept = self.store.reply(event.slot)
                                    assert kept is not None
                                    await self._send(connection, *kept)
                        case Interrupted():
                            self.interrupted.append((event.slot, event.seq))
                        case Opened():
                            for old in event.superseded:
                                if old in self._lines:  # it may have ended by itself
                                    self._lines[old][0].close()
                        case Close():
                            stream.close()
                            del self._lines[connection]
                            if self.session.ended:
                                nursery.cancel_scope.cancel()
                            return
        finally:
            stream.close()

    async def _work(self, event: Arrived) -> None:
        self.requests.append(event.request)
        try:
            reply, payload = await self.handler(event.request, event.payload)
            header = encode_reply(event.slot, event.seq, event.op, reply)
        except OSError as error:
            assert error.errno is not None
            header, payload = encode_errno(event.slot, event.seq, error.errno), b""
        self.answered[Op(event.op).name] += 1
        route = self.session.finish(event.slot, event.seq, header, payload)
        if route is not None and not self.mute:
            await self._send(route, header, payload)

    async def _send(self, connection: ServerConnection, header: bytes, payload: Buffer) -> None:
        if connection not in self._lines:
            return
        stream, lock = self._lines[connection]
        async with lock:
            # The client may have gone away first.
            with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
                await stream.send_all(connection.frame(header, payload))

    async def dialled(self, nursery: trio.Nursery) -> Stream:
        """A further connection, as one that dials gets it."""
        near, self.stream = pair()
        nursery.start_soon(self.serve, self.stream)
        return near

    def cut(self) -> None:
        """Closes the connection in the middle of whatever goes on."""
        self.stream.close()


def pair() -> tuple[Stream, Stream]:
    """Two ends of a connection."""
    ours, theirs = socket.socketpair()
    return Stream(ours), Stream(theirs)


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what other tasks bring about."""
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110 - any state of any object, none of which tells of its changes
            await trio.sleep(0.001)


async def nobody() -> Stream:
    """Dialling where nobody answers."""
    raise OSError("nobody is there")


@asynccontextmanager
async def linked(
    handler: Handler, *, readers: int = 4, limits: ServerLimits | None = None
) -> AsyncIterator[tuple[Link, Server]]:
    """A link to a server, with the tasks of both running."""
    near, far = pair()
    server = Server(far, handler, limits)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run)
        link = await open_link(near, Offer("volume", readers))
        nursery.start_soon(Resuming(link, nobody, 0.0).run)
        yield link, server
        nursery.cancel_scope.cancel()
    near.close()
    far.close()
