"""Shared locks without a mount: a RELEASE that comes late, and a lock that comes after its program was given up."""

import errno
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pyfuse3
import pytest
import trio
import trio.testing

from fusepipe.client import interrupts
from fusepipe.client.interrupts import Interrupts
from fusepipe.client.link import Link
from fusepipe.client.shared_locks import UNLOCK, SharedLocks
from fusepipe.device import CurrentRequest, Opcode
from fusepipe.wire import messages as m
from tests.client.servers import Server, linked

NODE, OWNER, PID = 7, 11, 4242
READ, WRITE = 0, 1  # F_RDLCK, F_WRLCK
FLOCK = 1  # FUSE_LK_FLOCK
WHOLE = (0, 2**63 - 1)


class Host:
    """One exclusive lock, which a handle holds; who wants to wait for it does until `free` or its release."""

    def __init__(self) -> None:
        self.holder = 0
        self.freed = trio.Event()

    def free(self) -> None:
        self.holder = 0
        self.freed.set()
        self.freed = trio.Event()

    async def __call__(self, request: Any, _payload: memoryview) -> tuple[Any, bytes]:
        match request:
            case m.SetlkRequest() | m.FlockRequest():
                self._take(request.handle, request.type)
                return (m.SetlkReply() if isinstance(request, m.SetlkRequest) else m.FlockReply()), b""
            case m.SetlkwRequest() | m.FlockwRequest():
                while self.holder not in (0, request.handle):
                    await self.freed.wait()
                self.holder = request.handle
                return (m.SetlkwReply() if isinstance(request, m.SetlkwRequest) else m.FlockwReply()), b""
            case m.ReleaseRequest():
                if self.holder == request.handle:
                    self.free()
                return m.ReleaseReply(), b""
        raise AssertionError(request)

    def _take(self, handle: int, type: int) -> None:
        if type == UNLOCK:
            if self.holder == handle:
                self.free()
        elif self.holder in (0, handle):
            self.holder = handle
        else:
            raise OSError(errno.EAGAIN, "locked")


class Filter:
    """Notes which handles' RELEASEs are withheld from libfuse."""

    def __init__(self) -> None:
        self.withheld: set[int] = set()

    def withhold(self, handle: int) -> None:
        self.withheld.add(handle)

    def admit(self, handle: int) -> None:
        self.withheld.remove(handle)


class World:
    """The lock operations of a mount behind which there is one lock."""

    def __init__(self, link: Link, server: Server, host: Host, nursery: trio.Nursery) -> None:
        self.host = host
        self.nursery = nursery
        self.server = server
        device_filter: Any = Filter()
        self.filter = device_filter
        self.locks = SharedLocks(link)
        self.locks.use(device_filter)
        self.locks.start(nursery)
        link.late = self.locks.give_back
        self.interrupts = Interrupts(link)
        nursery.start_soon(self.interrupts.run)
        self.ended: dict[int, int] = {}
        self._unique = 0

    @property
    def seen(self) -> list[str]:
        return [type(request).__name__.removesuffix("Request") for request in self.server.requests]

    async def lock(self, opcode: int, handle: int, type: int = WRITE, flags: int = 0) -> int:
        """The errno of a lock request; its `unique` is even, and counts up from 2."""
        self._unique += 2
        current = CurrentRequest(unique=self._unique, node=NODE, opcode=opcode, pid=PID)
        arguments = struct.pack("=QQQQIIII", handle, OWNER + handle, *WHOLE, type, PID, flags, 0)
        try:
            await self.locks.table()[opcode](current, arguments)
        except pyfuse3.FUSEError as error:
            self.ended[current.unique] = error.errno
        else:
            self.ended[current.unique] = 0
        return self.ended[current.unique]

    async def release(self, handle: int) -> None:
        self._unique += 2
        current = CurrentRequest(unique=self._unique, node=NODE, opcode=Opcode.RELEASE)
        self.locks.releasing(current)
        await self.locks.table()[Opcode.RELEASE](current, struct.pack("=QIIQ", handle, 0, 0, 0))


def run(test: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        host = Host()
        async with linked(host) as (link, server), trio.open_nursery() as nursery:
            with trio.fail_after(300):
                await test(World(link, server, host, nursery))
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))


