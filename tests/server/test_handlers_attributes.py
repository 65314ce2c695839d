"""GETATTR, SETATTR, ACCESS and STATFS."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from fusepipe.wire import Op
from tests.server.volume import ROOT, Volume, fails, me, needs_root

MODE, UID, GID, SIZE, ATIME, MTIME, ATIME_NOW, MTIME_NOW = 1, 2, 4, 8, 16, 32, 128, 256


def test_nothing_to_set(volume: Volume) -> None:
    before = volume(Op.GETATTR, ROOT, 0).attr
    assert volume.setattr(ROOT, 0) == before


def test_mode_is_masked(volume: Volume) -> None:
    node = volume.create(b"f")[0].node
    assert volume.setattr(node, MODE, mode=stat.S_IFDIR | 0o4711).mode == stat.S_IFREG | 0o4711


def test_chmod_of_a_symlink_is_refused(volume: Volume) -> None:
    (volume.path / "f").touch(0o600)
    node = volume(Op.SYMLINK, ROOT, b"link", b"f", *me()).entry.node
    with fails(errno.EOPNOTSUPP):
        volume.setattr(node, MODE, mode=0o777)
    assert stat.S_IMODE((volume.path / "f").stat().st_mode) == 0o600


@needs_root
def test_owner(volume: Volume) -> None:
    node = volume.create(b"f", mode=0o755)[0].node
    attr = volume.setattr(node, UID | GID | MODE, uid=1234, gid=5678, mode=0o6755)
    assert (attr.uid, attr.gid, attr.mode & 0o7777) == (1234, 5678, 0o6755)
    attr = volume.setattr(node, UID, uid=7)
    assert (attr.uid, attr.gid) == (7, 5678)
    attr = volume.setattr(node, GID, gid=8)
    assert (attr.uid, attr.gid) == (7, 8)
    attr = volume.setattr(node, UID | GID, uid=(1 << 32) - 1, gid=9)
    assert (attr.uid, attr.gid) == (7, 9)


@needs_root
def test_owner_and_times_of_a_symlink(volume: Volume) -> None:
    (volume.path / "f").touch()
    before = (volume.path / "f").stat()
    node = volume(Op.SYMLINK, ROOT, b"link", b"f", *me()).entry.node
    attr = volume.setattr(node, UID | MTIME, uid=5, mtime=7, mtime_ns=8)
    assert (attr.uid, attr.mtime, attr.mtime_ns) == (5, 7, 8)
    after = (volume.path / "f").stat()
    assert (after.st_uid, after.st_mtime_ns) == (before.st_uid, before.st_mtime_ns)


@pytest.mark.parametrize(("seconds", "nanoseconds"), [(0, 1), (-1, 999_999_999), (2**31 + 5, 7), (-(2**31), 0)])
def test_times(volume: Volume, seconds: int, nanoseconds: int) -> None:
    node = volume.create(b"f")[0].node
    before = volume(Op.GETATTR, node, 0).attr
    attr = volume.setattr(node, MTIME, mtime=seconds, mtime_ns=nanoseconds)
    assert (attr.mtime, attr.mtime_ns) == (seconds, nanoseconds)
    assert (attr.atime, attr.atime_ns) == (before.atime, before.atime_ns)
    attr = volume.setattr(node, ATIME, atime=seconds, atime_ns=nanoseconds)
    assert (attr.atime, attr.atime_ns) == (seconds, nanoseconds)


def test_times_now(volume: Volume) -> None:
    node = volume.create(b"f")[0].node
    volume.setattr(node, ATIME | MTIME, atime=1, mtime=2)
    attr = volume.setattr(node, ATIME | ATIME_NOW)
    assert attr.atime > 10**9
    assert attr.mtime == 2
    assert volume.setattr(node, MTIME_NOW).mtime > 10**9


def test_nanoseconds_that_would_mean_something_else(volume: Volume) -> None:
    node = volume.create(b"f")[0].node
    for nanoseconds in (10**9, (1 << 30) - 1, (1 << 30) - 2):  # the latter are UTIME_NOW and UTIME_OMIT
        with fails(errno.EINVAL):
            volume.setattr(node, MTIME, mtime=1, mtime_ns=nanoseconds)


def test_size(volume: Volume) -> None:
    entry, handle = volume.create(b"f")
    volume.write(handle, b"12345")
    assert volume.setattr(entry.node, SIZE, size=3).size == 3
    assert volume.setattr(entry.node, SIZE, handle, size=6).size == 6
    assert volume.read(handle) == b"123\0\0\0"
    reading = volume.open(entry.node, os.O_RDONLY)
    assert volume.setattr(entry.node, SIZE, reading, size=1).size == 1
    with fails(errno.EFBIG):
        volume.setattr(entry.node, SIZE, size=1 << 63)
    with fails(errno.EISDIR):
        volume.setattr(ROOT, SIZE, size=0)
    os.mkfifo(volume.path / "fifo")
    with fails(errno.EINVAL):
        volume.setattr(volume.lookup(b"fifo").node, SIZE, size=0)


def test_a_handle_must_be_one_of_the_node(volume: Volume) -> None:
    entry, handle = volume.create(b"f")
    other, _ = volume.create(b"g")
    with fails(errno.EBADF):
        volume(Op.GETATTR, other.node, handle)
    with fails(errno.EBADF):
        volume.setattr(other.node, SIZE, handle, size=0)
    with fails(errno.ESTALE):
        volume(Op.GETATTR, 77, handle)
    volume.release(handle)
    with fails(errno.EBADF):
        volume(Op.GETATTR, entry.node, handle)


def test_a_directory_handle_serves_too(volume: Volume) -> None:
    handle = volume(Op.OPENDIR, ROOT, 0).handle
    assert volume(Op.GETATTR, ROOT, handle).attr == volume(Op.GETATTR, ROOT, 0).attr


@needs_root
def test_ftruncate_works_after_chmod_0(volume: Volume, as_user: Callable[[Callable[[], None]], None]) -> None:
    """By a server that is not root, for which the mode counts."""
    volume.path.chmod(0o777)

    def check() -> None:
        with Volume(volume.path, privileged=False) as mine:
            entry, handle = mine.create(b"f")
            mine.write(handle, b"12345")
            mine.setattr(entry.node, MODE, mode=0)
            assert mine.setattr(entry.node, SIZE, handle, size=2).size == 2
            with fails(errno.EACCES):
                mine.setattr(entry.node, SIZE, size=1)
            assert mine.setattr(entry.node, MODE, handle, mode=0o600).mode & 0o777 == 0o600
            with fails(errno.EPERM):
                mine.setattr(entry.node, UID, uid=0)

    as_user(check)


@needs_root
def test_access_is_the_callers(volume: Volume) -> None:
    volume.path.chmod(0o755)
    node = volume.create(b"f", mode=0o640)[0].node
    volume.setattr(node, UID | GID, uid=1000, gid=2000)
    volume(Op.ACCESS, node, os.R_OK | os.W_OK, 1000, 1, ())
    volume(Op.ACCESS, node, os.R_OK, 1, 2000, ())
    volume(Op.ACCESS, node, os.R_OK, 1, 1, (3, 2000))
    for identity in ((1, 1, ()), (1, 1, (3,))):
        with fails(errno.EACCES):
            volume(Op.ACCESS, node, os.R_OK, *identity)
    with fails(errno.EACCES):
        volume(Op.ACCESS, node, os.W_OK, 1, 2000, ())
    volume(Op.ACCESS, node, os.W_OK, 0, 0, ())
    with fails(errno.EACCES):
        volume(Op.ACCESS, node, os.X_OK, 0, 0, ())
    with fails(errno.EINVAL):
        volume(Op.ACCESS, node, os.R_OK, (1 << 32) - 1, 0, ())


def test_statfs(volume: Volume) -> None:
    reply = volume(Op.STATFS, ROOT)
    st = os.statvfs(volume.path)
    assert (reply.bsize, reply.frsize, reply.blocks) == (st.f_bsize, st.f_frsize, st.f_blocks)
    assert (reply.files, reply.namemax) == (st.f_files, st.f_namemax)
    assert reply.bavail <= reply.bfree <= reply.blocks


@needs_root
def test_other_filesystems_in_the_volume(disk: Volume, tmp_path: Path, mounted: Callable[[str, Path], None]) -> None:
    """Their inode numbers are marked, do not meet, and are the same for every session; STATFS is theirs."""
    for name in ("a", "b"):
        (disk.path / name).mkdir()
        mounted("tmpfs", disk.path / name)
        (disk.path / name / "file").write_bytes(name.encode())
    numbers: list[list[int]] = []
    for _ in range(2):
        with Volume(disk.path) as volume:
            roots = [volume.lookup(b"a"), volume.lookup(b"b")]
            files = [volume.lookup(b"file", root.node) for root in roots]
            handle = volume(Op.OPENDIR, roots[0].node, 0).handle
            listed = {entry.name: entry for entry in volume.page(handle)}
            assert listed[b"file"].ino == files[0].attr.ino
            assert listed[b"file"].node == files[0].node
            assert listed[b"."].ino == roots[0].attr.ino
            assert volume.read(volume.open(files[1].node)) == b"b"
            assert volume.lookup(b"..", roots[0].node).node == ROOT
            assert volume(Op.STATFS, files[0].node) != volume(Op.STATFS, ROOT)
            assert volume.count("filesystems") == 3
            numbers.append([entry.attr.ino for entry in (*roots, *files)])
    assert numbers[0] == numbers[1]
    assert len(set(numbers[0])) == 4
    assert all(number >> 63 for number in numbers[0])
