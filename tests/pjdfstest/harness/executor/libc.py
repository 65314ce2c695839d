"""System calls through the C library's thin wrappers, so that pointers and flags arrive exactly as a test gives them.

Paths may be str, bytes, None or a `Pointer` that makes the kernel answer EFAULT.  Every function raises OSError.
"""

import ctypes
import ctypes.util
import mmap
import os
import struct
import time
from collections.abc import Callable
from typing import Any

from ..protocol import Pointer

Path = str | bytes | Pointer | None

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100

_library = ctypes.CDLL(None, use_errno=True)
_INT, _UINT, _LONG, _U64, _POINTER = ctypes.c_int, ctypes.c_uint, ctypes.c_int64, ctypes.c_uint64, ctypes.c_void_p

# fchmodat2 (Linux 6.6) has one number on all architectures but alpha; the C library has no wrapper of that name.
_SYS_FCHMODAT2 = 452


def _unmapped_address() -> int:
    """An address of this process at which nothing can be read."""
    page = _library.mmap
    page.restype, page.argtypes = _POINTER, [_POINTER, _U64, _INT, _INT, _INT, _LONG]
    address: int | None = page(None, mmap.PAGESIZE, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if address is None or address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "no address space for the page that must not be readable")
    return address


_POINTERS = {Pointer.NULL: 0, Pointer.UNMAPPED: _unmapped_address(), Pointer.KERNEL: (1 << 64) - (1 << 40)}


def _path(path: Path) -> bytes | int | None:
    if isinstance(path, Pointer):
        return _POINTERS[path]
    return os.fsencode(path) if isinstance(path, str) else path


def _function(name: str, *types: Any, result: Any = _INT) -> Callable[..., int]:
    function = getattr(_library, name)
    function.argtypes, function.restype = list(types), result

    def call(*arguments: Any) -> int:
        value: int = function(*arguments)
        if value == -1:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return value

    return call


