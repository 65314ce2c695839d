"""A session that goes on over another connection: every request runs once, and waits as long as it is to."""

import errno
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from fusepipe.client import liveness
from fusepipe.client.cleanup import Cleanup
from fusepipe.client.errors import CallError, LinkLostError, StaleError
from fusepipe.client.handshake import Offer, open_link, resume
from fusepipe.client.interrupts import Interrupts
from fusepipe.client.link import Link
from fusepipe.client.resuming import Resuming
from fusepipe.transport import Stream
from fusepipe.wire import messages as m
from tests.client.servers import Server, pair, until
from tests.client.test_link import Calls, Replies, run


class World:
    """A link whose connection may be cut, the server behind it, and what becomes of calls."""

    def __init__(self, nursery: trio.Nursery, readers: int) -> None:
        near, far = pair()
        self.near = near
        self.nursery = nursery
        self.replies = Replies()
        self.server = Server(far, self.replies)
        self.readers = readers
        self.there = True
        """Whether somebody answers who dials."""
        self.dialled = 0

    async def begin(self, patience: float) -> None:
        self.nursery.start_soon(self.server.run)
        self.link = await open_link(self.near, Offer("volume", self.readers))
        self.nursery.start_soon(Resuming(self.link, self.dial, patience).run)
        self.calls = Calls(self.link, self.nursery)

    async def dial(self) -> Stream:
        self.dialled += 1
        if not self.there:
            raise OSError("nobody is there")
        return await self.server.dialled(self.nursery)

    async def cut(self) -> None:
        """Cuts, and waits until the client knows."""
        connected = self.link.connected
        self.server.cut()
        await until(lambda: self.link.connected is not connected)


@asynccontextmanager
async def world(*, readers: int = 4, patience: float = math.inf) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        made = World(nursery, readers)
        await made.begin(patience)
        yield made
        made.link.end(0)
        nursery.cancel_scope.cancel()
    made.server.stream.close()


def on_mock_clock(test: Callable[[], Awaitable[None]]) -> None:
    trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0.01))


def test_what_runs_is_answered_on_the_new_connection_and_runs_once() -> None:
    async def main() -> None:
        async with world(readers=2) as w:
            for number in range(1, 4):  # the last one is parked
                w.calls.start(number, m.FsyncRequest(number, False))
            await until(lambda: len(w.server.requests) == 2)
            await w.cut()
            w.calls.start(4, m.FsyncRequest(4, False))
            w.replies.open(1, 2, 3, 4)
            await until(lambda: len(w.calls.ended) == 4)
            assert w.calls.ended == dict.fromkeys(range(1, 5), m.FsyncReply())
            assert sorted(request.handle for request in w.server.requests) == [1, 2, 3, 4]

    run(main)


def test_a_reply_that_was_lost_is_sent_again_and_nothing_runs_twice() -> None:
    async def main() -> None:
        async with world() as w:
            w.server.mute = True
            w.calls.start(1, m.RenameRequest(1, b"a", 1, b"b", 0))
            await until(lambda: w.server.answered["RENAME"] == 1)
            await w.cut()
            w.server.mute = False
            await until(lambda: 1 in w.calls.ended)
            assert w.calls.ended[1] == m.RenameReply()
            assert w.server.answered["RENAME"] == 1

    run(main)


def test_the_server_may_be_away_for_long() -> None:
    async def main() -> None:
        async with world() as w:
            w.there = False
            w.calls.start(1, m.FsyncRequest(1, False))
            await w.cut()
            await trio.sleep(60)
            assert not w.link.error and not w.calls.ended
            dialled = w.dialled
            await trio.sleep(20)
            assert w.dialled - dialled == pytest.approx(20, abs=2), "once a second"
            w.there = True
            w.replies.open(1)
            await until(lambda: 1 in w.calls.ended)
            assert w.calls.ended[1] == m.FsyncReply()

    on_mock_clock(main)


def test_patience_ends_with_eio() -> None:
    async def main() -> None:
        async with world(readers=1, patience=5.0) as w:
            w.calls.start(1, m.FsyncRequest(1, False))
            w.calls.start(2, m.FsyncRequest(2, False))
            await until(lambda: len(w.server.requests) == 1)
            w.there = False
            begin = trio.current_time()
            w.server.cut()
            await w.link.over.wait()
            assert trio.current_time() - begin == pytest.approx(5, abs=0.5)
            await trio.testing.wait_all_tasks_blocked()
            assert w.calls.ended == {1: errno.EIO, 2: errno.EIO}
            with pytest.raises(CallError) as raised:
                await w.link.call(m.LookupRequest(1, b"x"))
            assert raised.value.errno == errno.EIO

    on_mock_clock(main)


@pytest.mark.parametrize("broken", [0, 1, 2, 3])
def test_further_connections_that_break_at_first(broken: int) -> None:
    """The session goes on over another connection, and gets all of them; after the last attempt it is an error."""

    dialled = 0

    async def main() -> None:
        near, far = pair()
        server = Server(far, Replies())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.run)

            async def dial() -> Stream:
                nonlocal dialled
                dialled += 1
                stream = await server.dialled(nursery)
                if dialled <= broken:
                    server.stream.close()
                return stream

            link = await open_link(near, Offer("volume", 4, connections=3))
            resuming = Resuming(link, dial, math.inf)
            if broken == 3:
                with pytest.raises(LinkLostError):
                    await resuming.attach(2, attempts=3)
            else:
                channels = await resuming.attach(2, attempts=3)
                assert len(channels) == 2 and link.connected.is_set() and not link.session.lost
                assert dialled == broken + 2 + bool(broken)
                for channel in channels:
                    channel.socket.close()
            link.end(0)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        server.stream.close()

    run(main)