@pytest.fixture(autouse=True)
def invalidated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The nodes that the kernel was told to forget."""
    nodes: list[int] = []

    async def at_once(call: Callable[..., None], *arguments: int, abandon_on_cancel: bool) -> None:
        assert abandon_on_cancel
        call(*arguments)

    monkeypatch.setattr(pyfuse3, "invalidate_inode", nodes.append)
    monkeypatch.setattr(trio.to_thread, "run_sync", at_once)  # the clock would jump while a thread works
    return nodes


@pytest.mark.parametrize("flags", [0, FLOCK])
def test_a_release_that_is_late_is_waited_for(flags: int) -> None:
    """The kernel sends it behind the next program's request: that one is asked again once it is done."""

    async def test(world: World) -> None:
        assert await world.lock(Opcode.SETLK, 1, flags=flags) == 0
        assert world.filter.withheld == {1}
        ended: list[int] = []

        async def next_program() -> None:
            ended.append(await world.lock(Opcode.SETLK, 2, flags=flags))

        world.nursery.start_soon(next_program)
        while sum(world.server.answered.values()) < 2:
            await trio.lowlevel.checkpoint()  # and no sleep, which would let the clock jump over the time to be late in
        await world.release(1)
        await trio.sleep(1)
        assert ended == [0] and world.host.holder == 2
        assert world.filter.withheld == {2}
        kind = "Flock" if flags else "Setlk"
        assert world.seen == [kind, kind, "Release", kind]

    run(test)


def test_a_release_that_has_come_is_first() -> None:
    async def test(world: World) -> None:
        assert await world.lock(Opcode.SETLK, 1) == 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.release, 1)
            await trio.lowlevel.checkpoint()
            nursery.start_soon(world.lock, Opcode.SETLK, 2)
        assert world.host.holder == 2
        assert world.seen == ["Setlk", "Release", "Setlk"]

    run(test)


def test_a_lock_that_is_held_is_asked_for_twice_at_most() -> None:
    """And only once where nobody on this mount can have given it up."""

    async def test(world: World) -> None:
        world.host.holder = 99  # a program on the host
        assert await world.lock(Opcode.SETLK, 1) == errno.EAGAIN
        assert world.seen == ["Setlk"]
        assert await world.lock(Opcode.SETLK, 2) == errno.EAGAIN
        assert world.seen == ["Setlk"] * 3

    run(test)


def test_who_gets_a_lock_reads_anew(invalidated: list[int]) -> None:
    async def test(world: World) -> None:
        assert await world.lock(Opcode.SETLKW, 1) == 0
        assert invalidated == [NODE]
        assert await world.lock(Opcode.SETLK, 1, UNLOCK) == 0
        assert invalidated == [NODE]
        world.host.holder = 99
        assert await world.lock(Opcode.SETLK, 1) == errno.EAGAIN
        assert invalidated == [NODE]

    run(test)


@pytest.mark.parametrize(("flags", "undo"), [(0, "Setlk"), (FLOCK, "Flock")])
def test_a_lock_that_comes_too_late_is_removed(flags: int, undo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server gives it to a program that is being killed and has been told EINTR."""
    monkeypatch.setattr(interrupts, "is_dying", {PID}.__contains__)

    async def test(world: World) -> None:
        world.host.holder = 99
        world.nursery.start_soon(world.lock, Opcode.SETLKW, 1, WRITE, flags)
        await trio.sleep(1)
        assert not world.ended
        assert world.interrupts.interrupt(2)
        await trio.sleep(2)
        assert world.ended == {2: errno.EINTR}
        world.host.free()
        await trio.sleep(1)
        assert world.seen == [undo + "w", undo]
        assert world.server.requests[-1].type == UNLOCK
        assert world.server.requests[-1].handle == 1
        assert world.host.holder == 0

    run(test)


def test_a_refusal_that_comes_too_late_is_no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "is_dying", {PID}.__contains__)

    class Refusing(Host):
        async def __call__(self, request: Any, payload: memoryview) -> tuple[Any, bytes]:
            await self.freed.wait()
            raise OSError(errno.EINTR, "interrupted")

    async def main() -> None:
        host = Refusing()
        async with linked(host) as (link, server), trio.open_nursery() as nursery:
            world = World(link, server, host, nursery)
            nursery.start_soon(world.lock, Opcode.SETLKW, 1)
            await trio.sleep(1)
            assert world.interrupts.interrupt(2)
            await trio.sleep(2)
            assert world.ended == {2: errno.EINTR}
            host.free()
            await trio.sleep(1)
            assert world.seen == ["Setlkw"]
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))
