"""Directory pages: the payload of a READDIR reply.  SPEC.md, section "Directory pages"."""

from collections.abc import Iterator
from struct import Struct
from typing import Final, NamedTuple

from .errors import LocalProtocolError, RemoteProtocolError
from .frames import Buffer
from .messages import Attr

RECORD: Final = Struct("<QQQIIQQqqqQIIIIIIII")
"""node, ino, offset, name length, type, size, blocks, atime, mtime, ctime, rdev, atime_ns, mtime_ns, ctime_ns, mode,
nlink, uid, gid, blksize."""
KERNEL_RECORD: Final = 152
"""What the kernel needs for an entry beside its name, in bytes: struct fuse_direntplus of Linux's uapi/linux/fuse.h."""


class DirectoryEntry(NamedTuple):
    """One entry.  `node` is 0, and `attr` None, where no lookup is counted for it."""

    node: int
    ino: int
    offset: int
    """Where the next entry starts, for READDIR."""
    type: int
    """DT_REG and so on, as readdir(3) gives it."""
    name: bytes
    attr: Attr | None


def counted_size(name_length: int) -> int:
    """How many of the bytes that READDIR asked for an entry uses up."""
    return KERNEL_RECORD + _padded(name_length)


def pack_entry(entry: DirectoryEntry) -> bytes:
    """The record of an entry.  Raises LocalProtocolError where it has attributes without a node, or the reverse."""
    if (entry.node == 0) is not (entry.attr is None):
        raise LocalProtocolError("an entry has a node and attributes, or neither")
    size = len(entry.name)
    a = entry.attr or _NO_ATTR
    return RECORD.pack(
        entry.node, entry.ino, entry.offset, size, entry.type,
        a.size, a.blocks, a.atime, a.mtime, a.ctime, a.rdev,
        a.atime_ns, a.mtime_ns, a.ctime_ns, a.mode, a.nlink, a.uid, a.gid, a.blksize,
    ) + entry.name.ljust(_padded(size), b"\0")  # fmt: skip


def read_page(page: Buffer) -> Iterator[DirectoryEntry]:
    """The entries of a page, in order.  Raises RemoteProtocolError where it is malformed."""
    position, end = 0, len(page)
    while position < end:
        if end - position < RECORD.size:
            raise RemoteProtocolError("a directory page ends in the middle of a record")
        (
            node, ino, offset, length, kind,
            size, blocks, atime, mtime, ctime, rdev,
            atime_ns, mtime_ns, ctime_ns, mode, nlink, uid, gid, blksize,
        ) = RECORD.unpack_from(page, position)  # fmt: skip
        position += RECORD.size
        if _padded(length) > end - position:
            raise RemoteProtocolError("a directory page ends in the middle of a name")
        name = bytes(page[position : position + length])
        if not name or b"\0" in name or b"/" in name:
            raise RemoteProtocolError("a directory page has a name that is empty or contains NUL or a slash")
        position += _padded(length)
        attr = None
        if node:
            attr = Attr(
                ino, mode, nlink, uid, gid, rdev, size, blksize, blocks,
                atime, atime_ns, mtime, mtime_ns, ctime, ctime_ns,
            )  # fmt: skip
        yield DirectoryEntry(node, ino, offset, kind, name, attr)


def _padded(length: int) -> int:
    return (length + 7) & ~7


_NO_ATTR: Final = Attr(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
