"""A filesystem in memory: what a session has to say, for every request of one program at a time.

Errors are sets: where several things are wrong with a call, the kernel may find any of them first.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

NOREPLACE, EXCHANGE = 1, 2
XATTR_CREATE, XATTR_REPLACE = 1, 2
MODE, UID, GID, SIZE, ATIME, MTIME = 1, 2, 4, 8, 16, 32
"""Bits of SETATTR (protocol/SPEC.md)."""


@dataclass(eq=False)
class Inode:
    """A file, directory or symlink, with its names or without."""

    kind: int
    """S_IFREG, S_IFDIR or S_IFLNK."""
    mode: int
    uid: int
    gid: int
    data: bytearray = field(default_factory=bytearray)
    """Of a symlink its target."""
    entries: dict[bytes, Inode] = field(default_factory=dict)
    parent: Inode | None = None
    """Of a directory that has a name."""
    names: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    times: dict[int, tuple[int, int]] = field(default_factory=dict)
    """ATIME or MTIME -> seconds and nanoseconds, while nothing but SETATTR has changed it."""
    ino: int | None = None
    """As the server said it first."""

    @property
    def is_directory(self) -> bool:
        return self.kind == stat.S_IFDIR

    def within(self, other: Inode) -> bool:
        """Whether this is `other` or below it."""
        at: Inode | None = self
        while at is not None:
            if at is other:
                return True
            at = at.parent
        return False


class Model:
    """The tree.  Methods that begin with `may_` give the errnos of which one must come; none: it must succeed."""

    def __init__(self, root: Inode) -> None:
        self.root = root
        root.names = 1

    def walk(self) -> Iterator[tuple[bytes, Inode]]:
        """Every path below the root, directories before what is in them."""
        left = [(b"", self.root)]
        while left:
            path, directory = left.pop()
            for name, inode in directory.entries.items():
                yield os.path.join(path, name), inode
                if inode.is_directory:
                    left.append((os.path.join(path, name), inode))

    # ---- what may go wrong

    def may_find(self, parent: Inode, name: bytes) -> set[int]:
        if not parent.is_directory:
            return {errno.ENOTDIR}
        return set() if name in parent.entries else {errno.ENOENT}

    def may_add(self, parent: Inode, name: bytes) -> set[int]:
        if not parent.is_directory:
            return {errno.ENOTDIR}
        if not parent.names:
            return {errno.ENOENT}
        return {errno.EEXIST} if name in parent.entries else set()

    def may_link(self, inode: Inode, parent: Inode, name: bytes) -> set[int]:
        errors = self.may_add(parent, name)
        if inode.is_directory:
            errors.add(errno.EPERM)
        if not inode.names:
            errors.add(errno.ENOENT)
        return errors

    def may_unlink(self, parent: Inode, name: bytes) -> set[int]:
        errors = self.may_find(parent, name)
        if not errors and parent.entries[name].is_directory:
            errors.add(errno.EISDIR)
        return errors

    def may_rmdir(self, parent: Inode, name: bytes) -> set[int]:
        errors = self.may_find(parent, name)
        if not errors and not parent.entries[name].is_directory:
            errors.add(errno.ENOTDIR)
        if not errors and parent.entries[name].entries:
            errors.add(errno.ENOTEMPTY)
        return errors

    def may_rename(self, parent: Inode, name: bytes, to: Inode, new: bytes, flags: int) -> set[int]:
        if not parent.is_directory or not to.is_directory:
            return {errno.ENOTDIR}
        errors: set[int] = set()
        source, target = parent.entries.get(name), to.entries.get(new)
        if source is None or not to.names:
            errors.add(errno.ENOENT)
        if flags == EXCHANGE and target is None:
            errors.add(errno.ENOENT)
        if flags == NOREPLACE and target is not None:
            errors.add(errno.EEXIST)
        if source and source.is_directory and to.within(source):
            errors.add(errno.EINVAL)
        if target and target.is_directory and parent.within(target):
            errors.add(errno.EINVAL if flags == EXCHANGE else errno.ENOTEMPTY)
        if source and target and source is not target and flags == 0:
            if source.is_directory and not target.is_directory:
                errors.add(errno.ENOTDIR)
            if target.is_directory and not source.is_directory:
                errors.add(errno.EISDIR)
            if target.entries:
                errors.add(errno.ENOTEMPTY)
        return errors

    def may_open(self, inode: Inode) -> set[int]:
        if inode.is_directory:
            return {errno.EISDIR}
        return {errno.ELOOP} if inode.kind == stat.S_IFLNK else set()

    def may_create(self, parent: Inode, name: bytes, flags: int) -> set[int]:
        errors = self.may_add(parent, name)
        if errors != {errno.EEXIST} or flags & os.O_EXCL:
            return errors
        return self.may_open(parent.entries[name])

    def may_setxattr(self, inode: Inode, name: bytes, flags: int) -> set[int]:
        if inode.kind == stat.S_IFLNK:
            return {errno.EPERM}
        if flags == XATTR_CREATE and name in inode.xattrs:
            return {errno.EEXIST}
        return {errno.ENODATA} if flags == XATTR_REPLACE and name not in inode.xattrs else set()

    # ---- what happens

    def add(self, parent: Inode, name: bytes, inode: Inode) -> Inode:
        parent.entries[name] = inode
        inode.names += 1
        if inode.is_directory:
            inode.parent = parent
        self._touched(parent)
        return inode

    def remove(self, parent: Inode, name: bytes) -> None:
        inode = parent.entries.pop(name)
        inode.names -= 1
        if inode.is_directory:
            inode.parent = None
        self._touched(parent)

    def rename(self, parent: Inode, name: bytes, to: Inode, new: bytes, flags: int) -> None:
        source, target = parent.entries[name], to.entries.get(new)
        if source is target:
            return
        self.remove(parent, name)
        if target is not None:
            self.remove(to, new)
        self.add(to, new, source)
        if target is not None and flags == EXCHANGE:
            self.add(parent, name, target)

    def truncate(self, inode: Inode, size: int) -> None:
        del inode.data[size:]
        inode.data.extend(bytes(size - len(inode.data)))
        inode.times.pop(MTIME, None)

    def write(self, inode: Inode, offset: int, data: bytes) -> None:
        if not data:
            return
        if offset > len(inode.data):
            inode.data.extend(bytes(offset - len(inode.data)))
        inode.data[offset : offset + len(data)] = data
        inode.times.pop(MTIME, None)

    @staticmethod
    def _touched(directory: Inode) -> None:
        directory.times.pop(MTIME, None)
