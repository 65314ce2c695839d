"""A process that dies at each store that it makes to the tables, one after another, and what the next one finds.

    python -m tests.server.stepping LIBRARY FOLDER SCENARIO

LIBRARY is stepping.c, FOLDER an empty directory.  For each number a child does what a session process does with one
request, and is killed after so many stores; then the tables are mapped anew, the request comes again, and what the
guest was told and the host has must fit.  Prints how many stores there were.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from fusepipe import log
from fusepipe.server.dispatcher import dispatcher
from fusepipe.server.handlers import HANDLERS
from fusepipe.server.settling import in_slot, settling
from fusepipe.server.tables import create_memfd
from fusepipe.wire import Kept, Op, SlotState, decode_reply
from fusepipe.wire.messages import ROWS
from fusepipe.wire.server_session import Arrived
from tests.server.volume import ROOT, SLOTS, Volume

SLOT, SEQ = 2, 7
WHO: Final = (0, 0, 0, ())
OLD, NEW = bytes(range(32)), bytes(range(32, 64))


class World:
    """A directory, what the guest knows of it, and the request that it sends."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self.path = path
        self.memfd = create_memfd(SLOTS, inodes=1 << 10, handles=1 << 10)
        self.volume = Volume(path, memfd=self.memfd)
        self.known: dict[int, int] = {}
        """Lookups that the guest was told of."""
        self.handles: list[int] = []
        for name in ("file", "other", "gone"):
            (path / name).write_text(name)
        (path / "empty").mkdir()
        self.node = self._look(b"file")
        self.gone = self._look(b"gone")
        self._look(b"other")
        self.file = self.volume.open(self.node, os.O_RDWR)
        self.released = self.volume.open(self.gone, os.O_RDWR)
        self.listing = self.volume(Op.OPENDIR, ROOT, 0).handle
        self.handles = [self.file, self.listing]
        self.volume.tables.memory.opened(b"opening", OLD)

    def _look(self, name: bytes) -> int:
        node: int = self.volume.lookup(name).node
        self.learn(node)
        return node

    def learn(self, node: int, count: int = 1) -> None:
        self.known[node] = self.known.get(node, 0) + count

    def event(self, op: Op, *fields: Any, payload: bytes = b"") -> Arrived:
        return Arrived(SLOT, SEQ, op, ROWS[op].request(*fields), memoryview(payload), 0, 0)

    def serve(self, event: Arrived) -> None:
        """What a session process does with a request."""
        tables = self.volume.tables
        tables.slots.run(SLOT, SEQ, event.op)
        self._finish(event, *in_slot(tables, dispatcher(tables, HANDLERS, log.get_logger("server")))(event))

    def again(self, event: Arrived) -> tuple[int, Any]:
        """What the next one does when it comes again: the errno and the reply."""
        tables = self.volume.tables
        record = tables.slots.load(SLOT)
        row = ROWS[event.op]
        if record.seq == SEQ and record.state is SlotState.DONE and not row.repeatable:
            kept = tables.slots.reply(SLOT)
            assert kept is not None
            header = kept.header
        else:
            dispatch = dispatcher(tables, HANDLERS, log.get_logger("server"))
            if record.seq == SEQ and record.state is SlotState.BROKEN:
                dispatch = settling(tables, dispatch, log.get_logger("server"))
            tables.slots.run(SLOT, SEQ, event.op)
            header, payload = in_slot(tables, dispatch)(event)
            self._finish(event, header, payload)
        slot, seq, code, reply = decode_reply(event.op, bytes(header))
        assert (slot, seq) == (SLOT, SEQ)
        return code, reply

    def _finish(self, event: Arrived, header: bytes, payload: Any) -> None:
        row = ROWS[event.op]
        self.volume.tables.slots.done(SLOT, None if row.repeatable else Kept(header, payload))

    def map(self) -> None:
        """Begin as a process of its own does: what another one has mapped must not change below it."""
        self.volume = Volume(self.path, memfd=self.memfd)

    def check(self) -> None:
        """Everything that the guest has been told is there, and can be given back."""
        volume = self.volume
        for node in self.known:
            volume(Op.GETATTR, node, 0)
        assert volume.read(self.file) == b"file"
        assert {b"file", b"other"} & {entry.name for entry in volume.page(self.listing)}
        for handle in self.handles:
            volume.release(handle)
        for node, count in self.known.items():
            volume.forget(node, count)
        assert volume.count("overforgotten") == 0, "a lookup count was too low"

    def close(self) -> None:
        self.volume.close()
        os.close(self.memfd)


Scenario = Callable[[World], tuple[Arrived, Callable[[int, Any, Path], None]]]
"""The request, and what must be true with its errno and its reply."""


def lookup(world: World) -> tuple[Arrived, Callable[[int, Any, Path], None]]:
    def told(code: int, reply: Any, _path: Path) -> None:
        assert code == 0
        world.learn(reply.entry.node)

    return world.event(Op.LOOKUP, ROOT, b"empty"), told


def lookup_again(world: World) -> tuple[Arrived, Callable[[int, Any, Path], None]]:
    def told(code: int, reply: Any, _path: Path) -> None:
        assert (code, reply.entry.node) == (0, world.node)
        world.learn(world.node)

    return world.event(Op.LOOKUP, ROOT, b"file"), told