def test_somebody_else_has_gone_on_with_the_session(capfd: pytest.CaptureFixture[str]) -> None:
    """Both of two copies hold the same secret; the other one was quicker."""

    async def main() -> None:
        async with world() as w:
            w.calls.start(1, m.FsyncRequest(1, False))
            await until(lambda: len(w.server.requests) == 1)
            w.server.session._secret = None
            w.server.cut()
            await w.link.over.wait()
            await trio.testing.wait_all_tasks_blocked()
            assert w.link.error == errno.ESTALE and w.calls.ended == {1: errno.ESTALE}

    run(main)
    assert sum("the session is stale" in line for line in capfd.readouterr().err.splitlines()) == 1


def test_a_client_that_was_set_back_is_stale() -> None:
    async def main() -> None:
        async with world() as w:
            await w.link.call(m.RenameRequest(1, b"a", 1, b"b", 0))
            w.server.store.run(0, 2, m.Op.RENAME)  # what another copy of it has sent since
            near = await w.dial()
            w.link.session.lost = True
            with pytest.raises(StaleError, match="a copy from the past"):
                await resume(w.link.session, near)
            near.close()

    run(main)


def test_silence_is_a_loss_and_requests_go_on() -> None:
    async def main() -> None:
        async with world() as w:
            w.nursery.start_soon(liveness.watch, w.link)
            w.calls.start(1, m.FsyncRequest(1, False))
            await until(lambda: len(w.server.requests) == 1)
            connected = w.link.connected
            w.server.deaf = deaf = trio.Event()
            with trio.fail_after(60):
                while w.link.connected is connected:  # noqa: ASYNC110 - the server tells of nothing
                    await trio.sleep(1)
            deaf.set()
            w.replies.open(1)
            await until(lambda: 1 in w.calls.ended)
            assert w.calls.ended[1] == m.FsyncReply() and len(w.server.requests) == 1

    on_mock_clock(main)


# ---- while there is no connection -----------------------------------------------------------------------------------


def test_a_dying_program_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parked or unanswered, and also where more than half of the slots are abandoned; one that lives on waits."""
    dying = set(range(100, 106))
    monkeypatch.setattr("fusepipe.client.interrupts.is_dying", lambda task: task in dying)

    async def main() -> None:
        async with world(readers=4) as w:
            w.nursery.start_soon((interrupts := Interrupts(w.link)).run)
            for number in range(1, 8):
                w.calls.start(number, m.FsyncRequest(number, False))
            await until(lambda: len(w.server.requests) == 4)
            w.there = False
            await w.cut()
            for number, call in w.link.calls.items():
                call.pid = 99 + number
            for number in range(1, 8):
                assert interrupts.interrupt(number)
            await until(lambda: len(w.calls.ended) == 6)
            assert w.calls.ended == dict.fromkeys(range(1, 7), errno.EINTR)
            w.there = True
            w.replies.open(*range(1, 8))
            await until(lambda: len(w.calls.ended) == 7)
            assert w.calls.ended[7] == m.FsyncReply()
            await until(lambda: w.link.session.abandoned == 0 or not w.link.waits)

    run(main)


def test_an_interrupt_is_repeated_on_the_new_connection() -> None:
    async def main() -> None:
        async with world() as w:
            w.calls.start(1, m.FsyncRequest(1, False))
            await until(lambda: len(w.server.requests) == 1)
            w.there = False
            await w.cut()
            w.link.interrupt(w.link.calls[1])
            w.there = True
            await until(lambda: len(w.server.interrupted) == 1)
            w.replies.open(1)
            await until(lambda: 1 in w.calls.ended)

    run(main)


def test_what_the_kernel_gives_back_waits_without_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with world() as w:
            cleanup = Cleanup(w.link)
            w.nursery.start_soon(cleanup.run)
            w.there = False
            await w.cut()
            tried = 0
            send = cleanup.send

            def count() -> None:
                nonlocal tried
                tried += 1
                send()

            monkeypatch.setattr(cleanup, "send", count)
            cleanup.forget(5, 2)
            await trio.sleep(20)
            assert tried == 0
            w.there = True
            await until(lambda: tried > 0)

    on_mock_clock(main)


def test_bye_that_was_cut_is_no_error() -> None:
    """The server had it, so it does not know the session any more."""

    async def main() -> None:
        async with world() as w:
            w.link.closing = True
            w.server.mute = True
            w.link.bye()
            await until(lambda: w.server.session.ended)
            w.server.mute = False
            w.server.cut()
            with trio.fail_after(10):
                await w.link.over.wait()
            assert not w.link.error

    run(main)


def test_links_end_without_a_trace() -> None:
    async def main() -> None:
        async with world() as w:
            link: Link = w.link
            link.end(errno.EIO)
            link.end(errno.ESTALE)
            assert link.error == errno.EIO
            await w.link.connected.wait()

    run(main)
