"""A server for tests of the client: the real protocol over a socket pair in the same trio loop, a fake behind it."""

import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio

from fusepipe.client.handshake import open_link
from fusepipe.client.link import Link
from fusepipe.transport import Stream
from fusepipe.wire import ListServerStore, Op, ServerLimits, ServerSession, Verdict, encode_errno, encode_reply
from fusepipe.wire.server_session import Answer, Arrived, Close, Interrupted

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
        self.connection = self.session.connection(body_crc=False)
        self._sending = trio.Lock()

    async def run(self) -> None:
        """Serves until the client closes the connection."""
        async with trio.open_nursery() as nursery:
            while True:
                while (event := self.connection.next_event()) is None:
                    await self.deaf.wait()
                    try:
                        count = await self.stream.receive_into(self.connection.buffer())
                    except (trio.ClosedResourceError, trio.BrokenResourceError):
                        count = 0
                    self.connection.received(count)
                match event:
                    case Answer():
                        await self._send(event.header, b"")
                    case Arrived():
                        assert self.connection.arrive(event) is Verdict.RUN
                        nursery.start_soon(self._work, event)
                    case Interrupted():
                        self.interrupted.append((event.slot, event.seq))
                    case Close():
                        nursery.cancel_scope.cancel()
                        self.stream.close()
                        return

    async def _work(self, event: Arrived) -> None:
        self.requests.append(event.request)
        try:
            reply, payload = await self.handler(event.request, event.payload)
            header = encode_reply(event.slot, event.seq, event.op, reply)
        except OSError as error:
            assert error.errno is not None
            header, payload = encode_errno(event.slot, event.seq, error.errno), b""
        self.answered[Op(event.op).name] += 1
        if self.session.finish(event.slot, event.seq, header, payload) is not None:
            await self._send(header, payload)

    async def _send(self, header: bytes, payload: bytes) -> None:
        async with self._sending:
            # The client may have gone away first.
            with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
                await self.stream.send_all(self.connection.frame(header, payload))

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


@asynccontextmanager
async def linked(
    handler: Handler, *, readers: int = 4, limits: ServerLimits | None = None
) -> AsyncIterator[tuple[Link, Server]]:
    """A link to a server, with the tasks of both running."""
    near, far = pair()
    server = Server(far, handler, limits)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run)
        link = await open_link(near, "volume", readers, body_crc=False)
        nursery.start_soon(link.receive)
        nursery.start_soon(link.send_queued)
        yield link, server
        nursery.cancel_scope.cancel()
    near.close()
    far.close()
