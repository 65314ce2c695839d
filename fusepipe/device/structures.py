"""The arguments and answers of the requests that the filter takes, as in include/uapi/linux/fuse.h.

They are in the machine's own byte order.  A later kernel may send more behind the arguments than is read here.
"""

import os
from struct import Struct
from typing import NamedTuple, Protocol, Self

_FALLOCATE_IN = Struct("=QQQI4x")
_LSEEK_IN = Struct("=QQI4x")
_LSEEK_OUT = Struct("=Q")
_COPY_FILE_RANGE_IN = Struct("=7Q")
_RELEASE_IN = Struct("=Q")
_LK_IN = Struct("=QQQQIII4x")
_LK_OUT = Struct("=QQII")
_WRITE_OUT = Struct("=I4x")
_COPY_FILE_RANGE_OUT = Struct("=Q")
_CREATE_IN = Struct("=4I")
_ENTRY_OUT = Struct("=4QII")
_ATTR = Struct("=6Q10I")
_OPEN_OUT = Struct("=QI4x")
_IOCTL_IN = Struct("=QIIQII")
_IOCTL_OUT = Struct("=iIII")
_STATX_IN = Struct("=I4xQII")
_STATX_OUT = Struct("=QI4x16x")
_STATX = Struct("=IIQIIIH2xQQQQqI4xqI4xqI4xqI4xIIII112x")

U64 = (1 << 64) - 1
NANOSECONDS = 10**9
GETATTR_FH = 1 << 0


class FallocateIn(NamedTuple):
    """struct fuse_fallocate_in."""

    handle: int
    offset: int
    length: int
    mode: int

    @classmethod
    def read(cls, arguments: bytes) -> Self:
        """From what follows the header."""
        return cls._make(_FALLOCATE_IN.unpack_from(arguments))


class LseekIn(NamedTuple):
    """struct fuse_lseek_in; `whence` is SEEK_DATA or SEEK_HOLE, all else the kernel does itself."""

    handle: int
    offset: int
    whence: int

    @classmethod
    def read(cls, arguments: bytes) -> Self:
        """From what follows the header."""
        return cls._make(_LSEEK_IN.unpack_from(arguments))


def lseek_out(offset: int) -> bytes:
    """struct fuse_lseek_out."""
    return _LSEEK_OUT.pack(offset)


class CopyFileRangeIn(NamedTuple):
    """struct fuse_copy_file_range_in; the header names the node that is read."""

    handle: int
    offset: int
    to_node: int
    to_handle: int
    to_offset: int
    length: int
    flags: int

    @classmethod
    def read(cls, arguments: bytes) -> Self:
        """From what follows the header."""
        return cls._make(_COPY_FILE_RANGE_IN.unpack_from(arguments))


class LkIn(NamedTuple):
    """struct fuse_lk_in; the last byte of the range belongs to it."""

    handle: int
    owner: int
    start: int
    end: int
    type: int
    pid: int
    flags: int

    @classmethod
    def read(cls, arguments: bytes) -> Self:
        """From what follows the header."""
        return cls._make(_LK_IN.unpack_from(arguments))


def lk_out(type: int, start: int, end: int, pid: int) -> bytes:
    """struct fuse_lk_out."""
    return _LK_OUT.pack(start, end, type, pid)


def released_handle(arguments: bytes) -> int:
    """The handle of struct fuse_release_in."""
    handle: int = _RELEASE_IN.unpack_from(arguments)[0]
    return handle


def write_out(size: int) -> bytes:
    """struct fuse_write_out, which has room for 32 bits."""
    return _WRITE_OUT.pack(size)


def copy_file_range_out(length: int) -> bytes:
    """struct fuse_copy_file_range_out, the answer to COPY_FILE_RANGE_64."""
    return _COPY_FILE_RANGE_OUT.pack(length)


