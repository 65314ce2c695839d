"""A filesystem in memory that fails when told so: the broken disk below a volume.

    python -m tests.faults.failingfs MOUNTPOINT

It prints `ready` when it is mounted.  A line `fail OPERATION ERRNO` makes every later request of that operation fail
with that errno's number (`fail write 5`), `heal` ends that, and each line is answered by `done`.  `end` or the end of
input unmounts.  Operations: lookup, getattr, setattr, open, create, read, write, fsync, flush, mkdir, unlink, readdir.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from typing import Final

import pyfuse3
import trio

OPERATIONS: Final = frozenset(
    {"lookup", "getattr", "setattr", "open", "create", "read", "write", "fsync", "flush", "mkdir", "unlink", "readdir"}
)


class Node:
    """A file or folder."""

    def __init__(self, mode: int, inode: int) -> None:
        self.mode = mode
        self.inode = inode
        self.content = bytearray()
        self.changed = time.time_ns()


class FailingFS(pyfuse3.Operations):
    """One folder of files, and folders that stay empty."""

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self) -> None:
        super().__init__()
        self.failing: dict[str, int] = {}
        """The errno with which an operation fails."""
        self._nodes = {pyfuse3.ROOT_INODE: Node(stat.S_IFDIR | 0o755, pyfuse3.ROOT_INODE)}
        self._names: dict[bytes, int] = {}

    def _may(self, operation: str) -> None:
        if (number := self.failing.get(operation)) is not None:
            raise pyfuse3.FUSEError(number)

    def _entry(self, inode: int) -> pyfuse3.EntryAttributes:
        node = self._nodes[inode]
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(inode)
        entry.st_mode = pyfuse3.ModeT(node.mode)
        entry.st_nlink = 1
        entry.st_size = len(node.content)
        entry.st_blksize = 4096
        entry.st_blocks = (len(node.content) + 511) // 512
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = node.changed
        entry.entry_timeout = entry.attr_timeout = 0
        return entry

    def _make(self, name: bytes, mode: int) -> int:
        if name in self._names:
            raise pyfuse3.FUSEError(errno.EEXIST)
        inode = max(self._nodes) + 1
        self._nodes[inode] = Node(mode, inode)
        self._names[name] = inode
        return inode

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        self._may("lookup")
        if parent_inode != pyfuse3.ROOT_INODE or name not in self._names:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._entry(self._names[name])

    async def getattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        self._may("getattr")
        return self._entry(inode)

    async def setattr(
        self,
        inode: pyfuse3.InodeT,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: pyfuse3.FileHandleT | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        self._may("setattr")
        node = self._nodes[inode]
        if fields.update_size:
            del node.content[attr.st_size :]
            node.content += bytes(attr.st_size - len(node.content))
        if fields.update_mode:
            node.mode = attr.st_mode
        return self._entry(inode)

    async def open(self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        self._may("open")
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode), direct_io=True)

    async def create(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        mode: pyfuse3.ModeT,
        flags: pyfuse3.FlagT,
        ctx: pyfuse3.RequestContext,
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        self._may("create")
        inode = self._make(name, stat.S_IFREG | stat.S_IMODE(mode))
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode), direct_io=True), self._entry(inode)

    async def mkdir(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        mode: pyfuse3.ModeT,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        self._may("mkdir")
        return self._entry(self._make(name, stat.S_IFDIR | stat.S_IMODE(mode)))

    async def unlink(self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext) -> None:
        self._may("unlink")
        del self._names[name]

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        self._may("read")
        return bytes(self._nodes[pyfuse3.InodeT(fh)].content[off : off + size])

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        self._may("write")
        node = self._nodes[pyfuse3.InodeT(fh)]
        node.content += bytes(max(0, off - len(node.content)))
        node.content[off : off + len(buf)] = buf
        node.changed = time.time_ns()
        return len(buf)

    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        self._may("fsync")

    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        self._may("flush")

    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        pass

    async def forget(self, inode_list: object) -> None:
        pass

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_blocks = data.f_bfree = data.f_bavail = 1 << 20
        data.f_files = data.f_ffree = data.f_favail = 1 << 20
        data.f_namemax = 255
        return data

    async def opendir(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileHandleT:
        return pyfuse3.FileHandleT(inode)

    async def readdir(self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        self._may("readdir")
        if fh != pyfuse3.ROOT_INODE:
            return
        for name, inode in sorted(self._names.items(), key=lambda item: item[1]):
            if inode > start_id and not pyfuse3.readdir_reply(
                token, pyfuse3.FileNameT(name), self._entry(inode), inode
            ):
                return


async def serve(mountpoint: str) -> None:
    """Answer requests and commands until told to end."""
    operations = FailingFS()
    options = {*pyfuse3.default_options, "fsname=failingfs", "allow_other"}
    pyfuse3.init(operations, mountpoint, options)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            print("ready", flush=True)
            async with trio.lowlevel.FdStream(os.dup(0)) as commands:
                await obey(commands, operations)
            nursery.cancel_scope.cancel()
    finally:
        pyfuse3.close(unmount=True)


async def obey(commands: trio.lowlevel.FdStream, operations: FailingFS) -> None:
    """Do what the lines say, until `end` or their end."""
    text = b""
    async for data in commands:
        text += data
        *lines, text = text.split(b"\n")
        for line in lines:
            match line.decode().split():
                case ["fail", operation, number] if operation in OPERATIONS:
                    operations.failing[operation] = int(number)
                case ["heal"]:
                    operations.failing.clear()
                case ["end"]:
                    return
                case _:
                    raise ValueError(f"no command: {line!r}")
            print("done", flush=True)


if __name__ == "__main__":
    trio.run(serve, sys.argv[1])