_open = _function("openat", _INT, _POINTER, _INT, _UINT)
_mkdir = _function("mkdirat", _INT, _POINTER, _UINT)
_mkfifo = _function("mkfifo", _POINTER, _UINT)
_mknod = _function("mknodat", _INT, _POINTER, _UINT, _U64)
_symlink = _function("symlinkat", _POINTER, _INT, _POINTER)
_link = _function("linkat", _INT, _POINTER, _INT, _POINTER, _INT)
_unlink = _function("unlinkat", _INT, _POINTER, _INT)
_rmdir = _function("rmdir", _POINTER)
_rename = _function("rename", _POINTER, _POINTER)
_renameat2 = _function("renameat2", _INT, _POINTER, _INT, _POINTER, _UINT)
_chmod = _function("chmod", _POINTER, _UINT)
_fchmod = _function("fchmod", _INT, _UINT)
_chown = _function("chown", _POINTER, _UINT, _UINT)
_lchown = _function("lchown", _POINTER, _UINT, _UINT)
_fchown = _function("fchown", _INT, _UINT, _UINT)
_truncate = _function("truncate", _POINTER, _LONG)
_ftruncate = _function("ftruncate", _INT, _LONG)
_utimensat = _function("utimensat", _INT, _POINTER, _POINTER, _INT)
_futimens = _function("futimens", _INT, _POINTER)
_fallocate = _function("fallocate", _INT, _INT, _LONG, _LONG)
_copy_file_range = _function("copy_file_range", _INT, _POINTER, _INT, _POINTER, _U64, _UINT, result=_LONG)
_getdents = _function("getdents64", _INT, _POINTER, _U64, result=_LONG)
_getxattr = _function("getxattr", _POINTER, _POINTER, _POINTER, _U64, result=_LONG)
_listxattr = _function("listxattr", _POINTER, _POINTER, _U64, result=_LONG)
_mmap = _function("mmap", _POINTER, _U64, _INT, _INT, _INT, _LONG, result=_LONG)
_munmap = _function("munmap", _POINTER, _U64)
_msync = _function("msync", _POINTER, _U64, _INT)
_mount = _function("mount", _POINTER, _POINTER, _POINTER, ctypes.c_ulong, _POINTER)
_umount = _function("umount2", _POINTER, _INT)
_unshare = _function("unshare", _INT)
_prctl = _function("prctl", _INT, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_statx = _function("statx", _INT, _POINTER, _INT, _UINT, _POINTER)
_syscall = _function("syscall", ctypes.c_long, _LONG, _POINTER, _LONG, _LONG, result=ctypes.c_long)

_ID = 0xFFFFFFFF  # uid_t and gid_t are unsigned: -1 ("leave it") is this


def open_(path: Path, flags: int, mode: int = 0) -> int:
    return _open(AT_FDCWD, _path(path), flags | os.O_CLOEXEC, mode)


def openat(directory: int, path: Path, flags: int, mode: int = 0) -> int:
    return _open(directory, _path(path), flags | os.O_CLOEXEC, mode)


def mkdir(path: Path, mode: int) -> None:
    _mkdir(AT_FDCWD, _path(path), mode)


def mkfifo(path: Path, mode: int) -> None:
    _mkfifo(_path(path), mode)


def mknod(path: Path, mode: int, device: int = 0) -> None:
    _mknod(AT_FDCWD, _path(path), mode, device)


def symlink(target: Path, path: Path) -> None:
    _symlink(_path(target), AT_FDCWD, _path(path))


def link(old: Path, new: Path) -> None:
    _link(AT_FDCWD, _path(old), AT_FDCWD, _path(new), 0)


def linkat(old_directory: int, old: Path, new_directory: int, new: Path, flags: int) -> None:
    _link(old_directory, _path(old), new_directory, _path(new), flags)


def unlink(path: Path) -> None:
    _unlink(AT_FDCWD, _path(path), 0)


def rmdir(path: Path) -> None:
    _rmdir(_path(path))


def rename(old: Path, new: Path) -> None:
    _rename(_path(old), _path(new))


def renameat2(old: Path, new: Path, flags: int) -> None:
    _renameat2(AT_FDCWD, _path(old), AT_FDCWD, _path(new), flags)


def chmod(path: Path, mode: int) -> None:
    _chmod(_path(path), mode)


def lchmod(path: Path, mode: int) -> None:
    _syscall(_SYS_FCHMODAT2, AT_FDCWD, _path(path), mode, AT_SYMLINK_NOFOLLOW)


def fchmod(descriptor: int, mode: int) -> None:
    _fchmod(descriptor, mode)


def chown(path: Path, uid: int, gid: int) -> None:
    _chown(_path(path), uid & _ID, gid & _ID)


def lchown(path: Path, uid: int, gid: int) -> None:
    _lchown(_path(path), uid & _ID, gid & _ID)


def fchown(descriptor: int, uid: int, gid: int) -> None:
    _fchown(descriptor, uid & _ID, gid & _ID)


def truncate(path: Path, length: int) -> None:
    _truncate(_path(path), length)


def ftruncate(descriptor: int, length: int) -> None:
    _ftruncate(descriptor, length)


def _timespecs(times: tuple[tuple[int, int], tuple[int, int]] | None) -> bytes | None:
    return None if times is None else struct.pack("@qlql", *times[0], *times[1])


def utimensat(path: Path, times: tuple[tuple[int, int], tuple[int, int]] | None, flags: int = 0) -> None:
    """Set access and modification time, each as (seconds, nanoseconds); None means both to now."""
    _utimensat(AT_FDCWD, _path(path), _timespecs(times), flags)


def futimens(descriptor: int, times: tuple[tuple[int, int], tuple[int, int]] | None) -> None:
    _futimens(descriptor, _timespecs(times))


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    _fallocate(descriptor, mode, offset, length)


def copy_file_range(source: int, source_offset: int, target: int, target_offset: int, length: int) -> int:
    offsets = [ctypes.c_int64(source_offset), ctypes.c_int64(target_offset)]
    return _copy_file_range(source, ctypes.byref(offsets[0]), target, ctypes.byref(offsets[1]), length, 0)


def getdents(descriptor: int, size: int) -> list[tuple[bytes, int, int, int]]:
    """One call of getdents64 with a buffer of that size: (name, inode number, d_type, next offset) of each entry."""
    buffer = ctypes.create_string_buffer(size)
    length = _getdents(descriptor, buffer, size)
    entries, data, at = [], buffer.raw, 0
    while at < length:
        inode, following, record, kind = struct.unpack_from("<QqHB", data, at)
        entries.append((data[at + 19 : data.index(0, at + 19)], inode, kind, following))
        at += record
    return entries


def map_(descriptor: int, length: int, protection: int, flags: int, offset: int = 0) -> int:
    return _mmap(None, length, protection, flags, descriptor, offset) & ((1 << 64) - 1)


def unmap(address: int, length: int) -> None:
    _munmap(address, length)


def msync(address: int, length: int) -> None:
    _msync(address, length, 4)  # MS_SYNC


def peek(address: int, length: int) -> bytes:
    return ctypes.string_at(address, length)


def poke(address: int, data: bytes) -> None:
    ctypes.memmove(address, data, len(data))


def mount(source: Path, target: Path, kind: Path, flags: int = 0, data: Path = None) -> None:
    _mount(_path(source), _path(target), _path(kind), flags, _path(data))


def umount(path: Path, flags: int = 0) -> None:
    _umount(_path(path), flags)


def unshare(flags: int) -> None:
    _unshare(flags)


def prctl(option: int, value: int) -> None:
    _prctl(option, value, 0, 0, 0)


def getxattr_sized(path: Path, name: bytes, size: int) -> tuple[int, bytes]:
    """getxattr(2) with a buffer of exactly that size: (what it returned, the bytes)."""
    buffer = ctypes.create_string_buffer(max(size, 1))
    length = _getxattr(_path(path), name, buffer, size)
    return length, buffer.raw[: min(length, size)]


def listxattr_sized(path: Path, size: int) -> tuple[int, bytes]:
    """listxattr(2) with a buffer of exactly that size: (what it returned, the bytes)."""
    buffer = ctypes.create_string_buffer(max(size, 1))
    length = _listxattr(_path(path), buffer, size)
    return length, buffer.raw[: min(length, size)]


def birth_time(path: Path) -> int | None:
    """The birth time in nanoseconds from statx(2), None where the filesystem gives none."""
    buffer = ctypes.create_string_buffer(256)
    _statx(AT_FDCWD, _path(path), 0, 0x800, buffer)  # STATX_BTIME
    (mask,) = struct.unpack_from("<I", buffer)
    seconds, nanoseconds = struct.unpack_from("<qI", buffer, 80)  # struct statx: stx_btime follows stx_atime at 64
    return seconds * 1_000_000_000 + nanoseconds if mask & 0x800 else None


def stat(path: str | bytes, follow: bool) -> tuple[int, ...]:
    return _numbers(os.stat(path, follow_symlinks=follow))


def fstat(descriptor: int) -> tuple[int, ...]:
    return _numbers(os.fstat(descriptor))


def _numbers(result: os.stat_result) -> tuple[int, ...]:
    return (
        result.st_mode,
        result.st_ino,
        result.st_dev,
        result.st_nlink,
        result.st_uid,
        result.st_gid,
        result.st_rdev,
        result.st_size,
        result.st_blocks,
        result.st_atime_ns,
        result.st_mtime_ns,
        result.st_ctime_ns,
        time.monotonic_ns(),
    )
