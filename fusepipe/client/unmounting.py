"""Ending a mount, also one whose server is dead or silent."""

import ctypes
import errno
import os
import shutil
import subprocess
from contextlib import suppress
from enum import Enum

from fusepipe.client.errors import MountError, MountPointError, PermissionDeniedError
from fusepipe.client.mounttable import MountEntry, mount_at, resolved
from fusepipe.client.patience import NoAnswerError, within

MNT_FORCE = 1
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

FUSERMOUNT = "fusermount3"
PROBE_SECONDS = 2.0
"""A mount that does not answer for so long has no server any more, or a silent one."""

_libc = ctypes.CDLL(None, use_errno=True)


class BusyError(MountError):
    """Programs use the mount."""

    exit_code = MountPointError.exit_code


def _umount2(mountpoint: str, flags: int) -> None:
    """umount2(2).  May wait while dirty pages are written back.  Raises OSError."""
    if _libc.umount2(os.fsencode(mountpoint), flags | UMOUNT_NOFOLLOW):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), mountpoint)


def _fusermount(mountpoint: str, *options: str) -> None:
    """fusermount3 -u, which may do for a user what umount2 does for root.  Raises OSError or MountError."""
    program = shutil.which(FUSERMOUNT)
    if program is None:
        raise PermissionDeniedError(
            f"only root can unmount without {FUSERMOUNT}", f"install {FUSERMOUNT} (Debian: package fuse3)"
        )
    done = subprocess.run([program, "-u", *options, "--", mountpoint], capture_output=True, text=True)
    if done.returncode:
        text = done.stderr.strip() or f"exit code {done.returncode}"
        busy = "busy" in text.lower()
        raise OSError(errno.EBUSY if busy else errno.EPERM, text, mountpoint)


def detach(mountpoint: str, *, lazy: bool) -> None:
    """Takes the mount away as this user may; with `lazy` also when programs use it.  Raises OSError or MountError."""
    if os.geteuid() == 0:
        _umount2(mountpoint, MNT_DETACH if lazy else 0)
    else:
        _fusermount(mountpoint, *(["-z"] if lazy else []))


def take_away(mountpoint: str) -> bool:
    """Unmounts; where programs use the mount, writes back what they have mapped and detaches it.

    Returns whether it was in use.  To be called in a thread by the process that serves the mount, and goes on serving:
    it waits for requests to be answered.  Raises OSError or MountError.
    """
    try:
        detach(mountpoint, lazy=False)
        return False
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT) and mount_at(mountpoint) is None:
            return False  # somebody else was quicker
        if error.errno != errno.EBUSY:
            raise
    with suppress(OSError):  # of a link that is lost, to which nothing can be written back
        _write_back(mountpoint)
    detach(mountpoint, lazy=True)
    return True


def force_away(mountpoint: str) -> None:
    """Takes a mount away whose server is not there, without asking it for anything: whoever waits gets an error.

    To be called in a thread by the process that serves the mount.  Raises OSError or MountError.
    """
    entry = mount_at(mountpoint)
    if entry is None:
        return
    _abort(entry)
    try:
        detach(mountpoint, lazy=True)
    except OSError:
        if mount_at(mountpoint) == entry:
            raise  # else somebody was quicker, such as an unmount that waited for the server until now


def _write_back(mountpoint: str) -> None:
    """Writes what programs have changed in mapped files.  Raises OSError."""
    fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _libc.syncfs(fd)
    finally:
        os.close(fd)


class Condition(Enum):
    """What can be said of a mount from outside."""

    ALIVE = "alive"
    SILENT = "silent"
    """Its process runs, and does not answer within PROBE_SECONDS."""
    DEAD = "dead"
    """Its process is gone."""


def condition(mountpoint: str) -> Condition:
    """Asks the mount for a sign of life."""
    try:
        within(PROBE_SECONDS, lambda: os.statvfs(mountpoint))
    except NoAnswerError:
        return Condition.SILENT
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            return Condition.DEAD
    return Condition.ALIVE


def _abort(entry: MountEntry) -> None:
    """Ends the connection of a mount whose server does not answer, so that nobody waits for it any more."""
    try:
        with open(os.path.join(entry.connection, "abort"), "w") as control:
            control.write("1")
        return
    except OSError:
        pass  # the control filesystem is not mounted, or the connection is gone already
    if os.geteuid() == 0:
        try:
            _umount2(entry.mountpoint, MNT_FORCE)
        except OSError as error:
            if error.errno != errno.EBUSY:  # it has been aborted, and stays until it is detached
                raise


def unmount(mountpoint: str, *, lazy: bool = False, timeout: float = 10) -> None:
    """Unmounts a mount of fusepipe.

    A server that is dead or silent does not matter: its connection is aborted, which gives an error to every program
    that waits, and the mount is detached.  With `lazy` a mount that programs use goes out of sight at once, and ends
    when they are done.  Waits up to `timeout` seconds for data to be written back.  Raises MountError.
    """
    try:
        path = resolved(mountpoint)
    except OSError as error:
        raise MountPointError(f"{mountpoint}: {error.strerror}", "name the directory where it is mounted") from error
    entry = mount_at(path)
    if entry is None:
        raise MountPointError(f"{mountpoint} is not a mount point", "findmnt -t fuse.fusepipe lists what is mounted")
    if not entry.is_ours:
        raise MountPointError(f"{mountpoint} is a mount of {entry.fstype}, not of fusepipe", f"use umount {mountpoint}")
    try:
        _unmount(entry, lazy, timeout)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT) and mount_at(path) != entry:
            return  # somebody else was quicker
        if error.errno == errno.EPERM:
            raise PermissionDeniedError(
                f"{mountpoint} cannot be unmounted: {error.strerror}",
                "unmount it as root or as the user who mounted it",
            ) from error
        raise MountError(f"{mountpoint} cannot be unmounted: {error.strerror}", "see the kernel's log") from error


def _unmount(entry: MountEntry, lazy: bool, timeout: float) -> None:
    if condition(entry.mountpoint) is not Condition.ALIVE:
        _abort(entry)
        lazy = True
    try:
        within(timeout, lambda: detach(entry.mountpoint, lazy=lazy))
    except NoAnswerError:
        _abort(entry)
        detach(entry.mountpoint, lazy=True)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        raise BusyError(
            f"{entry.mountpoint} is busy",
            f"end the programs that use it (fuser -vm {entry.mountpoint} names them), or unmount it with --lazy",
        ) from error
