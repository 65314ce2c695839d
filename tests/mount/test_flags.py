"""Inode flags and projects: lsattr(1), chattr(1) and the ioctls below them; birth times."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount import mounttable
from tests.mount.conftest import MountFactory, Place, loop_filesystem
from tests.mount.expect import fails

GETFLAGS, SETFLAGS, FSGETXATTR, FSSETXATTR = 0x80086601, 0x40086602, 0x801C581F, 0x401C5820
IMMUTABLE, APPEND, NODUMP = 0x10, 0x20, 0x40
USER = 4321


@pytest.fixture
def xfs(scratch: Path) -> Iterator[Path]:
    """An empty xfs, which always has project ids; ext4 needs the kernel's quota for them."""
    path = loop_filesystem(scratch, "xfs", 320)
    yield path
    mounttable.umount(path)


def lsattr(path: Path) -> str:
    """The letters that are set."""
    said = subprocess.run(["lsattr", "-d", path], check=True, capture_output=True, text=True, timeout=30).stdout
    return said.split()[0].replace("-", "")


def chattr(change: str, path: Path, *, user: int | None = None) -> bool:
    """Whether it worked."""
    return not subprocess.run(
        ["chattr", change, path], capture_output=True, timeout=30, user=user, group=user, extra_groups=[]
    ).returncode


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_lsattr_and_chattr(place: Place, kind: str) -> None:
    host, guest = place.src / "it", place.mnt / "it"
    if kind == "file":
        host.touch()
    else:
        host.mkdir()
    before = lsattr(host)
    assert lsattr(guest) == before
    assert chattr("+d", guest)
    assert set(lsattr(guest)) == set(lsattr(host)) == set(before) | {"d"}
    assert chattr("-d", guest)
    assert lsattr(guest) == lsattr(host) == before


def test_the_change_is_seen_at_once(place: Place) -> None:
    (place.mnt / "file").touch()
    before = os.stat(place.mnt / "file").st_ctime_ns
    time.sleep(0.05)
    assert chattr("+d", place.mnt / "file")
    after = os.stat(place.mnt / "file").st_ctime_ns
    assert after == os.stat(place.src / "file").st_ctime_ns > before


def test_immutable_and_append_only(place: Place) -> None:
    file, directory = place.mnt / "file", place.mnt / "dir"
    file.write_text("data")
    directory.mkdir()
    (directory / "child").touch()
    assert chattr("+i", file)
    try:
        for refused in (
            lambda: file.open("w").close(),
            lambda: file.chmod(0o777),
            file.unlink,
            lambda: file.rename(place.mnt / "new"),
            lambda: os.link(file, place.mnt / "second"),
            lambda: os.utime(file, (1, 1)),
            lambda: os.truncate(file, 0),
        ):
            with fails(errno.EPERM):
                refused()
        assert file.read_text() == "data"
    finally:
        assert chattr("-i", file)
    assert chattr("+a", file)
    try:
        with file.open("a") as appended:
            appended.write(" and more")
        with fails(errno.EPERM):
            file.open("r+")
    finally:
        assert chattr("-a", file)
    assert chattr("+i", directory)
    try:
        with fails(errno.EPERM):
            (directory / "new").touch()
        with fails(errno.EPERM):
            (directory / "child").unlink()
    finally:
        assert chattr("-i", directory)
    file.write_text("changed")
    (directory / "child").unlink()


def test_who_may_set_what(place: Place) -> None:
    file = place.mnt / "file"
    file.touch()
    place.mnt.chmod(0o755)
    os.chown(file, USER, USER)
    assert chattr("+d", file, user=USER)
    assert not chattr("+i", file, user=USER)
    assert not chattr("+j", file, user=USER)
    assert not chattr("-d", file, user=USER + 1)
    assert "d" in lsattr(file)
    assert not {"i", "j"} & set(lsattr(file))


@pytest.mark.once
def test_projects(xfs: Path, mounts: MountFactory, real: str) -> None:
    mount = mounts(source=xfs)
    directory = mount.path / "project"
    directory.mkdir()
    subprocess.run(["chattr", "-p", "77", "+P", directory], check=True, timeout=30)
    (directory / "file").touch()
    for top in (mount.path, xfs):
        said = subprocess.run(
            ["lsattr", "-p", top / "project"], check=True, capture_output=True, text=True, timeout=30
        ).stdout.split()
        assert said[0] == "77", said
    with (directory / "file").open("rb") as file:
        found = struct.unpack("=5I8x", fcntl.ioctl(file, FSGETXATTR, bytes(28)))
        assert found[3] == 77


def test_unknown_ioctls(place: Place) -> None:
    (place.mnt / "file").touch()
    for path in (place.mnt / "file", place.mnt):
        fd = os.open(path, os.O_RDONLY)
        for command in (0x5401, 0x80087601, 0x80045873):
            with fails(errno.ENOTTY):
                fcntl.ioctl(fd, command, bytes(64))
        os.close(fd)


@pytest.mark.once
def test_a_filesystem_without_flags(scratch: Path, mounts: MountFactory, real: str) -> None:
    """ENOTTY from the host, or what the guest's kernel makes of it."""
    proc = scratch / "proc"
    proc.mkdir()
    mounttable.mount("proc", proc, "proc", 0, "")
    try:
        mount = mounts(source=proc)
        fd = os.open(mount.path / "version", os.O_RDONLY)
        with fails(errno.ENOTTY, errno.EOPNOTSUPP):
            fcntl.ioctl(fd, GETFLAGS, bytes(8))
        os.close(fd)
        mount.unmount()
    finally:
        mounttable.umount(proc, mounttable.MNT_DETACH)


# ---- birth times ----------------------------------------------------------------------------------------------------


def born(path: Path) -> str:
    return subprocess.run(["stat", "-c", "%w %W", path], check=True, capture_output=True, text=True, timeout=30).stdout


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "fifo"])
def test_birth_times_are_the_hosts(place: Place, kind: str) -> None:
    path = place.mnt / "it"
    match kind:
        case "file":
            path.touch()
        case "directory":
            path.mkdir()
        case "symlink":
            path.symlink_to("nowhere")
        case "fifo":
            os.mkfifo(path)
    if kind != "symlink":
        path.chmod(0o700)
        os.utime(path, (1, 1))
    assert born(path) == born(place.src / "it")
    assert not born(path).startswith("-")
    assert os.lstat(path) == os.lstat(path)
