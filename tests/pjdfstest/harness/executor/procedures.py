"""What a helper process does beyond single system calls: locks, loops over names, whole programs, its own state."""

import contextlib
import fcntl
import mmap
import os
import signal
import socket
import sqlite3
import stat
import struct
import subprocess
from typing import Any

from . import libc

FIRST_FREE_DESCRIPTOR = 5  # below: the standard ones, the socket to the suite, the directory that holds all cases
BASE_DIRECTORY = 4

_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS = 0x80086601, 0x40086602
_FLOCK = struct.Struct("@hhqqi4x")  # struct flock: l_type, l_whence, l_start, l_len, l_pid

_highest_descriptor = FIRST_FREE_DESCRIPTOR
_maps: dict[int, int] = {}
_children: set[int] = set()
_sockets: list[socket.socket] = []
_databases: list[sqlite3.Connection] = []


def enter(directory: str) -> None:
    """Work in `directory`: absolute, or a name below the directory that holds all cases.

    By descriptor, so that nobody needs search permission on what lies above it.
    """
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY, dir_fd=BASE_DIRECTORY)
    try:
        os.fchdir(descriptor)
    finally:
        os.close(descriptor)


def leave() -> None:
    """Give back all that a case has taken: descriptors (and with them locks), mappings, children, umask, directory."""
    for pid in list(_children):
        kill(pid)
    for address, length in list(_maps.items()):
        unmap(address, length)
    while _databases:
        _databases.pop().close()
    while _sockets:
        _sockets.pop().close()
    os.closerange(FIRST_FREE_DESCRIPTOR, _highest_descriptor + 1)
    os.umask(0)
    os.chdir("/")


def remember(descriptor: int) -> int:
    """Note an open descriptor for `leave`."""
    global _highest_descriptor
    _highest_descriptor = max(_highest_descriptor, descriptor)
    return descriptor


def open_(path: libc.Path, flags: int, mode: int = 0) -> int:
    return remember(libc.open_(path, flags, mode))


def openat(directory: int, path: libc.Path, flags: int, mode: int = 0) -> int:
    return remember(libc.openat(directory, path, flags, mode))


def duplicate(descriptor: int) -> int:
    return remember(os.dup(descriptor))


def map_(descriptor: int, length: int, protection: int, flags: int, offset: int = 0) -> int:
    address = libc.map_(descriptor, length, protection, flags, offset)
    _maps[address] = length
    return address


def unmap(address: int, length: int) -> None:
    libc.unmap(address, length)
    _maps.pop(address, None)


def bind_socket(path: str) -> None:
    """Make a Unix socket by bind(2) and listen on it until the case ends."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.bind(path)
        sock.listen(16)
    except BaseException:
        sock.close()
        raise
    remember(sock.fileno())
    _sockets.append(sock)


def connect_socket(path: str) -> None:
    """Connect to a Unix socket and hang up."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)


def get_flags(path: str) -> int:
    """The inode flags that chattr(1) shows."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        number: int = struct.unpack("@l", fcntl.ioctl(descriptor, _FS_IOC_GETFLAGS, bytes(8)))[0]
        return number & 0xFFFFFFFF
    finally:
        os.close(descriptor)


def set_flags(path: str, flags: int) -> None:
    """Set the inode flags, as chattr(1) does."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.ioctl(descriptor, _FS_IOC_SETFLAGS, struct.pack("@l", flags))
    finally:
        os.close(descriptor)


def set_lock(descriptor: int, command: int, kind: int, start: int, length: int) -> None:
    """fcntl(2) with F_SETLK, F_SETLKW, F_OFD_SETLK or F_OFD_SETLKW."""
    fcntl.fcntl(descriptor, command, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))


def get_lock(descriptor: int, command: int, kind: int, start: int, length: int) -> tuple[int, int, int, int]:
    """fcntl(2) with F_GETLK or F_OFD_GETLK: (type, start, length, pid) of the lock in the way, type F_UNLCK if none."""
    request = _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
    kind, _whence, start, length, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, command, request))
    return kind, start, length, pid


def pread_direct(descriptor: int, length: int, offset: int) -> bytes:
    """pread(2) into memory aligned as O_DIRECT wants it."""
    with mmap.mmap(-1, length) as memory:
        got = os.preadv(descriptor, [memory], offset)
        return memory[:got]


