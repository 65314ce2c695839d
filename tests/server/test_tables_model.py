"""The inode and handle tables against a model in Python."""

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule
from hypothesis.strategies import booleans, integers, sampled_from

from fusepipe.server.tables import Tables
from fusepipe.wire import Op
from tests.server.volume import ROOT, Volume, fails

BUDGET = 16
NAMES = sampled_from([b"a", b"b", b"c", b"d"])


class TablesMachine(RuleBasedStateMachine):
    """Lookups, forgets, opens, releases, and what happens on the host, with a budget that makes eviction common.

    The model: for each node its content (every file's is unlike any other's), whether it still has a name, and the
    lookups that were counted.
    """

    nodes = Bundle("nodes")
    handles = Bundle("handles")
    stale = Bundle("stale")

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp())
        self.volume = Volume(self.path, budget=BUDGET)
        self.files: dict[bytes, bytes] = {}  # name -> content
        self.content: dict[int, bytes] = {}  # node -> content
        self.counted: dict[int, int] = {}
        self.opened: dict[int, int] = {}  # handle -> node
        self.made = 0
        self.mapped_again: set[int] = set()

    def teardown(self) -> None:
        try:
            for handle in self.opened:
                self.volume.release(handle)
            for node, count in self.counted.items():
                if count:
                    self.volume.forget(node, count)
            assert self.volume.is_empty()
            assert self.volume.count("overforgotten") == 0
        finally:
            self.volume.close()
            shutil.rmtree(self.path)

    def _known(self, node: int, content: bytes) -> int:
        assert self.content.setdefault(node, content) == content, "a node id stands for two inodes"
        self.counted[node] = self.counted.get(node, 0) + 1
        return node

    def _alive(self, node: int) -> bool:
        return self.counted[node] > 0 or node in self.opened.values()

    @rule(name=NAMES)
    def write(self, name: bytes) -> None:
        """Somebody on the host makes a new file of that name; ext4 gives it the number of the last deleted one."""
        path = self.path / os.fsdecode(name)
        path.unlink(missing_ok=True)
        self.made += 1
        self.files[name] = b"%d" % self.made
        path.write_bytes(self.files[name])

    @rule(name=NAMES)
    def unlink(self, name: bytes) -> None:
        if self.files.pop(name, None) is None:
            with fails(errno.ENOENT):
                self.volume(Op.UNLINK, ROOT, name)
        else:
            self.volume(Op.UNLINK, ROOT, name)

    @rule(name=NAMES, over=NAMES)
    def rename(self, name: bytes, over: bytes) -> None:
        if name not in self.files:
            with fails(errno.ENOENT):
                self.volume(Op.RENAME, ROOT, name, ROOT, over, 0)
        else:
            self.volume(Op.RENAME, ROOT, name, ROOT, over, 0)
            self.files[over] = self.files.pop(name)

    @rule(target=nodes, name=NAMES)
    def lookup(self, name: bytes) -> Any:
        if name not in self.files:
            with fails(errno.ENOENT):
                self.volume.lookup(name)
            return multiple()
        entry = self.volume.lookup(name)
        assert entry.attr.ino == (self.path / os.fsdecode(name)).stat().st_ino
        return self._known(entry.node, self.files[name])

    @rule(target=nodes)
    def readdir(self) -> Any:
        handle = self.volume(Op.OPENDIR, ROOT, 0).handle
        entries = [entry for entry in self.volume.page(handle) if entry.node]
        self.volume.release(handle)
        assert {entry.name for entry in entries} == set(self.files)
        return multiple(*(self._known(entry.node, self.files[entry.name]) for entry in entries))

    @rule(node=nodes, share=booleans())
    def forget(self, node: int, share: bool) -> None:
        count = self.counted[node]
        if share:
            count = min(count, 1)
        if count:
            self.volume.forget(node, count)
            self.counted[node] -= count

    @rule(target=handles, node=nodes)
    def open(self, node: int) -> Any:
        if len(self.opened) >= BUDGET // 2:
            return multiple()
        if not self._alive(node):
            with fails(errno.ESTALE):
                self.volume.open(node, os.O_RDONLY)
            return multiple()
        try:
            handle = self.volume.open(node, os.O_RDONLY)
        except OSError as error:
            # A file that the host unlinked while it was held by handle is gone.
            assert error.errno == errno.ESTALE
            assert self.content[node] not in self.files.values()
            return multiple()
        assert handle not in self.opened
        self.opened[handle] = node
        return handle

    @rule(target=stale, handle=consumes(handles))
    def release(self, handle: int) -> int:
        if handle in self.opened:
            self.volume.release(handle)
            del self.opened[handle]
        return handle

    @rule(handle=handles)
    def read(self, handle: int) -> None:
        if handle not in self.opened:
            return
        content = self.content[self.opened[handle]]
        try:
            assert self.volume.read(handle) == content
        except OSError as error:
            # Nothing but the file handle was left of it, and then the host unlinked it.
            assert error.errno == errno.ESTALE
            assert handle in self.mapped_again
            assert content not in self.files.values()

    @rule(handle=stale)
    def read_stale(self, handle: int) -> None:
        with fails(errno.EBADF):
            self.volume.read(handle)

    @rule(node=nodes)
    def getattr(self, node: int) -> None:
        if not self._alive(node):
            with fails(errno.ESTALE):
                self.volume(Op.GETATTR, node, 0)
            return
        try:
            attr = self.volume(Op.GETATTR, node, 0).attr
        except OSError as error:
            assert error.errno == errno.ESTALE
            assert self.content[node] not in self.files.values()
            return
        assert attr.size == len(self.content[node])

    @rule(count=integers(1, 30))
    def crowd(self, count: int) -> None:
        """Others use the budget up."""
        for number in range(count):
            path = self.path / f"crowd{number}"
            path.touch()
        for node in [self.volume.lookup(b"crowd%d" % number).node for number in range(count)]:
            self.volume.forget(node)
        for number in range(count):
            (self.path / f"crowd{number}").unlink()

    @rule()
    def map_again(self) -> None:
        """The process dies and another one maps the memfd: whatever has a name is still there."""
        self.volume.tables.close()
        self.volume.tables = Tables(
            self.volume.memfd, os.fspath(self.path), fd_budget=BUDGET, privileged=os.geteuid() == 0
        )
        self.volume.on_close(self.volume.tables.close)
        # Descriptors of inodes without a name went with the process.
        for handle, node in list(self.opened.items()):
            if self.content[node] not in self.files.values():
                with fails(errno.ESTALE):
                    self.volume.read(handle)
                self.volume.release(handle)
                del self.opened[handle]
        self.mapped_again |= set(self.opened)

    @invariant()
    def counts(self) -> None:
        now = self.volume.tables.statistics()
        assert now["lookups"] == sum(self.counted.values()) + 1
        assert now["inodes"] == sum(map(self._alive, self.content)) + 1
        assert now["handles"] == len(self.opened)
        assert now["fds"] <= BUDGET


TablesMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)


TestTables = TablesMachine.TestCase
