"""System calls as one user.  Each call that is made under test is a check: it must succeed, or fail as announced.

owner.chmod("file", 0o600)                        # must succeed
other.fails(EPERM).chmod("file", 0o600)           # must fail, with this errno
root.setup.chmod("file", 0o600)                   # prepares a case: must succeed, is not counted
root.expect("file", mode=0o600, size=0)           # one check, whatever number of attributes it names
"""

import errno
import os
from typing import Any

from . import checks
from .process import Identity, Process
from .protocol import Pointer
from .status import Status

Path = str | bytes | Pointer
Time = tuple[int, int]  # seconds, nanoseconds

UTIME_NOW = (0, (1 << 30) - 1)
UTIME_OMIT = (0, (1 << 30) - 2)
AT_SYMLINK_NOFOLLOW = 0x100
AT_SYMLINK_FOLLOW = 0x400
AT_EMPTY_PATH = 0x1000
AT_FDCWD = -100
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE = 1, 2, 16
O_TMPFILE = 0o20000000 | os.O_DIRECTORY


class Caller:
    """One user's system calls in the directory of the case.  Not thread-safe."""

    def __init__(self, process: Process, errnos: tuple[int, ...] = (), counts: bool = True) -> None:
        self._process = process
        self._errnos = errnos
        self._counts = counts

    @property
    def identity(self) -> Identity:
        return self._process.identity

    def fails(self, *errnos: int) -> "Caller":
        """The same user; the next call must fail with one of these."""
        return Caller(self._process, errnos)

    def expects(self, allowed: bool, *errnos: int) -> "Caller":
        """The same user; the next call must succeed if `allowed`, else fail with one of the errnos."""
        return Caller(self._process, () if allowed else errnos)

    @property
    def setup(self) -> "Caller":
        """The same user; the next call prepares a case and is not counted."""
        return Caller(self._process, counts=False)

    def attempt(self, name: str, *arguments: Any) -> tuple[int, Any]:
        """A call of which nothing is expected: (errno, value)."""
        return self._process.call(name, *arguments)

    def batch(self, calls: list[tuple[str, tuple[Any, ...]]]) -> list[Any]:
        """Several calls in one request, all of which must succeed; they prepare a case and are not counted."""
        __tracebackhide__ = True
        self._process.start(calls)
        results = self._process.finish()
        for (name, arguments), (number, _value) in zip(calls, results, strict=True):
            if number:
                raise AssertionError(f"preparing: {self._said(name, arguments, number)}")
        return [value for _number, value in results]

    # ---- calls that may wait ------------------------------------------------------------------------------------

    def start(self, name: str, *arguments: Any) -> None:
        """Begin a call and do not wait for its end."""
        self._process.start([(name, arguments)])

    def waits(self, seconds: float = 0.05) -> None:
        """One check: the call that was begun has not come back after this time."""
        __tracebackhide__ = True
        checks.check(not self._process.answered(seconds), f"{self.identity}: the call did not wait")

    def finish(self, seconds: float | None = None) -> Any:
        """One check: the call that was begun comes to the expected end.  Returns its value."""
        __tracebackhide__ = True
        number, value = self._process.finish(seconds)[0]
        return self._judge("the call that was begun", (), number, value)

    def outcome(self, seconds: float | None = None) -> tuple[int, Any]:
        """How the call that was begun has ended, whatever that is: (errno, value)."""
        return self._process.finish(seconds)[0]

    def end(self) -> None:
        """End the process."""
        self._process.close()

    # ---- the machinery ------------------------------------------------------------------------------------------

    def _call(self, name: str, *arguments: Any) -> Any:
        __tracebackhide__ = True
        number, value = self._process.call(name, *arguments)
        return self._judge(name, arguments, number, value)

    def _observe(self, name: str, *arguments: Any) -> Any:
        """A call that looks at the state: only its failure, where one is expected, is a check."""
        __tracebackhide__ = True
        number, value = self._process.call(name, *arguments)
        if self._errnos:
            return self._judge(name, arguments, number, value)
        if number:
            raise AssertionError(self._said(name, arguments, number))
        return value

    def _judge(self, name: str, arguments: tuple[Any, ...], number: int, value: Any) -> Any:
        __tracebackhide__ = True
        if self._counts:
            checks.passed("failures" if self._errnos else "successes")
        if number not in (self._errnos or (0,)):
            expected = " or ".join(map(checks.errno_name, self._errnos or (0,)))
            raise AssertionError(f"{self._said(name, arguments, number)}, expected {expected}")
        return value

    def _said(self, name: str, arguments: tuple[Any, ...], number: int) -> str:
        shown = ", ".join(oct(a) if isinstance(a, int) and 0o7 < a <= 0o177777 else checks.shown(a) for a in arguments)
        return f"{self.identity}: {name}({shown}) gave {checks.errno_name(number)}"

    # ---- looking ------------------------------------------------------------------------------------------------

    def stat(self, path: Path) -> Status:
        return Status(*self._observe("stat", path, True) or _NOTHING)

    def lstat(self, path: Path) -> Status:
        return Status(*self._observe("stat", path, False) or _NOTHING)

    def fstat(self, descriptor: int) -> Status:
        return Status(*self._observe("fstat", descriptor) or _NOTHING)

    def lstats(self, paths: list[Path | int]) -> list[Status]:
        """The attributes of several files in one request; an int is a descriptor."""
        calls: list[tuple[str, tuple[Any, ...]]] = [
            ("fstat", (path,)) if isinstance(path, int) else ("stat", (path, False)) for path in paths
        ]
        return [Status(*numbers) for numbers in self.batch(calls)]

    def expect(self, path: Path | int, **attributes: Any) -> Status:
        """One check: all attributes of `Status` that are named.  An int is a descriptor; symlinks are not followed."""
        __tracebackhide__ = True
        status = self.fstat(path) if isinstance(path, int) else self.lstat(path)
        actual = {name: getattr(status, name) for name in attributes}
        wrong = [
            f"{name} is {oct(actual[name]) if name == 'mode' else actual[name]},"
            f" expected {oct(wanted) if name == 'mode' else wanted}"
            for name, wanted in attributes.items()
            if actual[name] != wanted
        ]
        checks.check(not wrong, f"{path!r}: {'; '.join(wrong)}")
        return status

    def missing(self, path: Path) -> None:
        """One check: there is nothing of that name."""
        __tracebackhide__ = True
        self.fails(errno.ENOENT).lstat(path)

    def same(self, path: Path | int, before: Status, *ignored: str) -> None:
        """One check: nothing about that file has changed."""
        __tracebackhide__ = True
        after = self.fstat(path) if isinstance(path, int) else self.lstat(path)
        differences = before.differences(after, *ignored)
        checks.check(not differences, f"{path!r} has changed: {differences}")

    def names(self, path: str | bytes = ".", size: int = 32768) -> list[bytes]:
        found: list[bytes] = self._observe("names", path, size)
        return found

    def contents(self, path: str | bytes) -> bytes:
        data: bytes = self._observe("read_file", path)
        return data

    def readlink(self, path: str | bytes) -> str | bytes:
        target: str | bytes = self._observe("readlink", path)
        return target

    def pid(self) -> int:
        number: int = self._observe("pid")
        return number

    def access(self, path: str | bytes, mode: int) -> bool:
        allowed: bool = self._observe("access", path, mode)
        return allowed

    def statvfs(self, path: str | bytes = ".") -> os.statvfs_result:
        return os.statvfs_result(self._observe("statvfs", path))

    def birth_time(self, path: Path) -> int | None:
        time: int | None = self._observe("birth_time", path)
        return time

    # ---- names --------------------------------------------------------------------------------------------------

    def mkdir(self, path: Path, mode: int = 0o755) -> None:
        self._call("mkdir", path, mode)

    def mkfifo(self, path: Path, mode: int = 0o644) -> None:
        self._call("mkfifo", path, mode)

    def mknod(self, path: Path, mode: int, device: int = 0) -> None:
        self._call("mknod", path, mode, device)

    def symlink(self, target: Path, path: Path) -> None:
        self._call("symlink", target, path)

    def link(self, old: Path, new: Path) -> None:
        self._call("link", old, new)

    def linkat(self, old_directory: int, old: Path, new_directory: int, new: Path, flags: int) -> None:
        self._call("linkat", old_directory, old, new_directory, new, flags)

    def unlink(self, path: Path) -> None:
        self._call("unlink", path)

    def rmdir(self, path: Path) -> None:
        self._call("rmdir", path)

    def remove(self, kind: str, path: Path) -> None:
        """rmdir for a directory, unlink for anything else."""
        self._call("rmdir" if kind == "dir" else "unlink", path)

    def rename(self, old: Path, new: Path) -> None:
        self._call("rename", old, new)

    def renameat2(self, old: Path, new: Path, flags: int) -> None:
        self._call("renameat2", old, new, flags)

    def bind_socket(self, path: str) -> None:
        self._call("bind_socket", path)

    def connect_socket(self, path: str) -> None:
        self._call("connect_socket", path)

    # ---- attributes ---------------------------------------------------------------------------------------------

    def chmod(self, path: Path, mode: int) -> None:
        self._call("chmod", path, mode)

    def lchmod(self, path: Path, mode: int) -> None:
        self._call("lchmod", path, mode)

    def fchmod(self, descriptor: int, mode: int) -> None:
        self._call("fchmod", descriptor, mode)

    def chown(self, path: Path, uid: int, gid: int) -> None:
        self._call("chown", path, uid, gid)

    def lchown(self, path: Path, uid: int, gid: int) -> None:
        self._call("lchown", path, uid, gid)

    def fchown(self, descriptor: int, uid: int, gid: int) -> None:
        self._call("fchown", descriptor, uid, gid)

    def truncate(self, path: Path, length: int) -> None:
        self._call("truncate", path, length)

    def ftruncate(self, descriptor: int, length: int) -> None:
        self._call("ftruncate", descriptor, length)

    def utimensat(self, path: Path, times: tuple[Time, Time] | None, flags: int = 0) -> None:
        self._call("utimensat", path, times, flags)

    def futimens(self, descriptor: int, times: tuple[Time, Time] | None) -> None:
        self._call("futimens", descriptor, times)

    def getxattr(self, path: str | bytes | int, name: str | bytes, follow: bool = True) -> bytes:
        value: bytes = self._observe("getxattr", path, name, follow)
        return value

    def setxattr(
        self, path: str | bytes | int, name: str | bytes, value: bytes, flags: int = 0, follow: bool = True
    ) -> None:
        self._call("setxattr", path, name, value, flags, follow)

    def getxattr_sized(self, path: str, name: bytes, size: int) -> tuple[int, bytes]:
        """getxattr(2) with a buffer of exactly that size: (what it returned, the bytes)."""
        answer: tuple[int, bytes] = self._call("getxattr_sized", path, name, size)
        return answer

    def listxattr_sized(self, path: str, size: int) -> tuple[int, bytes]:
        """listxattr(2) with a buffer of exactly that size: (what it returned, the bytes)."""
        answer: tuple[int, bytes] = self._call("listxattr_sized", path, size)
        return answer

    def listxattr(self, path: str | bytes | int, follow: bool = True) -> list[str]:
        names: list[str] = self._observe("listxattr", path, follow)
        return names

    def removexattr(self, path: str | bytes | int, name: str | bytes, follow: bool = True) -> None:
        self._call("removexattr", path, name, follow)

    def get_flags(self, path: str) -> int:
        flags: int = self._observe("get_flags", path)
        return flags

    def set_flags(self, path: str, flags: int) -> None:
        self._call("set_flags", path, flags)

    # ---- open files ---------------------------------------------------------------------------------------------

    def open(self, path: Path, flags: int, mode: int = 0) -> int:
        descriptor: int = self._call("open", path, flags, mode)
        return descriptor

    def openat(self, directory: int, path: Path, flags: int, mode: int = 0) -> int:
        descriptor: int = self._call("openat", directory, path, flags, mode)
        return descriptor

    def dup(self, descriptor: int) -> int:
        copy: int = self._call("dup", descriptor)
        return copy

    def close(self, descriptor: int) -> None:
        self._call("close", descriptor)

    def read(self, descriptor: int, size: int) -> bytes:
        data: bytes = self._call("read", descriptor, size)
        return data

    def write(self, descriptor: int, data: bytes) -> int:
        size: int = self._call("write", descriptor, data)
        return size

    def pread(self, descriptor: int, size: int, offset: int) -> bytes:
        data: bytes = self._call("pread", descriptor, size, offset)
        return data

    def pwrite(self, descriptor: int, data: bytes, offset: int) -> int:
        size: int = self._call("pwrite", descriptor, data, offset)
        return size

    def pread_direct(self, descriptor: int, size: int, offset: int) -> bytes:
        data: bytes = self._call("pread_direct", descriptor, size, offset)
        return data

    def pwrite_direct(self, descriptor: int, data: bytes, offset: int) -> int:
        size: int = self._call("pwrite_direct", descriptor, data, offset)
        return size

    def lseek(self, descriptor: int, offset: int, whence: int) -> int:
        position: int = self._call("lseek", descriptor, offset, whence)
        return position

    def fsync(self, descriptor: int) -> None:
        self._call("fsync", descriptor)

    def fdatasync(self, descriptor: int) -> None:
        self._call("fdatasync", descriptor)

    def fallocate(self, descriptor: int, mode: int, offset: int, length: int) -> None:
        self._call("fallocate", descriptor, mode, offset, length)

    def posix_fallocate(self, descriptor: int, offset: int, length: int) -> None:
        self._call("posix_fallocate", descriptor, offset, length)

    def copy_file_range(self, source: int, source_offset: int, target: int, target_offset: int, length: int) -> int:
        size: int = self._call("copy_file_range", source, source_offset, target, target_offset, length)
        return size

    def getdents(self, descriptor: int, size: int) -> list[tuple[bytes, int, int, int]]:
        """One call of getdents64(2): (name, inode number, d_type, offset of the next) of each entry."""
        entries: list[tuple[bytes, int, int, int]] = self._call("getdents", descriptor, size)
        return entries

    def write_file(self, path: str | bytes, data: bytes) -> None:
        self._call("write_file", path, data)

    # ---- locks and mappings -------------------------------------------------------------------------------------

    def flock(self, descriptor: int, operation: int) -> None:
        self._call("flock", descriptor, operation)

    def set_lock(self, descriptor: int, command: int, kind: int, start: int = 0, length: int = 0) -> None:
        self._call("set_lock", descriptor, command, kind, start, length)

    def get_lock(
        self, descriptor: int, command: int, kind: int, start: int = 0, length: int = 0
    ) -> tuple[int, int, int, int]:
        lock: tuple[int, int, int, int] = self._call("get_lock", descriptor, command, kind, start, length)
        return lock

    def map(self, descriptor: int, length: int, protection: int, flags: int, offset: int = 0) -> int:
        address: int = self._call("map", descriptor, length, protection, flags, offset)
        return address

    def unmap(self, address: int, length: int) -> None:
        self._call("unmap", address, length)

    def msync(self, address: int, length: int) -> None:
        self._call("msync", address, length)

    def peek(self, address: int, length: int) -> bytes:
        data: bytes = self._call("peek", address, length)
        return data

    def poke(self, address: int, data: bytes) -> None:
        self._call("poke", address, data)

    # ---- the process --------------------------------------------------------------------------------------------

    def umask(self, mask: int) -> None:
        """Set the umask until the end of the case; prepares a case and is not counted."""
        self._observe("umask", mask)

    def chdir(self, path: str | bytes) -> None:
        self._call("chdir", path)

    def mount(self, source: str, target: str, kind: str, flags: int = 0, data: str | None = None) -> None:
        self._call("mount", source, target, kind, flags, data)

    def umount(self, path: str, flags: int = 0) -> None:
        self._call("umount", path, flags)


_NOTHING = (0,) * len(Status._fields)
