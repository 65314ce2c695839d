"""The link: slots, parked requests, replies by ticket, cuts, and a server that is silent."""

import errno
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from fusepipe.client import liveness
from fusepipe.client.errors import CallError, LinkLostError, RefusedError, VolumeError
from fusepipe.client.handshake import Offer, open_link
from fusepipe.client.link import Link
from fusepipe.client.resuming import Resuming
from fusepipe.device import CurrentRequest
from fusepipe.wire import ErrorCode, ServerLimits, refusal
from fusepipe.wire import messages as m
from tests.client.servers import Server, linked, nobody, pair, until

GETATTR = m.GetattrRequest(1, 0)


class Replies:
    """Answers FSYNC when the test says so, in its order; everything else at once."""

    def __init__(self) -> None:
        self.gates: dict[int, trio.Event] = {}

    async def __call__(self, request: Any, payload: memoryview) -> tuple[Any, bytes]:
        match request:
            case m.FsyncRequest():
                await self.gates.setdefault(request.handle, trio.Event()).wait()
                return m.FsyncReply(), b""
            case m.ReadRequest():
                return m.ReadReply(), b"x" * request.size
            case m.WriteRequest():
                return m.WriteReply(len(payload)), b""
            case m.CleanupRequest():
                return m.CleanupReply(), b""
            case m.FlushRequest():
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return m.RenameReply(), b""

    def open(self, *handles: int) -> None:
        for handle in handles:
            self.gates.setdefault(handle, trio.Event()).set()


class Calls:
    """Calls that run, and how they ended: the errno, or what the reply was."""

    def __init__(self, link: Link, nursery: trio.Nursery) -> None:
        self.link = link
        self.nursery = nursery
        self.ended: dict[int, object] = {}
        self.order: list[int] = []

    def start(self, number: int, request: Any, payload: bytes = b"") -> None:
        """Starts a call, which is known to the kernel as `number`."""

        async def run() -> None:
            self.link.current = CurrentRequest(unique=number)
            try:
                self.ended[number] = (await self.link.call(request, payload)).reply
            except CallError as error:
                self.ended[number] = error.errno
            self.order.append(number)

        self.nursery.start_soon(run)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        with trio.fail_after(20):
            await test()

    trio.run(limited)


def test_replies_reach_their_calls_whatever_the_order() -> None:
    async def main() -> None:
        gates = Replies()
        async with linked(gates) as (link, _server), trio.open_nursery() as nursery:
            calls = Calls(link, nursery)
            for number in (1, 2, 3):
                calls.start(number, m.FsyncRequest(number, False))
            await until(lambda: len(gates.gates) == 3)
            for number in (2, 3, 1):
                gates.open(number)
                await until(lambda number=number: number in calls.ended)  # type: ignore[misc]  # a default
            assert calls.order == [2, 3, 1]
            assert not link.waits and not link.calls

    run(main)


def test_errno_of_a_reply_is_raised() -> None:
    async def main() -> None:
        async with linked(Replies()) as (link, _server):
            with pytest.raises(CallError) as raised:
                await link.call(m.FlushRequest(1, 0))
            assert raised.value.errno == errno.EDQUOT

    run(main)


def test_requests_without_a_slot_wait_in_their_order() -> None:
    async def main() -> None:
        gates = Replies()
        async with linked(gates, readers=2) as (link, server), trio.open_nursery() as nursery:
            calls = Calls(link, nursery)
            for number in range(1, 7):
                calls.start(number, m.FsyncRequest(number, False))
                await trio.testing.wait_all_tasks_blocked()
            assert sorted(gates.gates) == [1, 2]
            assert [call.unique for call in link.calls.values() if call.ticket is None] == [3, 4, 5, 6]
            gates.open(2)
            await until(lambda: 3 in gates.gates)
            gates.open(1, 3, 4, 5, 6)
            await until(lambda: len(calls.ended) == 6)
            assert [request.handle for request in server.requests] == [1, 2, 3, 4, 5, 6]

    run(main)


