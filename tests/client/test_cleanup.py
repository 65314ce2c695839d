"""Cleanup: what the kernel gives back is sent in batches, which grow while no slot is free."""

from collections.abc import Awaitable, Callable
from typing import Any

import trio
import trio.testing

from fusepipe.client.cleanup import Cleanup
from fusepipe.device import BATCH
from fusepipe.wire import ServerLimits
from fusepipe.wire import messages as m
from tests.client.servers import linked


class Slow:
    """Answers batches when the test says so."""

    def __init__(self) -> None:
        self.batches: list[m.CleanupRequest] = []
        self.gate = trio.Event()

    async def __call__(self, request: Any, payload: memoryview) -> tuple[Any, bytes]:
        self.batches.append(request)
        await self.gate.wait()
        return m.CleanupReply(), b""


def run(test: Callable[[Cleanup, Slow], Awaitable[None]], *, slots: int = 4) -> None:
    async def main() -> None:
        slow = Slow()
        limits = ServerLimits(cleanup_slots=slots)
        async with linked(slow, limits=limits) as (link, _server), trio.open_nursery() as nursery:
            cleanup = Cleanup(link)
            nursery.start_soon(cleanup.run)
            await test(cleanup, slow)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))


def test_what_is_given_back_together_is_one_batch() -> None:
    async def test(cleanup: Cleanup, slow: Slow) -> None:
        slow.gate.set()
        cleanup.forget(5, 2)
        await trio.sleep(0.001)
        cleanup.close(70)
        cleanup.forget(6)
        await trio.sleep(0.1)
        assert slow.batches == [m.CleanupRequest((5, 2, 6, 1), (70,), ())]
        cleanup.forget(7)
        await trio.sleep(0.1)
        assert slow.batches[1:] == [m.CleanupRequest((7, 1), (), ())]

    run(test)


def test_batches_that_follow_each_other_are_fewer() -> None:
    """One each 10 ms as long as there is always something to give back, and the first one after a rest soon again."""

    async def test(cleanup: Cleanup, slow: Slow) -> None:
        slow.gate.set()
        for handle in range(40):
            cleanup.close(handle)
            await trio.sleep(0.001)
        await trio.sleep(1)
        assert 4 <= len(slow.batches) <= 6
        assert len(slow.batches[0].handles) < 5
        assert [handle for batch in slow.batches for handle in batch.handles] == list(range(40))
        seen = len(slow.batches)
        cleanup.close(100)
        await trio.sleep(0.005)
        assert [batch.handles for batch in slow.batches[seen:]] == [(100,)]

    run(test)


def test_no_more_batches_than_slots_and_nothing_is_lost() -> None:
    async def test(cleanup: Cleanup, slow: Slow) -> None:
        for handle in range(10):
            cleanup.close(handle)
            await trio.sleep(1)
        assert [batch.handles for batch in slow.batches] == [(0,), (1,)]
        slow.gate.set()
        await trio.sleep(1)
        assert [batch.handles for batch in slow.batches] == [(0,), (1,), tuple(range(2, 10))]

    run(test, slots=2)


def test_a_large_backlog_becomes_several_batches() -> None:
    async def test(cleanup: Cleanup, slow: Slow) -> None:
        slow.gate.set()
        for node in range(2 * BATCH + 1):
            cleanup.forget(node)
        await trio.sleep(1)
        assert [len(batch.forgets) for batch in slow.batches] == [2 * BATCH, 2 * BATCH, 2]
        assert [node for batch in slow.batches for node in batch.forgets[::2]] == list(range(2 * BATCH + 1))

    run(test)


def test_what_is_given_back_after_settling_is_sent() -> None:
    """`settle` sends on its own account; whoever waits for the next thing to send must not miss it."""

    async def test(cleanup: Cleanup, slow: Slow) -> None:
        slow.gate.set()
        await trio.sleep(0.1)
        await cleanup.settle()
        assert not slow.batches
        cleanup.close(70)
        await trio.sleep(0.1)
        assert slow.batches == [m.CleanupRequest((), (70,), ())]

    run(test)
