"""INTERRUPT: asking the server, abandoning calls of dying programs, and giving back what late replies bring."""

import errno
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from fusepipe.client import identity, interrupts
from fusepipe.client.cleanup import Cleanup
from fusepipe.client.errors import CallError
from fusepipe.client.interrupts import Interrupts
from fusepipe.client.link import Link
from fusepipe.device import CurrentRequest
from fusepipe.wire import Attr, DirectoryEntry, Entry, pack_entry
from fusepipe.wire import messages as m
from tests.client.servers import Server, linked

ATTR = Attr(7, 0o100644, 1, 0, 0, 0, 0, 4096, 0, 0, 0, 0, 0, 0, 0)


class Stuck:
    """A server whose requests end when the test lets them, with a lookup and a handle where the operation has one."""

    def __init__(self) -> None:
        self.gate = trio.Event()
        self.cleanups: list[m.CleanupRequest] = []

    async def __call__(self, request: Any, payload: memoryview) -> tuple[Any, bytes]:
        if isinstance(request, m.CleanupRequest):
            self.cleanups.append(request)
            return m.CleanupReply(), b""
        await self.gate.wait()
        match request:
            case m.LookupRequest():
                return m.LookupReply(Entry(50, ATTR)), b""
            case m.OpenRequest():
                return m.OpenReply(600, 0), b""
            case m.CreateRequest():
                return m.CreateReply(Entry(51, ATTR), 601, 0), b""
            case m.ReaddirRequest():
                listed = [DirectoryEntry(0, 1, 1, 4, b".", None), DirectoryEntry(52, 7, 2, 8, b"a", ATTR)]
                return m.ReaddirReply(2), b"".join(map(pack_entry, listed))
            case m.OpendirRequest():
                raise OSError(errno.EINTR, os.strerror(errno.EINTR))
        return m.FsyncReply(), b""


class World:
    """A link with its interrupts and its cleanup; `dying` holds the tasks that a signal is ending."""

    def __init__(self, link: Link, server: Server, stuck: Stuck, nursery: trio.Nursery) -> None:
        self.link = link
        self.server = server
        self.stuck = stuck
        self.nursery = nursery
        self.cleanup = Cleanup(link)
        self.interrupts = Interrupts(link)
        self.ended: dict[int, object] = {}
        link.late = self.cleanup.give_back
        link.make_space = self.cleanup.settle
        nursery.start_soon(self.cleanup.run)
        nursery.start_soon(self.interrupts.run)

    async def start(self, unique: int, request: Any) -> None:
        async def call() -> None:
            self.link.current = CurrentRequest(unique=unique, pid=unique)
            try:
                self.ended[unique] = (await self.link.call(request)).reply
            except CallError as error:
                self.ended[unique] = error.errno

        self.nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()


def run(test: Callable[[World], Awaitable[None]], *, readers: int = 4, stuck: type[Stuck] = Stuck) -> None:
    async def main() -> None:
        handler = stuck()
        async with linked(handler, readers=readers) as (link, server), trio.open_nursery() as nursery:
            await test(World(link, server, handler, nursery))
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    tasks: set[int] = set()
    monkeypatch.setattr(interrupts, "is_dying", tasks.__contains__)
    return tasks


def test_a_request_that_nobody_knows_is_to_be_asked_again() -> None:
    async def test(world: World) -> None:
        assert not world.interrupts.interrupt(99)

    run(test)


def test_the_server_is_asked_and_its_answer_counts(dying: set[int]) -> None:
    async def test(world: World) -> None:
        await world.start(1, m.OpendirRequest(1, 0))
        assert world.interrupts.interrupt(1)
        await trio.sleep(0.5)
        assert len(world.server.interrupted) == 1 and not world.ended
        world.stuck.gate.set()
        await trio.sleep(0.1)
        assert world.ended == {1: errno.EINTR}

    run(test)


def test_a_program_that_lives_on_waits(dying: set[int]) -> None:
    async def test(world: World) -> None:
        await world.start(1, m.FsyncRequest(1, False))
        world.interrupts.interrupt(1)
        await trio.sleep(30)
        assert not world.ended
        dying.add(1)  # it is killed later; the kernel does not say so
        await trio.sleep(1.1)
        assert world.ended == {1: errno.EINTR}

    run(test)


def test_a_dying_program_is_answered_after_a_second(dying: set[int]) -> None:
    async def test(world: World) -> None:
        dying.add(1)
        await world.start(1, m.FsyncRequest(1, False))
        world.interrupts.interrupt(1)
        await trio.sleep(0.9)
        assert not world.ended
        await trio.sleep(0.2)
        assert world.ended == {1: errno.EINTR}
        assert world.link.waits
        world.stuck.gate.set()
        await trio.sleep(0.1)
        assert not world.link.waits and not world.stuck.cleanups

    run(test)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (m.LookupRequest(1, b"name"), m.CleanupRequest((50, 1), (), ())),
        (m.OpenRequest(1, 0, False, 0, 0), m.CleanupRequest((), (), (600,))),
        (m.CreateRequest(1, b"n", 0, 0o644, 0, 0, 0, (), False), m.CleanupRequest((51, 1), (), (601,))),
        (m.ReaddirRequest(1, 0, 4096), m.CleanupRequest((52, 1), (), ())),
    ],
)
def test_what_a_late_reply_brings_is_given_back(dying: set[int], request_: Any, expected: Any) -> None:
    async def test(world: World) -> None:
        dying.add(1)
        await world.start(1, request_)
        world.interrupts.interrupt(1)
        await trio.sleep(1.1)
        assert world.ended == {1: errno.EINTR}
        world.stuck.gate.set()
        await trio.sleep(0.1)
        assert world.stuck.cleanups == [expected]

    run(test)


