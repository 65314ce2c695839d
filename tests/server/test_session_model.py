"""A session, through its sockets, against a filesystem in memory: no wrong answer, no wrong count, no row that stays.

For an hour of it: `pytest tests/server/test_session_model.py --hypothesis-profile long --timeout 0`.
"""

import errno
import os
import shutil
import stat
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import settings
from hypothesis.errors import StopTest
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule
from hypothesis.strategies import binary, booleans, integers, lists, sampled_from

from fusepipe.wire import Attr, Entry, read_page
from fusepipe.wire import messages as m
from tests.server.model import ATIME, EXCHANGE, GID, MODE, MTIME, NOREPLACE, SIZE, UID, Inode, Model
from tests.server.served import serving
from tests.server.sessions import Client
from tests.server.volume import needs_root

ROOT = 1
NAMES = sampled_from([b"a", b"b", b"c", b"\xff name"])
XATTRS = sampled_from([b"user.x", b"user.y"])
MODES = integers(0, 0o777)
SIZES = integers(0, 20_000)
OPENS = sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_APPEND, os.O_RDWR | os.O_TRUNC])
IDS = sampled_from([0, 1000, 65534])
SECONDS = integers(-(1 << 31) + 1, 1 << 33)


class SessionMachine(RuleBasedStateMachine):
    """Requests of one client, one after the other.

    `nodes` and `handles` are the numbers that the server gave; those that were given back since must be refused.
    """

    nodes = Bundle("nodes")
    handles = Bundle("handles")
    folders = Bundle("folders")
    """Handles of directories."""

    native: ClassVar[bool]

    def __init__(self) -> None:
        super().__init__()
        self.ends = ExitStack()
        self.path = Path(tempfile.mkdtemp())
        self.ends.callback(shutil.rmtree, self.path)
        self.path.chmod(0o755)
        self.served = self.ends.enter_context(serving(self.path, native=self.native))
        self.client = self.ends.enter_context(Client(self.served.connect()))
        st = self.path.stat()
        self.model = Model(Inode(stat.S_IFDIR, 0o755, st.st_uid, st.st_gid, ino=st.st_ino))
        self.known: dict[int, Inode] = {ROOT: self.model.root}
        """Every node that was ever given."""
        self.counted: dict[int, int] = {ROOT: 1}
        """Lookups, by node; the root's is the session's own."""
        self.opened: dict[int, tuple[int, int]] = {}
        """Handle -> node and flags."""

    def teardown(self) -> None:
        with self.ends:
            # After any other exception the model does not know what was done last, and would hide what went wrong.
            if sys.exc_info()[0] in (None, StopTest):
                self._give_back()

    def _give_back(self) -> None:
        self._compare()
        forgets = [n for node, count in self.counted.items() if count and node != ROOT for n in (node, count)]
        assert self._call(m.CleanupRequest(tuple(forgets), tuple(self.opened), ()))[0] == 0
        now = self.served.tables.statistics()
        assert (now["inodes"], now["lookups"], now["handles"], now["fds"]) == (1, 1, 0, 1), now
        assert now["overforgotten"] == 0
        assert self.served.wire.in_flight == 0
        self.client.bye()

    # ---- asking

    def _call(self, request: Any, payload: bytes = b"") -> tuple[int, Any, bytes]:
        answer: tuple[int, Any, bytes] = self.client.call(request, payload)
        return answer

    def _done(self, errors: set[int], request: Any, payload: bytes = b"") -> Any:
        """The reply, or None where one of these errors came, as it had to."""
        number, reply, data = self._call(request, payload)
        names = {errno.errorcode[error] for error in errors}
        if errors:
            assert number in errors, f"{errno.errorcode.get(number, number)} instead of {names}: {request}"
            return None
        assert number == 0, f"{errno.errorcode.get(number, number)}: {request}"
        return reply, data

    def _alive(self, node: int) -> bool:
        return self.counted[node] > 0 or any(node == held for held, _ in self.opened.values())

    def _stale(self, *nodes: int) -> set[int]:
        return set() if all(map(self._alive, nodes)) else {errno.ESTALE}

    def _entry(self, entry: Entry, inode: Inode) -> int:
        """The node of an entry that counts a lookup."""
        if entry.node in self.known:
            assert self.known[entry.node] is inode, "a node stands for two inodes"
        else:
            assert not any(self.known[node] is inode and self._alive(node) for node in self.known), "a second node"
            self.known[entry.node] = inode
        self.counted[entry.node] = self.counted.get(entry.node, 0) + 1
        self._attributes(entry.attr, inode)
        return entry.node

    def _attributes(self, attr: Attr, inode: Inode) -> None:
        assert attr.mode == inode.kind | inode.mode
        assert (attr.uid, attr.gid) == (inode.uid, inode.gid)
        if not inode.is_directory:
            assert (attr.nlink, attr.size) == (inode.names, len(inode.data))
        for bit, now in ((ATIME, (attr.atime, attr.atime_ns)), (MTIME, (attr.mtime, attr.mtime_ns))):
            assert inode.times.get(bit, now) == now
        if inode.ino is None:
            inode.ino = attr.ino
        assert attr.ino == inode.ino

    def _writes(self, handle: int) -> bool:
        return self.opened[handle][1] & os.O_ACCMODE != os.O_RDONLY

    # ---- rules: names

    @initialize(target=nodes)
    def root(self) -> int:
        return ROOT

    @rule(target=nodes, parent=nodes, name=NAMES)
    def lookup(self, parent: int, name: bytes) -> Any:
        at = self.known[parent]
        errors = self._stale(parent) or self.model.may_find(at, name)
        if done := self._done(errors, m.LookupRequest(parent, name)):
            return self._entry(done[0].entry, at.entries[name])
        return multiple()

    @rule(target=nodes, parent=nodes, name=NAMES, mode=MODES, umask=MODES, uid=IDS, gid=IDS)
    def mkdir(self, parent: int, name: bytes, mode: int, umask: int, uid: int, gid: int) -> Any:
        errors = self._stale(parent) or self.model.may_add(self.known[parent], name)
        # As the caller, who must be allowed to: permission is the guest's kernel's affair, so only root makes.
        if done := self._done(errors, m.MkdirRequest(parent, name, mode, umask, 0, gid, ())):
            made = Inode(stat.S_IFDIR, mode & ~umask, 0, gid)
            return self._entry(done[0].entry, self.model.add(self.known[parent], name, made))
        return multiple()

    @rule(target=nodes, parent=nodes, name=NAMES, goal=binary(min_size=1, max_size=40))
    def symlink(self, parent: int, name: bytes, goal: bytes) -> Any:
        goal = goal.replace(b"\0", b"/")
        errors = self._stale(parent) or self.model.may_add(self.known[parent], name)
        if done := self._done(errors, m.SymlinkRequest(parent, name, goal, 0, 0, ())):
            made = Inode(stat.S_IFLNK, 0o777, 0, 0, bytearray(goal))
            return self._entry(done[0].entry, self.model.add(self.known[parent], name, made))
        return multiple()

    @rule(node=nodes)
    def readlink(self, node: int) -> None:
        inode = self.known[node]
        errors = self._stale(node) or (set() if inode.kind == stat.S_IFLNK else {errno.EINVAL})
        if done := self._done(errors, m.ReadlinkRequest(node)):
            assert done[0].target == bytes(inode.data)
            inode.times.pop(ATIME, None)

    @rule(target=nodes, node=nodes, parent=nodes, name=NAMES)
    def link(self, node: int, parent: int, name: bytes) -> Any:
        inode, at = self.known[node], self.known[parent]
        errors = self._stale(node, parent) or self.model.may_link(inode, at, name)
        if done := self._done(errors, m.LinkRequest(node, parent, name)):
            self.model.add(at, name, inode)
            return self._entry(done[0].entry, inode)
        return multiple()

    @rule(parent=nodes, name=NAMES)
    def unlink(self, parent: int, name: bytes) -> None:
        errors = self._stale(parent) or self.model.may_unlink(self.known[parent], name)
        if self._done(errors, m.UnlinkRequest(parent, name)):
            self.model.remove(self.known[parent], name)

    @rule(parent=nodes, name=NAMES)
    def rmdir(self, parent: int, name: bytes) -> None:
        errors = self._stale(parent) or self.model.may_rmdir(self.known[parent], name)
        if self._done(errors, m.RmdirRequest(parent, name)):
            self.model.remove(self.known[parent], name)

    @rule(parent=nodes, name=NAMES, to=nodes, new=NAMES, flags=sampled_from([0, 0, NOREPLACE, EXCHANGE]))
    def rename(self, parent: int, name: bytes, to: int, new: bytes, flags: int) -> None:
        at, there = self.known[parent], self.known[to]
        errors = self._stale(parent, to) or self.model.may_rename(at, name, there, new, flags)
        if self._done(errors, m.RenameRequest(parent, name, to, new, flags)):
            self.model.rename(at, name, there, new, flags)

    # ---- rules: attributes

    @rule(node=nodes, handle=handles, by_handle=booleans())
    def getattr(self, node: int, handle: int, by_handle: bool) -> None:
        if not by_handle:
            handle = 0
        errors = self._stale(node)
        if handle and not errors and (handle not in self.opened or self.opened[handle][0] != node):
            # also where the inode is a directory, and this no handle of one
            errors = {errno.EBADF, errno.ENOTDIR, errno.EISDIR}
        if done := self._done(errors, m.GetattrRequest(node, handle)):
            self._attributes(done[0].attr, self.known[node])

    @rule(
        node=nodes, mode=MODES, uid=IDS, gid=IDS, size=SIZES, seconds=SECONDS, ns=integers(0, 999_999_999),
        valid=integers(0, 63),
    )  # fmt: skip
    def setattr(self, node: int, mode: int, uid: int, gid: int, size: int, seconds: int, ns: int, valid: int) -> None:
        inode = self.known[node]
        if inode.kind != stat.S_IFREG:
            valid &= ~SIZE
        if inode.kind == stat.S_IFLNK:
            valid &= ~MODE  # Linux has no modes of symlinks
        request = m.SetattrRequest(node, 0, valid, mode, uid, gid, size, seconds, ns, seconds, ns)
        if done := self._done(self._stale(node), request):
            if valid & SIZE:
                self.model.truncate(inode, size)
            inode.mode = mode if valid & MODE else inode.mode
            inode.uid = uid if valid & UID else inode.uid
            inode.gid = gid if valid & GID else inode.gid
            for bit in (ATIME, MTIME):
                if valid & bit:
                    inode.times[bit] = (seconds, ns)
            self._attributes(done[0].attr, inode)

    @rule(node=nodes, name=XATTRS, value=binary(max_size=300), flags=integers(0, 2))
    def setxattr(self, node: int, name: bytes, value: bytes, flags: int) -> None:
        inode = self.known[node]
        errors = self._stale(node) or self.model.may_setxattr(inode, name, flags)
        if self._done(errors, m.SetxattrRequest(node, name, value, flags)):
            inode.xattrs[name] = value

    @rule(node=nodes, name=XATTRS)
    def getxattr(self, node: int, name: bytes) -> None:
        inode = self.known[node]
        errors = self._stale(node) or (set() if name in inode.xattrs else {errno.ENODATA, errno.EPERM})
        if done := self._done(errors, m.GetxattrRequest(node, name)):
            assert done[0].value == inode.xattrs[name]

    @rule(node=nodes)
    def listxattr(self, node: int) -> None:
        if done := self._done(self._stale(node), m.ListxattrRequest(node)):
            found = {name for name in done[0].names if name.startswith(b"user.")}
            assert found == set(self.known[node].xattrs)

    @rule(node=nodes, name=XATTRS)
    def removexattr(self, node: int, name: bytes) -> None:
        inode = self.known[node]
        errors = self._stale(node) or (set() if name in inode.xattrs else {errno.ENODATA, errno.EPERM})
        if self._done(errors, m.RemovexattrRequest(node, name)):
            del inode.xattrs[name]

    # ---- rules: files

    def _open(self, node: int, handle: int, flags: int) -> int:
        assert handle not in self.opened
        self.opened[handle] = (node, flags)
        inode = self.known[node]
        if flags & os.O_TRUNC and flags & os.O_ACCMODE != os.O_RDONLY:
            self.model.truncate(inode, 0)
        return handle

    @rule(target=handles, node=nodes, flags=OPENS)
    def open(self, node: int, flags: int) -> Any:
        errors = self._stale(node) or self.model.may_open(self.known[node])
        if done := self._done(errors, m.OpenRequest(node, flags, False, 0, 0)):
            return self._open(node, done[0].handle, flags)
        return multiple()

    @rule(target=handles, parent=nodes, name=NAMES, flags=OPENS, exclusive=booleans(), mode=MODES, umask=MODES)
    def create(self, parent: int, name: bytes, flags: int, exclusive: bool, mode: int, umask: int) -> Any:
        at = self.known[parent]
        flags |= os.O_CREAT | (os.O_EXCL if exclusive else 0)
        errors = self._stale(parent) or self.model.may_create(at, name, flags)
        if done := self._done(errors, m.CreateRequest(parent, name, flags, mode, umask, 0, 0, (), False)):
            reply = done[0]
            inode = at.entries.get(name)
            if inode is None:
                inode = self.model.add(at, name, Inode(stat.S_IFREG, mode & ~umask, 0, 0))
            elif flags & os.O_TRUNC:
                self.model.truncate(inode, 0)
            return self._open(self._entry(reply.entry, inode), reply.handle, flags)
        return multiple()

    @rule(target=nodes, handle=handles)
    def node_of(self, handle: int) -> Any:
        """What CREATE gave beside the handle is a node like any other."""
        return self.opened[handle][0] if handle in self.opened else multiple()

    @rule(handle=handles, offset=SIZES, data=binary(max_size=5000), times=integers(1, 4))
    def write(self, handle: int, offset: int, data: bytes, times: int) -> None:
        data *= times
        usable = handle in self.opened and self._writes(handle)
        if done := self._done(set() if usable else {errno.EBADF}, m.WriteRequest(handle, offset, 0), data):
            assert done[0].size == len(data)
            node, flags = self.opened[handle]
            inode = self.known[node]
            self.model.write(inode, len(inode.data) if flags & os.O_APPEND else offset, data)

    @rule(handle=handles, offset=SIZES, size=integers(1, 20_000))
    def read(self, handle: int, offset: int, size: int) -> None:
        usable = handle in self.opened and self.opened[handle][1] & os.O_ACCMODE != os.O_WRONLY
        if done := self._done(set() if usable else {errno.EBADF}, m.ReadRequest(handle, offset, size)):
            inode = self.known[self.opened[handle][0]]
            assert done[1] == inode.data[offset : offset + size]
            inode.times.pop(ATIME, None)

    @rule(handle=handles, size=SIZES)
    def truncate(self, handle: int, size: int) -> None:
        """Also by a handle for reading: whether a program may is the guest's kernel's affair."""
        if handle in self.opened:
            node, _ = self.opened[handle]
            assert self._done(set(), m.SetattrRequest(node, handle, SIZE, 0, 0, 0, size, 0, 0, 0, 0))
            self.model.truncate(self.known[node], size)

    @rule(handle=handles, datasync=booleans())
    def flush_and_fsync(self, handle: int, datasync: bool) -> None:
        errors = set() if handle in self.opened else {errno.EBADF}
        self._done(errors, m.FlushRequest(handle, 0))
        self._done(errors, m.FsyncRequest(handle, datasync))

    # ---- rules: directories

    @rule(target=folders, node=nodes)
    def opendir(self, node: int) -> Any:
        errors = self._stale(node) or (set() if self.known[node].is_directory else {errno.ENOTDIR})
        if done := self._done(errors, m.OpendirRequest(node, 0)):
            handle: int = done[0].handle
            assert handle not in self.opened
            self.opened[handle] = (node, os.O_DIRECTORY)
            return handle
        return multiple()

    @rule(target=nodes, handle=folders, size=integers(600, 5000))
    def readdir(self, handle: int, size: int) -> Any:
        if handle not in self.opened:
            self._done({errno.EBADF}, m.ReaddirRequest(handle, 0, size))
            return multiple()
        inode = self.known[self.opened[handle][0]]
        inode.times.pop(ATIME, None)
        found: dict[bytes, int] = {}
        dots = set()
        offset = 0
        while True:
            if not inode.names:  # Linux lists nothing in a directory that was removed, or says that it is gone
                number, _, page = self._call(m.ReaddirRequest(handle, offset, size))
                assert number in (0, errno.ENOENT)
                assert not [entry for entry in read_page(page) if entry.name not in (b".", b"..")]
                return multiple()
            done = self._done(set(), m.ReaddirRequest(handle, offset, size))
            entries = list(read_page(done[1]))
            assert len(entries) == done[0].entries
            if not entries:
                break
            for entry in entries:
                offset = entry.offset
                if entry.name in (b".", b".."):
                    dots.add(entry.name)
                    assert entry.node == 0
                    continue
                assert entry.name not in found, "a name comes twice"
                assert entry.attr is not None
                named = inode.entries[entry.name]
                assert entry.type == named.kind >> 12
                found[entry.name] = self._entry(Entry(entry.node, entry.attr), named)
        assert found.keys() == inode.entries.keys()
        assert dots == {b".", b".."}
        return multiple(*found.values())

    # ---- rules: the end of things

    @rule(given=lists(nodes, max_size=3, unique=True), closed=lists(handles | folders, max_size=3, unique=True),
          share=booleans())  # fmt: skip
    def cleanup(self, given: list[int], closed: list[int], share: bool) -> None:
        forgets: list[int] = []
        for node in given:
            count = self.counted[node] if not share else min(self.counted[node], 1)
            if count and node != ROOT:
                self.counted[node] -= count
                forgets += [node, count]
        handles = [handle for handle in closed if handle in self.opened]
        self._done(set(), m.CleanupRequest(tuple(forgets), tuple(handles), ()))
        for handle in handles:
            del self.opened[handle]

    @rule()
    def resume(self) -> None:
        """The connection is lost, and the session goes on by another one."""
        self.client.come_back(self.served.connect())

    # ---- what always holds

    @invariant()
    def counts(self) -> None:
        now = self.served.tables.statistics()
        assert now["lookups"] == sum(self.counted.values())
        assert now["inodes"] == sum(map(self._alive, self.known))
        assert now["handles"] == len(self.opened)

    def _compare(self) -> None:
        """The host has what the model has."""
        found = {}
        top = os.fsencode(self.path)
        for folder, folders, files in os.walk(top):
            for name in folders + files:
                path = os.path.join(folder, name)
                found[os.path.relpath(path, top)] = path
        expected = dict(self.model.walk())
        assert found.keys() == expected.keys()
        for relative, path in found.items():
            inode, st = expected[relative], os.lstat(path)
            assert (st.st_mode, st.st_uid, st.st_gid) == (inode.kind | inode.mode, inode.uid, inode.gid)
            if inode.kind == stat.S_IFREG:
                assert Path(os.fsdecode(path)).read_bytes() == inode.data
            elif inode.kind == stat.S_IFLNK:
                assert os.readlink(path) == inode.data


class Natively(SessionMachine):
    """Hot requests in C."""

    native = True


class InPython(SessionMachine):
    """Every request by Python's handlers."""

    native = False


for machine in (Natively, InPython):
    machine.TestCase.settings = settings(max_examples=settings().max_examples // 3)  # of the profile's

TestNatively = needs_root(Natively.TestCase)
TestInPython = needs_root(InPython.TestCase)