def pwrite_direct(descriptor: int, data: bytes, offset: int) -> int:
    """pwrite(2) from memory aligned as O_DIRECT wants it."""
    with mmap.mmap(-1, len(data)) as memory:
        memory[:] = data
        return os.pwritev(descriptor, [memory], offset)


def names(path: str | bytes, size: int = 32768) -> list[bytes]:
    """All names in a directory, as getdents64 gives them, without `.` and `..`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        found: list[bytes] = []
        while part := libc.getdents(descriptor, size):
            found += [name for name, *_rest in part if name not in (b".", b"..")]
        return found
    finally:
        os.close(descriptor)


def make_many(pattern: str, start: int, stop: int) -> None:
    """Make empty regular files `pattern % number`."""
    for number in range(start, stop):
        libc.mknod(pattern % number, stat.S_IFREG | 0o644)


def unlink_every_other(pattern: str, start: int, stop: int, remainder: int) -> None:
    """Remove the names whose number divided by 2 leaves `remainder`."""
    for number in range(start + (start + remainder) % 2, stop, 2):
        libc.unlink(pattern % number)


def stat_many(pattern: str, start: int, stop: int, step: int) -> int:
    """How many of the names have an inode number of their own."""
    return len({os.lstat(pattern % number).st_ino for number in range(start, stop, step)})


def link_until_error(path: str, pattern: str, limit: int) -> int:
    """Link `path` to `pattern % number` for number from 0; raises the first error.  Returns `limit` if none."""
    for number in range(limit):
        libc.link(path, pattern % number)
    return limit


def write_until_error(descriptor: int, block: int, limit: int) -> tuple[int, int]:
    """Write blocks until an error or `limit` bytes: (bytes written, errno or 0)."""
    written, data = 0, os.urandom(block)
    try:
        while written < limit:
            written += os.write(descriptor, data)
        os.fsync(descriptor)
    except OSError as error:
        return written, error.errno or -1
    return written, 0


def write_records(descriptor: int, record: bytes, count: int) -> None:
    """Write the record `count` times, one write(2) each; a short write is an error."""
    for _ in range(count):
        if os.write(descriptor, record) != len(record):
            raise OSError(5, "short write of a small record")


def read_file(path: str | bytes) -> bytes:
    """The whole contents of a file."""
    with open(path, "rb", buffering=0) as file:
        return file.readall()


def write_file(path: str | bytes, data: bytes) -> None:
    """Create or replace a file."""
    with open(path, "wb", buffering=0) as file:
        done = 0
        while done < len(data):
            done += file.write(data[done:])


def remove_tree(name: str) -> None:
    """Remove a directory and all below it; `name` as for `enter`."""
    directory = os.open(os.path.dirname(name) or ".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=BASE_DIRECTORY)
    try:
        _remove(directory, os.fsencode(os.path.basename(name)))
    finally:
        os.close(directory)


def _remove(parent: int, name: bytes) -> None:
    try:
        os.unlink(name, dir_fd=parent)
        return
    except IsADirectoryError:
        pass
    directory = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    try:
        for entry in os.listdir(directory):
            _remove(directory, os.fsencode(entry))
    finally:
        os.close(directory)
    os.rmdir(name, dir_fd=parent)


def spawn(arguments: list[str]) -> int:
    """Start a program and return its process id; it is killed when the case ends."""
    pid = os.posix_spawn(arguments[0], arguments, {"PATH": os.defpath})
    _children.add(pid)
    return pid


def kill(pid: int) -> None:
    """End a program that `spawn` has started."""
    _children.discard(pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def run(arguments: list[str], environment: dict[str, str], seconds: float) -> tuple[int, str]:
    """Run a program in the case's directory: (exit status, what it said on both outputs)."""
    done = subprocess.run(
        arguments,
        env={"PATH": os.environ.get("PATH", os.defpath), **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=seconds,
        check=False,
    )
    return done.returncode, done.stdout.decode(errors="replace")


def database(path: str) -> int:
    """Open an SQLite database and return its number for `query`."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=30, check_same_thread=False)
    _databases.append(connection)
    return len(_databases) - 1


def query(number: int, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    return _databases[number].execute(statement, values).fetchall()


def queries(number: int, statement: str, rows: list[tuple[Any, ...]]) -> None:
    """One statement for each row, each in a transaction of its own."""
    for row in rows:
        _databases[number].execute(statement, row)