class Attributes(Protocol):
    """What stat(2) says of an inode; times are seconds and nanoseconds."""

    @property
    def ino(self) -> int: ...
    @property
    def mode(self) -> int: ...
    @property
    def nlink(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def rdev(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def blksize(self) -> int: ...
    @property
    def blocks(self) -> int: ...
    @property
    def atime(self) -> int: ...
    @property
    def atime_ns(self) -> int: ...
    @property
    def mtime(self) -> int: ...
    @property
    def mtime_ns(self) -> int: ...
    @property
    def ctime(self) -> int: ...
    @property
    def ctime_ns(self) -> int: ...


def _timeout(seconds: float) -> tuple[int, int]:
    """A timeout as seconds and nanoseconds."""
    return divmod(round(seconds * NANOSECONDS), NANOSECONDS)


def _attr(a: Attributes) -> bytes:
    """struct fuse_attr; its rdev has room for 12 bits of major and 20 bits of minor number."""
    device = os.minor(a.rdev) & 0xFF | os.major(a.rdev) << 8 | (os.minor(a.rdev) & ~0xFF) << 12
    times = (a.atime & U64, a.mtime & U64, a.ctime & U64, a.atime_ns, a.mtime_ns, a.ctime_ns)
    return _ATTR.pack(a.ino, a.size, a.blocks, *times, a.mode, a.nlink, a.uid, a.gid, device & 0xFFFFFFFF, a.blksize, 0)


class CreateIn(NamedTuple):
    """struct fuse_create_in, also the arguments of TMPFILE; a name follows."""

    flags: int
    mode: int
    umask: int
    open_flags: int

    @classmethod
    def read(cls, arguments: bytes) -> Self:
        """From what follows the header."""
        return cls._make(_CREATE_IN.unpack_from(arguments))


def created_out(node: int, attributes: Attributes, seconds: float, handle: int, open_flags: int) -> bytes:
    """struct fuse_entry_out and struct fuse_open_out, the answer to TMPFILE; `seconds`: how long it may be kept."""
    whole, nano = _timeout(seconds)
    entry = _ENTRY_OUT.pack(node, 0, whole, whole, nano, nano)
    return entry + _attr(attributes) + _OPEN_OUT.pack(handle, open_flags)


class IoctlIn(NamedTuple):
    """struct fuse_ioctl_in; what the command takes follows, `in_size` bytes."""

    handle: int
    flags: int
    command: int
    argument: int
    in_size: int
    out_size: int
    data: bytes

    @classmethod
    def read(cls, arguments: bytes) -> Self:
        """From what follows the header."""
        fields = _IOCTL_IN.unpack_from(arguments)
        return cls._make((*fields, arguments[_IOCTL_IN.size : _IOCTL_IN.size + fields[4]]))


def ioctl_out(data: bytes) -> bytes:
    """struct fuse_ioctl_out of a command that worked, and what it gives."""
    return _IOCTL_OUT.pack(0, 0, 0, 0) + data


class StatxIn(NamedTuple):
    """struct fuse_statx_in; `handle` is 0 where the kernel gave none."""

    handle: int
    flags: int
    mask: int

    @classmethod
    def read(cls, arguments: bytes) -> Self:
        """From what follows the header."""
        asked, handle, flags, mask = _STATX_IN.unpack_from(arguments)
        return cls(handle if asked & GETATTR_FH else 0, flags, mask)


class Birth(NamedTuple):
    """What statx(2) says beyond stat(2)."""

    mask: int
    btime: int
    btime_ns: int
    attributes: int
    attributes_mask: int


def statx_out(a: Attributes, birth: Birth, seconds: float) -> bytes:
    """struct fuse_statx_out; `seconds`: how long it may be kept.  The device's number is the kernel's own matter."""
    stat = _STATX.pack(
        birth.mask, a.blksize, birth.attributes, a.nlink, a.uid, a.gid, a.mode, a.ino, a.size, a.blocks,
        birth.attributes_mask, a.atime, a.atime_ns, birth.btime, birth.btime_ns, a.ctime, a.ctime_ns,
        a.mtime, a.mtime_ns, os.major(a.rdev), os.minor(a.rdev), 0, 0,
    )  # fmt: skip
    return _STATX_OUT.pack(*_timeout(seconds)) + stat