def readdir(world: World) -> tuple[Arrived, Callable[[int, Any, Path], None]]:
    def told(code: int, reply: Any, _path: Path) -> None:
        assert code == 0
        assert reply.entries == 6

    return world.event(Op.READDIR, world.listing, 0, 4096), told


def create(world: World) -> tuple[Arrived, Callable[[int, Any, Path], None]]:
    def told(code: int, reply: Any, path: Path) -> None:
        assert code in (0, errno.EIO)
        if not code:
            assert (path / "new").exists()
            world.learn(reply.entry.node)
            world.handles.append(reply.handle)

    return world.event(Op.CREATE, ROOT, b"new", os.O_RDWR, 0o644, *WHO, False), told


def mkdir(world: World) -> tuple[Arrived, Callable[[int, Any, Path], None]]:
    def told(code: int, reply: Any, path: Path) -> None:
        assert code in (0, errno.EIO)
        if not code:
            assert (path / "new").is_dir()
            world.learn(reply.entry.node)

    return world.event(Op.MKDIR, ROOT, b"new", 0o755, *WHO), told


def open_(world: World) -> tuple[Arrived, Callable[[int, Any, Path], None]]:
    def told(code: int, reply: Any, _path: Path) -> None:
        assert code == 0
        assert world.volume.read(reply.handle) == b"file"
        world.handles.append(reply.handle)

    return world.event(Op.OPEN, world.node, os.O_RDWR, False, 0, 0), told


def unlink(world: World) -> tuple[Arrived, Callable[[int, Any, Path], None]]:
    def told(code: int, _reply: Any, path: Path) -> None:
        assert code == 0
        assert not (path / "empty2").exists()

    (world.path / "empty2").touch()
    return world.event(Op.UNLINK, ROOT, b"empty2"), told


def rmdir(world: World) -> tuple[Arrived, Callable[[int, Any, Path], None]]:
    def told(code: int, _reply: Any, path: Path) -> None:
        assert code == 0
        assert not (path / "empty").exists()

    return world.event(Op.RMDIR, ROOT, b"empty"), told


def rename(world: World) -> tuple[Arrived, Callable[[int, Any, Path], None]]:
    def told(code: int, _reply: Any, path: Path) -> None:
        assert code == 0
        assert (path / "other").read_text() == "over"
        assert not (path / "over").exists()
        assert (path / "file").read_text() == "file"

    (world.path / "over").write_text("over")
    del world.known[world.volume.lookup(b"other").node]  # it loses its name, and nobody here keeps its descriptor
    return world.event(Op.RENAME, ROOT, b"over", ROOT, b"other", 0), told


def cleanup(world: World) -> tuple[Arrived, Callable[[int, Any, Path], None]]:
    def told(code: int, _reply: Any, _path: Path) -> None:
        assert code == 0
        del world.known[world.gone]
        world.known[world.node] -= 1

    world.volume.lookup(b"file")
    world.learn(world.node)
    return world.event(Op.CLEANUP, (world.gone, 1, world.node, 1), (world.released,), ()), told


SCENARIOS: Final[dict[str, Scenario]] = {
    one.__name__: one for one in (lookup, lookup_again, readdir, create, mkdir, open_, unlink, rmdir, rename, cleanup)
}


def memory_of_tables() -> tuple[int, int]:
    """Where the tables are mapped, and how long that is."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "fusepipe-tables" in line:
            first, last = (int(number, 16) for number in line.split()[0].split("-"))
            return first, last - first
    raise AssertionError("the tables are not mapped")


def killed(library: ctypes.CDLL, stop: int, world: World, work: Callable[[World], None]) -> bool:
    """Whether a child that does the work makes so many stores; it is killed after the last of them."""
    world.volume.close()
    pid = os.fork()
    if not pid:
        code = 3
        try:
            world.map()
            if not library.stepping_begin(*map(ctypes.c_size_t, memory_of_tables()), ctypes.c_long(stop)):
                work(world)
                code = 0
        finally:
            os._exit(code)
    _pid, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), f"the child ended with {code}"
    world.map()
    return code != 0


def step_through_request(library: ctypes.CDLL, folder: Path, scenario: Scenario) -> int:
    """Kill at every store of the request; how many there were."""
    stop = 0
    while True:
        stop += 1
        world = World(folder / str(stop))
        event, told = scenario(world)
        ended = not killed(library, stop, world, lambda world, event=event: world.serve(event))  # type: ignore[misc]  # the type of a bound default
        told(*world.again(event), world.path)
        world.check()
        world.close()
        if ended:
            return stop - 1


def step_through_secrets(library: ctypes.CDLL, folder: Path) -> int:
    """The secret is the old one or the new one, and the session stays open."""
    stop = 0
    while True:
        stop += 1
        world = World(folder / str(stop))
        ended = not killed(library, stop, world, lambda world: world.volume.tables.memory.confirmed(NEW))
        found = world.volume.tables.memory.remembered()
        assert found is not None
        assert found.opening == b"opening"
        assert bytes(found.secret) in ((NEW,) if ended else (OLD, NEW))
        world.close()
        if ended:
            return stop - 1


def main() -> None:
    library, folder, name = ctypes.CDLL(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    log.configure("error")
    if name == "secrets":
        print(step_through_secrets(library, folder))
    else:
        print(step_through_request(library, folder, SCENARIOS[name]))


if __name__ == "__main__":
    main()
