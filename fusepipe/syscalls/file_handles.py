"""File handles: open_by_handle_at(2).  What is said of an inode here stands in `struct handle_id`, as bytes."""

from ._syscalls import ffi, lib
from .check import check

FILE_HANDLE_ROOM = int(lib.FILE_HANDLE_ROOM)
"""Bytes of the longest handle that is used."""

TAG_SIZE = int(lib.TAG_SIZE)
"""Bytes of a signature under a handle."""

SIGN_TOGETHER = int(lib.SIGN_TOGETHER)
"""Handles in one request, at most."""

HANDLE_ID_SIZE = int(ffi.sizeof("struct handle_id"))
"""Bytes that name an inode: device, and type, size and bytes of its handle, with zeroes behind it."""


def handle_of(fd: int) -> tuple[bytes, int]:
    """What names an open inode, and the number of the mount that it was opened through.  Raises OSError."""
    id = ffi.new("struct handle_id *")
    mount = ffi.new("int *")
    check(lib.handle_of(fd, id, mount))
    return bytes(ffi.buffer(id)), int(mount[0])


def device_of(id: bytes) -> int:
    """The st_dev of a named inode."""
    return int.from_bytes(id[:8], "little")


def open_handle(mount_fd: int, id: bytes) -> int:
    """An O_PATH descriptor of a named inode, seen through the mount of another.  Raises OSError."""
    return check(lib.handle_open(mount_fd, ffi.from_buffer("struct handle_id *", id)))


def handle_within(root_fd: int, mount_fd: int, id: bytes) -> None:
    """Raises OSError where a named inode is not known to lie below a directory, the root of a mount namespace."""
    check(lib.handle_within(root_fd, mount_fd, ffi.from_buffer("struct handle_id *", id)))
