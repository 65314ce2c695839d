"""A volume in memory, for tests of the client: what a server would do with a host directory, without one."""

import errno
import os
import stat
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import trio

from fusepipe.device import Ioctl
from fusepipe.wire import Attr, DirectoryEntry, Entry, pack_entry
from fusepipe.wire import messages as m
from fusepipe.wire.directory import counted_size

BLOCK = 4096
PUNCH_HOLE = 3  # with KEEP_SIZE, as it always is
FIRST_INO = 1 << 40  # so that nobody takes an inode number for a node id


@dataclass
class File:
    """A file or directory; symlinks keep their target in `data`."""

    ino: int
    mode: int
    uid: int
    gid: int
    data: bytearray = field(default_factory=bytearray)
    names: dict[bytes, "File"] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    nlink: int = 1
    time_ns: int = field(default_factory=time.time_ns)


def fail(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class MemoryVolume:
    """Handles requests.  A method per message, named as the message; requests of a kind in `hold` wait."""

    def __init__(self) -> None:
        self.inos = FIRST_INO
        self.next_node = 1
        self.next_handle = 1000
        self.nodes: dict[int, File] = {}
        self.counts: dict[int, int] = {}
        self.handles: dict[int, File] = {}
        self.released: list[int] = []
        self.opened_flags = 0
        self.hold: dict[str, trio.Event] = {}
        self.held: Counter[str] = Counter()
        self.root = self.make(stat.S_IFDIR | 0o755, 0, 0)
        self.entry(self.root)

    async def __call__(self, request: Any, payload: memoryview) -> tuple[Any, bytes]:
        name = type(request).__name__.removesuffix("Request").lower()
        if name in self.hold:
            self.held[name] += 1
            await self.hold[name].wait()
        if name == "write":
            return self.write(request, bytes(payload)), b""
        if name in ("read", "readdir"):
            reply, data = getattr(self, name)(request)
            return reply, data
        return getattr(self, name)(request), b""

    # ---- helpers ----

    def make(self, mode: int, uid: int, gid: int) -> File:
        self.inos += 1
        return File(self.inos, mode, uid, gid)

    def add(self, name: str, data: bytes = b"", mode: int = stat.S_IFREG | 0o644) -> File:
        made = self.make(mode, 0, 0)
        made.data[:] = data
        self.root.names[name.encode()] = made
        return made

    def attr(self, file: File) -> Attr:
        seconds, ns = divmod(file.time_ns, 10**9)
        return Attr(
            file.ino, file.mode, file.nlink, file.uid, file.gid, 0, len(file.data), 4096, (len(file.data) + 511) // 512,
            seconds, ns, seconds, ns, seconds, ns,
        )  # fmt: skip

    def entry(self, file: File) -> Entry:
        node = next((n for n, known in self.nodes.items() if known is file), None)
        if node is None:
            node, self.next_node = self.next_node, self.next_node + 1
            self.nodes[node] = file
        self.counts[node] = self.counts.get(node, 0) + 1
        return Entry(node, self.attr(file))

    def handle(self, file: File) -> int:
        self.next_handle += 1
        self.handles[self.next_handle] = file
        return self.next_handle

    def child(self, parent: int, name: bytes) -> File:
        try:
            return self.nodes[parent].names[name]
        except KeyError:
            raise fail(errno.ENOENT) from None

    def new(self, request: Any, mode: int) -> File:
        names = self.nodes[request.parent].names
        if request.name in names:
            raise fail(errno.EEXIST)
        made = names[request.name] = self.make(mode, request.uid, request.gid)
        return made

    # ---- names ----

    def lookup(self, r: m.LookupRequest) -> m.LookupReply:
        return m.LookupReply(self.entry(self.child(r.parent, r.name)))

    def readlink(self, r: m.ReadlinkRequest) -> m.ReadlinkReply:
        return m.ReadlinkReply(bytes(self.nodes[r.node].data))

    def mknod(self, r: m.MknodRequest) -> m.MknodReply:
        return m.MknodReply(self.entry(self.new(r, r.mode & ~r.umask)))

    def mkdir(self, r: m.MkdirRequest) -> m.MkdirReply:
        return m.MkdirReply(self.entry(self.new(r, stat.S_IFDIR | (r.mode & ~r.umask))))

    def symlink(self, r: m.SymlinkRequest) -> m.SymlinkReply:
        made = self.new(r, stat.S_IFLNK | 0o777)
        made.data[:] = r.target
        return m.SymlinkReply(self.entry(made))

    def link(self, r: m.LinkRequest) -> m.LinkReply:
        file = self.nodes[r.node]
        file.nlink += 1
        self.nodes[r.new_parent].names[r.new_name] = file
        return m.LinkReply(self.entry(file))

    def unlink(self, r: m.UnlinkRequest) -> m.UnlinkReply:
        self.child(r.parent, r.name).nlink -= 1
        del self.nodes[r.parent].names[r.name]
        return m.UnlinkReply()

    def rmdir(self, r: m.RmdirRequest) -> m.RmdirReply:
        if self.child(r.parent, r.name).names:
            raise fail(errno.ENOTEMPTY)
        del self.nodes[r.parent].names[r.name]
        return m.RmdirReply()

    def rename(self, r: m.RenameRequest) -> m.RenameReply:
        file = self.child(r.parent, r.name)
        del self.nodes[r.parent].names[r.name]
        self.nodes[r.new_parent].names[r.new_name] = file
        return m.RenameReply()

    # ---- attributes ----

    def getattr(self, r: m.GetattrRequest) -> m.GetattrReply:
        return m.GetattrReply(self.attr(self.nodes[r.node]))

    def setattr(self, r: m.SetattrRequest) -> m.SetattrReply:
        file = self.nodes[r.node]
        if r.valid & 1:
            file.mode = r.mode
        if r.valid & 2:
            file.uid = r.uid
        if r.valid & 4:
            file.gid = r.gid
        if r.valid & 8:
            file.data[:] = file.data[: r.size].ljust(r.size, b"\0")
        return m.SetattrReply(self.attr(file))

    def access(self, r: m.AccessRequest) -> m.AccessReply:
        return m.AccessReply()

    def statfs(self, r: m.StatfsRequest) -> m.StatfsReply:
        return m.StatfsReply(4096, 4096, 1000, 500, 400, 300, 200, 255)

    def getxattr(self, r: m.GetxattrRequest) -> m.GetxattrReply:
        if r.name.startswith(b"system."):
            raise fail(errno.EOPNOTSUPP)
        if r.name not in self.nodes[r.node].xattrs:
            raise fail(errno.ENODATA)
        return m.GetxattrReply(self.nodes[r.node].xattrs[r.name])

    def setxattr(self, r: m.SetxattrRequest) -> m.SetxattrReply:
        xattrs = self.nodes[r.node].xattrs
        if r.flags & os.XATTR_CREATE and r.name in xattrs:
            raise fail(errno.EEXIST)
        if r.flags & os.XATTR_REPLACE and r.name not in xattrs:
            raise fail(errno.ENODATA)
        xattrs[r.name] = r.value
        return m.SetxattrReply()

    def listxattr(self, r: m.ListxattrRequest) -> m.ListxattrReply:
        return m.ListxattrReply(tuple(self.nodes[r.node].xattrs))

    def removexattr(self, r: m.RemovexattrRequest) -> m.RemovexattrReply:
        del self.nodes[r.node].xattrs[r.name]
        return m.RemovexattrReply()

    # ---- files ----

    def open(self, r: m.OpenRequest) -> m.OpenReply:
        if r.flags & os.O_TRUNC:
            self.nodes[r.node].data.clear()
        return m.OpenReply(self.handle(self.nodes[r.node]), self.opened_flags)

    def create(self, r: m.CreateRequest) -> m.CreateReply:
        made = self.new(r, stat.S_IFREG | (r.mode & 0o7777 & ~r.umask))
        return m.CreateReply(self.entry(made), self.handle(made), self.opened_flags)

    def read(self, r: m.ReadRequest) -> tuple[m.ReadReply, bytes]:
        return m.ReadReply(), bytes(self.handles[r.handle].data[r.offset : r.offset + r.size])

    def write(self, r: m.WriteRequest, data: bytes) -> m.WriteReply:
        file = self.handles[r.handle]
        file.data[:] = file.data.ljust(r.offset, b"\0")
        file.data[r.offset : r.offset + len(data)] = data
        return m.WriteReply(len(data))

    def flush(self, r: m.FlushRequest) -> m.FlushReply:
        return m.FlushReply()

    def fsync(self, r: m.FsyncRequest) -> m.FsyncReply:
        return m.FsyncReply()

    def fallocate(self, r: m.FallocateRequest) -> m.FallocateReply:
        """Allocating and punching holes."""
        data, end = self.handles[r.handle].data, r.offset + r.length
        if r.mode not in (0, PUNCH_HOLE):
            raise fail(errno.EOPNOTSUPP)
        if r.mode == PUNCH_HOLE:
            data[r.offset : end] = bytes(len(data[r.offset : end]))
        else:
            data[:] = data.ljust(end, b"\0")
        return m.FallocateReply()

    def copyfilerange(self, r: m.CopyFileRangeRequest) -> m.CopyFileRangeReply:
        copied = bytes(self.handles[r.handle].data[r.offset : r.offset + r.length])
        target = self.handles[r.to_handle].data
        target[:] = target.ljust(r.to_offset, b"\0")
        target[r.to_offset : r.to_offset + len(copied)] = copied
        return m.CopyFileRangeReply(len(copied))

    def ioctl(self, r: m.IoctlRequest) -> m.IoctlReply:
        """Inode flags, kept as an attribute; of projects nothing is set."""
        xattrs = self.handles[r.handle].xattrs
        if r.command == Ioctl.FSGETXATTR:
            return m.IoctlReply(bytes(28))
        if r.command == Ioctl.GETFLAGS:
            return m.IoctlReply(xattrs.get(b"flags", bytes(4)))
        if r.command != Ioctl.SETFLAGS:
            raise fail(errno.ENOTTY)
        xattrs[b"flags"] = r.data
        return m.IoctlReply(b"")

    def tmpfile(self, r: m.TmpfileRequest) -> m.TmpfileReply:
        made = self.make(stat.S_IFREG | (r.mode & 0o7777 & ~r.umask), r.uid, r.gid)
        made.nlink = 0
        return m.TmpfileReply(self.entry(made), self.handle(made), 0)

    def statx(self, r: m.StatxRequest) -> m.StatxReply:
        return m.StatxReply(self.attr(self.nodes[r.node]), 0xFFF, 1_000_000_000, 5, 0, 0)

    def lseek(self, r: m.LseekRequest) -> m.LseekReply:
        """Blocks of zeros are holes."""
        data = self.handles[r.handle].data
        for offset in range(r.offset, len(data), BLOCK):
            start = offset - offset % BLOCK
            if any(data[start : start + BLOCK]) == (r.whence == os.SEEK_DATA):
                return m.LseekReply(max(start, r.offset))
        if r.whence == os.SEEK_DATA or r.offset >= len(data):
            raise fail(errno.ENXIO)
        return m.LseekReply(len(data))

    # ---- directories ----

    def opendir(self, r: m.OpendirRequest) -> m.OpendirReply:
        return m.OpendirReply(self.handle(self.nodes[r.node]), 0)

    def readdir(self, r: m.ReaddirRequest) -> tuple[m.ReaddirReply, bytes]:
        directory = self.handles[r.handle]
        listed: list[tuple[bytes, File | None]] = [(b".", None), (b"..", None), *directory.names.items()]
        page, used, count = b"", 0, 0
        for offset, (name, file) in list(enumerate(listed, 1))[r.offset :]:
            used += counted_size(len(name))
            if used > r.size:
                break
            entry = self.entry(file) if file else None
            ino, kind = (file.ino, file.mode >> 12) if file else (directory.ino, stat.S_IFDIR >> 12)
            made = DirectoryEntry(entry.node if entry else 0, ino, offset, kind, name, entry.attr if entry else None)
            page += pack_entry(made)
            count += 1
        return m.ReaddirReply(count), page

    def fsyncdir(self, r: m.FsyncdirRequest) -> m.FsyncdirReply:
        return m.FsyncdirReply()

    def cleanup(self, r: m.CleanupRequest) -> m.CleanupReply:
        for node, count in zip(r.forgets[::2], r.forgets[1::2], strict=True):
            assert self.counts[node] >= count, f"node {node}: {count} of {self.counts[node]} lookups are forgotten"
            self.counts[node] -= count
            if not self.counts[node]:
                del self.counts[node], self.nodes[node]
        for handle in r.handles:
            del self.handles[handle]
            self.released.append(handle)
        return m.CleanupReply()