def test_at_most_half_of_the_slots_are_abandoned(dying: set[int]) -> None:
    async def test(world: World) -> None:
        dying.update({1, 2, 3, 4})
        for unique in (1, 2, 3, 4):
            await world.start(unique, m.FsyncRequest(unique, False))
            world.interrupts.interrupt(unique)
        await trio.sleep(10)
        assert world.ended == {1: errno.EINTR, 2: errno.EINTR}
        world.stuck.gate.set()
        await trio.sleep(2)
        assert world.ended == {1: errno.EINTR, 2: errno.EINTR, 3: m.FsyncReply(), 4: m.FsyncReply()}

    run(test)


def test_a_place_that_becomes_free_goes_to_the_next_dying_program(dying: set[int]) -> None:
    async def test(world: World) -> None:
        dying.update({1, 2})
        for unique in (1, 2):
            await world.start(unique, m.OpenRequest(unique, 0, False, 0, 0))
            world.interrupts.interrupt(unique)
        await trio.sleep(5)
        assert world.ended == {1: errno.EINTR}
        gate, world.stuck.gate = world.stuck.gate, trio.Event()
        gate.set()  # both replies come: the second one in time
        await trio.sleep(1)
        assert world.ended == {1: errno.EINTR, 2: m.OpenReply(600, 0)}
        assert world.stuck.cleanups == [m.CleanupRequest((), (), (600,))]
        await world.start(3, m.OpenRequest(3, 0, False, 0, 0))
        dying.add(3)
        world.interrupts.interrupt(3)
        await trio.sleep(1.1)
        assert world.ended[3] == errno.EINTR

    run(test, readers=2)


def test_a_parked_request_is_ended_at_once() -> None:
    async def test(world: World) -> None:
        await world.start(1, m.FsyncRequest(1, False))
        await world.start(2, m.FsyncRequest(2, False))
        await world.start(3, m.FsyncRequest(3, False))
        world.interrupts.interrupt(2)
        await trio.testing.wait_all_tasks_blocked()
        assert world.ended == {2: errno.EINTR}
        assert not world.interrupts.interrupt(2)
        world.stuck.gate.set()
        await trio.sleep(0.1)
        assert [request.handle for request in world.server.requests] == [1, 3]

    run(test, readers=1)


class FullDisk(Stuck):
    """A disk that is full until a batch of cleanup frees some space."""

    error = errno.ENOSPC

    async def __call__(self, request: Any, payload: memoryview) -> tuple[Any, bytes]:
        if isinstance(request, m.CleanupRequest):
            await self.gate.wait()
            self.cleanups.append(request)
            return m.CleanupReply(), b""
        if not self.cleanups:
            raise OSError(self.error, os.strerror(self.error))
        return m.WriteReply(len(payload)), b""


class NoFileLeft(FullDisk):
    """A server that may open no more files."""

    error = errno.ENFILE


@pytest.mark.parametrize("full", [FullDisk, NoFileLeft])
def test_a_full_disk_is_tried_again_once_what_was_given_back_is_free(full: type[FullDisk]) -> None:
    async def test(world: World) -> None:
        await world.start(1, m.WriteRequest(1, 0, 0))
        await trio.sleep(0.1)
        assert world.ended == {1: full.error}  # there is nothing to wait for
        world.cleanup.close(7)
        await world.start(2, m.WriteRequest(1, 0, 0))
        await trio.sleep(1)
        assert 2 not in world.ended
        world.stuck.gate.set()
        await trio.sleep(1)
        assert world.ended[2] == m.WriteReply(0)

    run(test, stuck=full)


class JustFreed(FullDisk):
    """Space becomes free after the request has failed, and before its reply is sent."""

    async def __call__(self, request: Any, payload: memoryview) -> tuple[Any, bytes]:
        try:
            return await super().__call__(request, payload)
        except OSError:
            await trio.sleep(1)
            raise


def test_a_full_disk_is_tried_again_also_where_space_was_freed_before_the_reply() -> None:
    async def test(world: World) -> None:
        world.stuck.gate.set()
        await world.start(1, m.WriteRequest(1, 0, 0))
        world.cleanup.close(7)
        await trio.sleep(2)
        assert world.stuck.cleanups == [m.CleanupRequest((), (7,), ())]
        assert world.ended == {1: m.WriteReply(0)}

    run(test, stuck=JustFreed)


def test_what_the_kernel_gives_back_after_the_request_frees_space_for_it() -> None:
    async def test(world: World) -> None:
        world.stuck.gate.set()
        await world.start(1, m.WriteRequest(1, 0, 0))
        world.cleanup.close(7)
        await trio.sleep(1)
        assert world.ended == {1: m.WriteReply(0)}

    run(test, stuck=FullDisk)


def test_an_interrupted_request_is_not_tried_again() -> None:
    async def test(world: World) -> None:
        world.cleanup.close(7)
        await world.start(1, m.WriteRequest(1, 0, 0))
        await trio.sleep(1)
        assert world.interrupts.interrupt(1)
        await trio.sleep(1)
        assert not world.ended
        world.stuck.gate.set()
        await trio.sleep(1)
        assert world.ended == {1: errno.EINTR}

    run(test, stuck=FullDisk)


def test_who_is_dying_is_read_from_proc() -> None:
    assert not identity.is_dying(os.getpid())
    assert identity.is_dying(2**22 + 1)  # no task can have that number: nobody is seen, so nobody waits for an answer
    assert identity.supplementary_groups(os.getpid()) == tuple(sorted(os.getgroups()))
    assert identity.supplementary_groups(2**22 + 1) == ()
