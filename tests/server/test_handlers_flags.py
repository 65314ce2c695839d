"""IOCTL and STATX."""

import errno
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fusepipe.wire import Op
from tests.server.volume import ROOT, Volume, fails, needs_root

GETFLAGS, SETFLAGS, FSGETXATTR, FSSETXATTR = 0x80086601, 0x40086602, 0x801C581F, 0x401C5820
IMMUTABLE, APPEND, NODUMP = 0x10, 0x20, 0x40
BTIME = 0x800


def get(volume: Volume, handle: int) -> int:
    (flags,) = struct.unpack("<I", volume(Op.IOCTL, handle, GETFLAGS, b"", 0, 0).data)
    assert isinstance(flags, int)
    return flags


def set_to(volume: Volume, handle: int, flags: int, uid: int = 0) -> None:
    assert volume(Op.IOCTL, handle, SETFLAGS, struct.pack("<I", flags), uid, uid).data == b""


def shown(path: Path) -> str:
    """The letters of lsattr(1)."""
    return subprocess.run(["lsattr", "-d", path], check=True, capture_output=True, text=True).stdout.split()[0]


@needs_root
def test_flags_of_files_and_directories(disk: Volume) -> None:
    _, file = disk.create(b"file")
    disk.mkdir(b"dir")
    directory = disk(Op.OPENDIR, disk.lookup(b"dir").node, 0).handle
    for handle, name in ((file, "file"), (directory, "dir")):
        before = get(disk, handle)
        set_to(disk, handle, before | IMMUTABLE | NODUMP)
        try:
            assert get(disk, handle) == before | IMMUTABLE | NODUMP
            assert {"i", "d"} <= set(shown(disk.path / name))
        finally:
            set_to(disk, handle, before)
    with fails(errno.EBADF):
        get(disk, 99)


@needs_root
def test_only_root_sets_what_needs_a_capability(disk: Volume) -> None:
    _, handle = disk.create(b"file")
    os.chown(disk.path / "file", 4000, 4000)
    before = get(disk, handle)
    set_to(disk, handle, before | NODUMP, uid=4000)
    for flags, uid in ((IMMUTABLE, 4000), (APPEND, 4000), (0, 5000)):
        with fails(errno.EPERM):
            set_to(disk, handle, before | flags, uid=uid)
    assert get(disk, handle) == before | NODUMP


@needs_root
def test_extended_flags(disk: Volume) -> None:
    _, handle = disk.create(b"file")
    found = bytearray(disk(Op.IOCTL, handle, FSGETXATTR, b"", 0, 0).data)
    assert len(found) == 28
    found[0] |= 0x80  # FS_XFLAG_NODUMP
    assert disk(Op.IOCTL, handle, FSSETXATTR, bytes(found), 0, 0).data == b""
    assert get(disk, handle) & NODUMP


def test_everything_else_is_unknown(volume: Volume) -> None:
    _, handle = volume.create(b"file")
    for command in (0, 0x5401, 0x80046601, 0x80087601, 0x40049409, 0xC020660B, 0xFFFFFFFF):
        with fails(errno.ENOTTY):
            volume(Op.IOCTL, handle, command, b"", 0, 0)
    for command, data in ((GETFLAGS, bytes(4)), (SETFLAGS, bytes(8)), (SETFLAGS, b""), (FSSETXATTR, bytes(29))):
        with fails(errno.EINVAL):
            volume(Op.IOCTL, handle, command, data, 0, 0)
    with fails(errno.EINVAL):
        volume(Op.IOCTL, handle, SETFLAGS, bytes(1000), 0, 0)


def test_flags_of_a_read_only_volume(open_path: Path, serve: Callable[..., Volume]) -> None:
    (open_path / "file").touch()
    volume = serve(open_path, read_only=True)
    handle = volume.open(volume.lookup(b"file").node, os.O_RDONLY)
    get(volume, handle)
    with fails(errno.EROFS):
        set_to(volume, handle, NODUMP)


# ---- statx ----------------------------------------------------------------------------------------------------------


def test_statx_is_stat_and_more(volume: Volume) -> None:
    entry, handle = volume.create(b"file")
    volume.write(handle, b"data")
    os.utime(volume.path / "file", ns=(-1, 10**18 + 5))
    for by in (0, handle):
        found = volume(Op.STATX, entry.node, by, 0, 0xFFF)
        assert found.attr == volume(Op.GETATTR, entry.node, by).attr
        assert found.mask & 0x7FF == 0x7FF
    assert (found.attr.atime, found.attr.atime_ns) == (-1, 999_999_999)
    with fails(errno.EBADF):
        volume(Op.STATX, entry.node, handle + 1, 0, 0xFFF)
    with fails(errno.ESTALE):
        volume(Op.STATX, 99, 0, 0, 0xFFF)


def test_birth_time(disk: Volume) -> None:
    entry, _ = disk.create(b"file")
    os.chmod(disk.path / "file", 0o600)
    found = disk(Op.STATX, entry.node, 0, 0x2000, 0xFFFFFFFF)
    assert found.mask & BTIME
    assert found.attr.mtime <= found.btime <= found.attr.ctime
    said = subprocess.run(["stat", "-c", "%W", disk.path / "file"], check=True, capture_output=True, text=True).stdout
    assert found.btime == int(said)


@needs_root
def test_attributes_of_statx_show_the_flags(disk: Volume) -> None:
    entry, handle = disk.create(b"file")
    before = get(disk, handle)
    set_to(disk, handle, before | NODUMP)
    found = disk(Op.STATX, entry.node, 0, 0, 0)
    assert found.attributes & found.attributes_mask & 0x40


@pytest.mark.parametrize("kind", ["symlink", "directory", "device"])
def test_statx_of_other_types(disk: Volume, kind: str) -> None:
    match kind:
        case "symlink":
            os.symlink("nowhere", disk.path / "it")
        case "directory":
            os.mkdir(disk.path / "it")
        case "device" if os.geteuid() == 0:
            os.mknod(disk.path / "it", 0o020600, os.makedev(5, 300))
        case _:
            os.mkfifo(disk.path / "it")
    node = disk.lookup(b"it").node
    assert disk(Op.STATX, node, 0, 0, 0xFFF).attr == disk(Op.GETATTR, node, 0).attr
    assert disk(Op.STATX, ROOT, 0, 0, 0xFFF).attr.ino == os.stat(disk.path).st_ino
