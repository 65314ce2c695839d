"""What the kernel knows about mounts, read and changed without ever asking the filesystem that is mounted.

Everything here is safe on a mount whose server hangs or is dead: nothing resolves a path below the mount point.
Sources: proc_pid_mountinfo(5), mount(2), umount2(2), Documentation/filesystems/fuse.rst of the kernel ("abort").
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

from tests.support import world

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_NOATIME = 1, 2, 4, 8, 32, 1024
MNT_FORCE, MNT_DETACH = 1, 2
_FLAGS = {"ro": MS_RDONLY, "nosuid": MS_NOSUID, "nodev": MS_NODEV, "noexec": MS_NOEXEC, "noatime": MS_NOATIME}

_libc = ctypes.CDLL(None, use_errno=True)


def find(path: Path) -> world.Mount | None:
    """The topmost mount at exactly `path`, or None."""
    return max((m for m in world.mounts() if m.point == str(path)), key=lambda m: m.id, default=None)


def options(mount: world.Mount) -> set[str]:
    """The options of the mount itself (not those of its superblock): "rw", "nosuid", "nodev" ..."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        if fields[0] == str(mount.id):
            return set(fields[5].split(","))
    return set()


def mount(source: str, path: Path, fstype: str, flags: int, data: str) -> None:
    """mount(2); raises OSError."""
    if _libc.mount(source.encode(), os.fsencode(path), fstype.encode(), ctypes.c_ulong(flags), data.encode()):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path))


def umount(path: Path, flags: int = 0) -> None:
    """umount2(2); raises OSError."""
    if _libc.umount2(os.fsencode(path), flags):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path))


def abort(mount: world.Mount) -> None:
    """End a FUSE connection: every program that waits in it gets an error at once.  Nothing happens if it is gone."""
    with contextlib.suppress(OSError):
        Path(f"/sys/fs/fuse/connections/{mount.minor}/abort").write_text("1")


def drop_dentries(path: Path) -> None:
    """Make the kernel forget every unused name and inode of the FUSE filesystem at `path`, and of no other.

    A remount without any change shrinks the dentry cache of its superblock; FUSE inodes that nobody uses go at once
    and FORGETs are sent for them.  Other filesystems keep their caches, unlike with /proc/sys/vm/drop_caches.
    """
    found = find(path)
    assert found is not None, f"{path} is not a mount point"
    flags = MS_REMOUNT
    for name in options(found):
        flags |= _FLAGS.get(name, 0)
    mount("none", path, found.kind, flags, "")