def test_bytes_in_flight_are_limited() -> None:
    async def main() -> None:
        gates = Replies()
        limits = ServerLimits(max_in_flight=300_000)
        async with linked(gates, readers=8, limits=limits) as (link, server), trio.open_nursery() as nursery:
            server.deaf = trio.Event()
            calls = Calls(link, nursery)
            for number in range(1, 6):
                calls.start(number, m.ReadRequest(1, 0, 100_000))
            await trio.testing.wait_all_tasks_blocked()
            assert sum(call.ticket is not None for call in link.calls.values()) == 2
            server.deaf.set()
            await until(lambda: len(calls.ended) == 5)

    run(main)


def test_frames_that_the_socket_does_not_take_follow_in_order() -> None:
    async def main() -> None:
        async with linked(Replies(), readers=16) as (link, server), trio.open_nursery() as nursery:
            server.deaf = trio.Event()
            calls = Calls(link, nursery)
            for number in range(1, 13):
                calls.start(number, m.WriteRequest(number, 0, 0), bytes([number]) * 1_000_000)
            await trio.testing.wait_all_tasks_blocked()
            server.deaf.set()
            await until(lambda: len(calls.ended) == 12)
            assert set(calls.ended.values()) == {m.WriteReply(1_000_000)}
            # trio starts tasks in any order; what matters is that no frame was torn
            assert sorted(request.handle for request in server.requests) == list(range(1, 13))

    run(main)


def test_a_request_that_cannot_be_sent_fails_alone() -> None:
    async def main() -> None:
        gates = Replies()
        async with linked(gates, readers=1) as (link, _server), trio.open_nursery() as nursery:
            calls = Calls(link, nursery)
            calls.start(1, m.FsyncRequest(1, False))
            await trio.testing.wait_all_tasks_blocked()
            failed = []

            async def impossible() -> None:
                try:
                    await link.call(m.ReadRequest(1, 0, 1 << 30))
                except Exception as error:
                    failed.append(error)

            nursery.start_soon(impossible)
            await trio.testing.wait_all_tasks_blocked()
            calls.start(2, m.RenameRequest(1, b"a", 1, b"b", 0))
            await trio.testing.wait_all_tasks_blocked()
            gates.open(1)
            await until(lambda: 2 in calls.ended and bool(failed))
            assert "1073741824 bytes" in str(failed[0])
            assert calls.ended == {1: m.FsyncReply(), 2: m.RenameReply()}

    run(main)


def test_a_cut_fails_waiting_parked_and_later_calls() -> None:
    async def main() -> None:
        async with linked(Replies(), readers=2) as (link, server), trio.open_nursery() as nursery:
            calls = Calls(link, nursery)
            for number in range(1, 5):
                calls.start(number, m.FsyncRequest(number, False))
            await trio.testing.wait_all_tasks_blocked()
            server.cut()
            await link.over.wait()
            await trio.testing.wait_all_tasks_blocked()
            assert calls.ended == dict.fromkeys(range(1, 5), errno.EIO)
            assert link.error == errno.EIO
            with pytest.raises(CallError) as raised:
                await link.call(m.LookupRequest(1, b"name"))
            assert raised.value.errno == errno.EIO

    run(main)


def test_a_cut_while_sending_fails_the_call() -> None:
    async def main() -> None:
        near, far = pair()
        server = Server(far, Replies())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.run)
            link = await open_link(near, Offer("volume", 4))
            far.socket.close()  # nobody has told trio, so the server does not notice
            calls = Calls(link, nursery)
            calls.start(1, m.WriteRequest(1, 0, 0), bytes(1 << 20))
            calls.start(2, m.FsyncRequest(1, False))
            nursery.start_soon(Resuming(link, nobody, 0.0).run)
            await until(lambda: len(calls.ended) == 2)
            assert calls.ended == {1: errno.EIO, 2: errno.EIO}
            nursery.cancel_scope.cancel()

    run(main)


