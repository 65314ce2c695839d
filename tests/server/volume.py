"""A directory with tables and handlers over it, and no mount: what the tests of tables and handlers work with."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from fusepipe.server.handlers import HANDLERS
from fusepipe.server.policy import Policy
from fusepipe.server.tables import Tables, create_memfd
from fusepipe.wire import DirectoryEntry, Entry, Op, read_page
from fusepipe.wire.messages import ROWS, ReadRequest

ROOT = 1
SLOTS = 8
PAGE = 4096

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="acts as other users, which needs root")


class Volume:
    """Handlers over a directory: `volume(Op.LOOKUP, ROOT, b"name")` gives the reply and sets `payload`."""

    def __init__(
        self,
        path: Path,
        *,
        budget: int = 1000,
        privileged: bool | None = None,
        read_only: bool = False,
        policy: Policy | None = None,
        memfd: int | None = None,
        inodes: int = 1 << 20,
    ) -> None:
        self.path = path
        with ExitStack() as undo:
            if memfd is None:
                memfd = create_memfd(SLOTS, inodes=inodes, handles=1 << 16)
                undo.callback(os.close, memfd)
            self.memfd = memfd
            self.tables = undo.enter_context(
                Tables(
                    memfd,
                    os.fspath(path),
                    fd_budget=budget,
                    privileged=os.geteuid() == 0 if privileged is None else privileged,
                    read_only=read_only,
                    policy=policy,
                )
            )
            self._undo = undo.pop_all()
        self.payload: Any = b""

    def on_close(self, callback: Callable[[], None]) -> None:
        self._undo.callback(callback)

    def close(self) -> None:
        self._undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, op: Op, *fields: Any, payload: bytes = b"") -> Any:
        reply, self.payload = HANDLERS[op](self.tables, ROWS[op].request(*fields), payload)
        assert type(reply) is ROWS[op].reply
        return reply

    # ---- what tests say often

    def lookup(self, name: bytes, parent: int = ROOT) -> Entry:
        entry: Entry = self(Op.LOOKUP, parent, name).entry
        return entry

    def mkdir(self, name: bytes, parent: int = ROOT, mode: int = 0o755) -> Entry:
        entry: Entry = self(Op.MKDIR, parent, name, mode, 0, *me()).entry
        return entry

    def create(
        self, name: bytes, parent: int = ROOT, *, flags: int = os.O_RDWR, mode: int = 0o644
    ) -> tuple[Entry, int]:
        reply = self(Op.CREATE, parent, name, flags, mode, 0, *me(), False)
        return reply.entry, reply.handle

    def open(self, node: int, flags: int = os.O_RDWR) -> int:
        handle: int = self(Op.OPEN, node, flags, False, 0, 0).handle
        return handle

    def write(self, handle: int, data: bytes, offset: int = 0, flags: int = 0) -> int:
        size: int = self(Op.WRITE, handle, offset, flags, payload=data).size
        return size

    def read(self, handle: int, size: int = 1 << 16, offset: int = 0) -> bytes:
        # not by way of `payload`, which other threads use too
        return bytes(HANDLERS[Op.READ](self.tables, ReadRequest(handle, offset, size), b"")[1])

    def setattr(self, node: int, valid: int, handle: int = 0, **fields: int) -> Any:
        names = [field.name for field in ROWS[Op.SETATTR].request_fields]
        values = {"node": node, "handle": handle, "valid": valid, **fields}
        return self(Op.SETATTR, *(values.get(name, 0) for name in names)).attr

    def forget(self, node: int, count: int = 1) -> None:
        self(Op.CLEANUP, (node, count), (), ())

    def release(self, handle: int, *, taken: bool = True) -> None:
        self(Op.CLEANUP, (), *(((handle,), ()) if taken else ((), (handle,))))

    def page(self, handle: int, offset: int = 0, size: int = PAGE) -> list[DirectoryEntry]:
        reply = self(Op.READDIR, handle, offset, size)
        entries = list(read_page(self.payload))
        assert len(entries) == reply.entries
        return entries

    def pages(self, handle: int, size: int = PAGE) -> Iterator[list[DirectoryEntry]]:
        offset = 0
        while entries := self.page(handle, offset, size):
            yield entries
            offset = entries[-1].offset

    def forget_entries(self, entries: list[DirectoryEntry]) -> None:
        """What the kernel does in the end with entries of directory pages."""
        self(Op.CLEANUP, tuple(number for entry in entries if entry.node for number in (entry.node, 1)), (), ())

    def count(self, name: str) -> int:
        return self.tables.statistics()[name]

    def is_empty(self) -> bool:
        """Nothing is counted, nothing is open: only the root is left."""
        now = self.tables.statistics()
        return (now["inodes"], now["lookups"] - root_lookups(now), now["handles"], now["fds"]) == (1, 0, 0, 1)


def root_lookups(statistics: dict[str, int]) -> int:
    """The root's row begins with one lookup that the client never made."""
    return min(1, statistics["lookups"])


def me() -> tuple[int, int, tuple[int, ...]]:
    """The identity fields of a request that the test's own user makes."""
    return os.geteuid(), os.getegid(), ()


@contextmanager
def fails(number: int) -> Iterator[None]:
    """The block raises OSError with this errno."""
    with pytest.raises(OSError) as caught:
        yield
    assert caught.value.errno == number, errno.errorcode.get(caught.value.errno or 0)


def in_thread(function: Callable[[], None]) -> None:
    """Runs a function in a thread of its own and raises what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    if raised:
        raise raised[0]