def test_a_cancelled_call_leaves_nothing_behind() -> None:
    async def main() -> None:
        gates = Replies()
        async with linked(gates) as (link, _server):
            with trio.move_on_after(0.01):
                await link.call(m.FsyncRequest(1, False))
            assert not link.calls
            gates.open(1)
            await until(lambda: not link.waits)

    run(main)


# ---- silence --------------------------------------------------------------------------------------------------------


def run_on_mock_clock(test: Callable[[], Awaitable[None]]) -> None:
    # The threshold gives the socket pair time to carry what was sent before the clock jumps.
    trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0.01))


def test_a_slow_reply_is_no_reason_to_give_up() -> None:
    async def main() -> None:
        gates = Replies()
        async with linked(gates) as (link, _server), trio.open_nursery() as nursery:
            nursery.start_soon(liveness.watch, link)
            calls = Calls(link, nursery)
            calls.start(1, m.FsyncRequest(1, False))
            await trio.sleep(100)
            assert not link.error and not calls.ended
            gates.open(1)
            await until(lambda: 1 in calls.ended)
            await trio.sleep(100)
            assert not link.error
            nursery.cancel_scope.cancel()

    run_on_mock_clock(main)


def test_a_silent_server_is_dead_after_ten_seconds() -> None:
    async def main() -> None:
        async with linked(Replies()) as (link, server), trio.open_nursery() as nursery:
            nursery.start_soon(liveness.watch, link)
            await trio.sleep(60)
            assert not link.error  # nothing is owed
            server.deaf = trio.Event()
            calls = Calls(link, nursery)
            begun = trio.current_time()
            calls.start(1, m.FsyncRequest(1, False))
            await link.over.wait()
            assert trio.current_time() - begun == pytest.approx(10, abs=0.5)
            await trio.testing.wait_all_tasks_blocked()
            assert link.error and calls.ended == {1: errno.EIO}

    run_on_mock_clock(main)


def test_a_clock_that_jumps_over_a_pause_is_no_silence() -> None:
    """The machine is paused while PING is on its way: afterwards its clock may be ahead, and the answer is there."""
    clock = trio.testing.MockClock(autojump_threshold=0.01)

    async def main() -> None:
        gates = Replies()
        async with linked(gates) as (link, server), trio.open_nursery() as nursery:
            nursery.start_soon(liveness.watch, link)
            server.deaf = trio.Event()  # from the next message on
            calls = Calls(link, nursery)
            calls.start(1, m.FsyncRequest(1, False))
            await until(lambda: 1 in gates.gates)
            await trio.sleep(liveness.PING_AFTER + 1)
            assert not link.error
            clock.jump(1000)
            server.deaf.set()
            await trio.sleep(100)
            assert not link.error
            gates.open(1)
            await until(lambda: 1 in calls.ended)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=clock)


# ---- handshake ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (ErrorCode.NO_SUCH_VOLUME, VolumeError),
        (ErrorCode.FAILED, VolumeError),
        (ErrorCode.VERSION, RefusedError),
        (ErrorCode.LIMIT, RefusedError),
        (ErrorCode.REFUSED, RefusedError),
    ],
)
def test_a_refusal_says_what_and_why(code: ErrorCode, kind: type[Exception]) -> None:
    async def main() -> None:
        near, far = pair()
        await far.send_all(refusal(code, "such and such"))
        with pytest.raises(kind, match="such and such"):
            await open_link(near, Offer("volume", 4))
        near.close()
        far.close()

    run(main)


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_a_server_that_is_none_is_recognised(said: bytes) -> None:
    async def main() -> None:
        near, far = pair()
        if said:
            await far.send_all(said)
        await far.send_eof()
        with pytest.raises(LinkLostError):
            await open_link(near, Offer("volume", 4))
        near.close()
        far.close()

    run(main)


def test_a_server_that_never_answers_is_given_up() -> None:
    async def main() -> None:
        near, far = pair()
        with pytest.raises(LinkLostError, match="not answered for 60 seconds"):
            await open_link(near, Offer("volume", 4))
        near.close()
        far.close()

    run_on_mock_clock(main)
