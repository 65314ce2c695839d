"""LOOKUP, READLINK, LINK, UNLINK, RMDIR and RENAME."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from fusepipe.wire import Op
from tests.server.volume import ROOT, Volume, fails, me

NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4


def test_lookup_gives_what_lstat_gives(volume: Volume) -> None:
    path = volume.path / "file"
    path.write_bytes(b"12345")
    os.utime(path, ns=(-1_500_000_001, 5_000_000_000_000_000_007))
    entry = volume.lookup(b"file")
    st = path.lstat()
    a = entry.attr
    assert (a.ino, a.mode, a.nlink, a.uid, a.gid) == (st.st_ino, st.st_mode, st.st_nlink, st.st_uid, st.st_gid)
    assert (a.size, a.blksize, a.blocks, a.rdev) == (5, st.st_blksize, st.st_blocks, 0)
    assert a.atime * 10**9 + a.atime_ns == st.st_atime_ns
    assert a.mtime * 10**9 + a.mtime_ns == st.st_mtime_ns
    assert a.ctime * 10**9 + a.ctime_ns == st.st_ctime_ns
    assert entry.node != entry.attr.ino


def test_lookup_counts_each_time(volume: Volume) -> None:
    (volume.path / "file").touch()
    nodes = {volume.lookup(b"file").node for _ in range(3)}
    assert len(nodes) == 1
    node = nodes.pop()
    volume.forget(node, 2)
    volume(Op.GETATTR, node, 0)
    volume.forget(node)
    with fails(errno.ESTALE):
        volume(Op.GETATTR, node, 0)
    assert volume.is_empty()
    assert volume.lookup(b"file").node != node


@pytest.mark.parametrize("name", [b"a/b", b"/", b"", b"a\0b", b"\0"])
def test_names_are_single_components(volume: Volume, name: bytes) -> None:
    node = volume.lookup(b"..").node
    calls: list[Callable[[], object]] = [
        lambda: volume.lookup(name),
        lambda: volume.mkdir(name),
        lambda: volume.create(name),
        lambda: volume(Op.MKNOD, ROOT, name, stat.S_IFREG, 0, 0, *me()),
        lambda: volume(Op.SYMLINK, ROOT, name, b"x", *me()),
        lambda: volume(Op.LINK, node, ROOT, name),
        lambda: volume(Op.UNLINK, ROOT, name),
        lambda: volume(Op.RMDIR, ROOT, name),
        lambda: volume(Op.RENAME, ROOT, name, ROOT, b"x", 0),
        lambda: volume(Op.RENAME, ROOT, b"x", ROOT, name, 0),
    ]
    for call in calls:
        with fails(errno.EINVAL):
            call()


@pytest.mark.parametrize("name", [b".", b".."])
def test_dots_are_never_made_or_removed(volume: Volume, name: bytes) -> None:
    for call in (
        lambda: volume.mkdir(name),
        lambda: volume(Op.RMDIR, ROOT, name),
        lambda: volume(Op.RENAME, ROOT, name, ROOT, b"x", 0),
    ):
        with fails(errno.EINVAL):
            call()


def test_every_other_byte_is_a_name(disk: Volume) -> None:
    for value in set(range(1, 256)) - {ord("/")}:
        name = b"n" + bytes([value])
        _, handle = disk.create(name)
        disk.release(handle)
        assert disk.lookup(name).attr.nlink == 1
    assert len(os.listdir(os.fsencode(disk.path))) == 254


def test_the_longest_name(volume: Volume) -> None:
    volume.mkdir(b"x" * 255)
    with fails(errno.ENAMETOOLONG):
        volume.mkdir(b"x" * 256)
    with fails(errno.ENAMETOOLONG):
        volume.lookup(b"x" * 256)


def test_symlinks_are_not_followed(volume: Volume) -> None:
    os.symlink("/etc", volume.path / "out")
    entry = volume.lookup(b"out")
    assert stat.S_ISLNK(entry.attr.mode)
    assert volume(Op.READLINK, entry.node).target == b"/etc"
    with fails(errno.ENOTDIR):
        volume.lookup(b"passwd", entry.node)
    with fails(errno.ELOOP):
        volume.open(entry.node, os.O_RDONLY)
    with fails(errno.ENOTDIR):
        volume(Op.OPENDIR, entry.node, 0)
    with fails(errno.ELOOP):
        volume.create(b"out", flags=os.O_RDWR)


def test_readlink_of_something_else(volume: Volume) -> None:
    with fails(errno.EINVAL):
        volume(Op.READLINK, ROOT)


def test_dot_and_dot_dot_stay_inside(volume: Volume, tmp_path: Path) -> None:
    inner = volume.mkdir(b"inner", volume.mkdir(b"outer").node)
    outer = volume.lookup(b"outer")
    assert volume.lookup(b".", inner.node) == volume.lookup(b"inner", outer.node)
    assert volume.lookup(b"..", inner.node).node == outer.node
    assert volume.lookup(b"..", outer.node).node == ROOT
    assert volume.lookup(b"..").node == ROOT
    file = volume.create(b"file")[0]
    assert volume.lookup(b".", file.node) == file
    with fails(errno.ENOTDIR):
        volume.lookup(b"..", file.node)


def test_dot_dot_of_a_directory_that_was_moved_out(disk: Volume, tmp_path: Path) -> None:
    inner = disk.mkdir(b"inner")
    os.rename(disk.path / "inner", tmp_path / "moved")
    with fails(errno.ESTALE):
        disk.lookup(b"..", inner.node)


def test_made_up_nodes_are_stale(volume: Volume) -> None:
    for node in (0, 2, 1 << 32, (1 << 32) | 1, (1 << 64) - 1, 1 << 63, 10**6):
        with fails(errno.ESTALE):
            volume.lookup(b"x", node)


def test_hard_links_are_one_inode(volume: Volume) -> None:
    entry, handle = volume.create(b"one")
    volume.release(handle)
    linked = volume(Op.LINK, entry.node, ROOT, b"two").entry
    assert (linked.node, linked.attr.nlink) == (entry.node, 2)
    volume(Op.UNLINK, ROOT, b"one")
    assert volume(Op.GETATTR, entry.node, 0).attr.nlink == 1
    with fails(errno.EEXIST):
        volume(Op.LINK, entry.node, ROOT, b"two")
    volume.forget(entry.node, 2)
    assert volume.is_empty()


def test_a_symlink_can_be_linked(volume: Volume) -> None:
    entry = volume(Op.SYMLINK, ROOT, b"link", b"nowhere", *me()).entry
    volume(Op.LINK, entry.node, ROOT, b"again")
    assert os.readlink(volume.path / "again") == "nowhere"


def test_a_directory_cannot_be_linked(volume: Volume) -> None:
    with fails(errno.EPERM):
        volume(Op.LINK, volume.mkdir(b"d").node, ROOT, b"again")


def test_unlink_and_rmdir(volume: Volume) -> None:
    volume.mkdir(b"d")
    (volume.path / "d" / "f").touch()
    with fails(errno.EISDIR):
        volume(Op.UNLINK, ROOT, b"d")
    with fails(errno.ENOTEMPTY):
        volume(Op.RMDIR, ROOT, b"d")
    with fails(errno.ENOTDIR):
        volume(Op.RMDIR, volume.lookup(b"d").node, b"f")
    volume(Op.UNLINK, volume.lookup(b"d").node, b"f")
    volume(Op.RMDIR, ROOT, b"d")
    with fails(errno.ENOENT):
        volume(Op.UNLINK, ROOT, b"d")
    with fails(errno.ENOENT):
        volume.lookup(b"d")


def test_a_removed_directory_is_still_there_for_who_is_in_it(volume: Volume) -> None:
    node = volume.mkdir(b"d").node
    volume(Op.RMDIR, ROOT, b"d")
    assert stat.S_ISDIR(volume(Op.GETATTR, node, 0).attr.mode)
    with fails(errno.ENOENT):
        volume.mkdir(b"x", node)
    volume.forget(node)
    assert volume.is_empty()


def test_rename(volume: Volume) -> None:
    entry, handle = volume.create(b"a")
    other, other_handle = volume.create(b"b")
    volume.write(handle, b"a's")
    with fails(errno.EEXIST):
        volume(Op.RENAME, ROOT, b"a", ROOT, b"b", NOREPLACE)
    volume(Op.RENAME, ROOT, b"a", ROOT, b"b", EXCHANGE)
    assert volume.lookup(b"b").node == entry.node
    volume(Op.RENAME, ROOT, b"b", ROOT, b"a", 0)
    assert volume.lookup(b"a").node == entry.node
    assert volume(Op.GETATTR, other.node, 0).attr.nlink == 0
    assert volume(Op.GETATTR, other.node, other_handle).attr.nlink == 0
    with fails(errno.EINVAL):
        volume(Op.RENAME, ROOT, b"a", ROOT, b"b", 8)
    with fails(errno.ENOENT):
        volume(Op.RENAME, ROOT, b"missing", ROOT, b"b", 0)
    assert volume.read(handle) == b"a's"


def test_rename_with_whiteout(disk: Volume) -> None:
    disk.create(b"a")
    disk(Op.RENAME, ROOT, b"a", ROOT, b"b", WHITEOUT)
    left = disk.lookup(b"a").attr
    assert stat.S_ISCHR(left.mode)
    assert left.rdev == 0


def test_a_directory_cannot_move_below_itself(volume: Volume) -> None:
    node = volume.mkdir(b"d").node
    with fails(errno.EINVAL):
        volume(Op.RENAME, ROOT, b"d", node, b"x", 0)


def test_a_directory_that_was_replaced_is_still_there(volume: Volume) -> None:
    volume.mkdir(b"a")
    node = volume.mkdir(b"b").node
    volume(Op.RENAME, ROOT, b"a", ROOT, b"b", 0)
    assert volume.count("pinned") == 1
    assert stat.S_ISDIR(volume(Op.GETATTR, node, 0).attr.mode)
    volume(Op.RENAME, ROOT, b"b", ROOT, b"b", 0)
    assert volume.count("pinned") == 1


def test_read_only_volumes_change_nothing(volume: Volume, serve: Callable[..., Volume]) -> None:
    (volume.path / "file").write_bytes(b"x")
    (volume.path / "dir").mkdir()
    ro = serve(volume.path, read_only=True)
    node = ro.lookup(b"file").node
    refused: list[Callable[[], object]] = [
        lambda: ro.mkdir(b"n"),
        lambda: ro.create(b"n"),
        lambda: ro.create(b"file"),
        lambda: ro(Op.MKNOD, ROOT, b"n", stat.S_IFREG, 0, 0, *me()),
        lambda: ro(Op.SYMLINK, ROOT, b"n", b"t", *me()),
        lambda: ro(Op.LINK, node, ROOT, b"n"),
        lambda: ro(Op.UNLINK, ROOT, b"file"),
        lambda: ro(Op.RMDIR, ROOT, b"dir"),
        lambda: ro(Op.RENAME, ROOT, b"file", ROOT, b"n", 0),
        lambda: ro.setattr(node, 1, mode=0),
        lambda: ro.setattr(node, 8, size=0),
        lambda: ro.setattr(node, 256),
        lambda: ro(Op.SETXATTR, node, b"user.x", b"1", 0),
        lambda: ro(Op.REMOVEXATTR, node, b"user.x"),
        lambda: ro.open(node, os.O_WRONLY),
        lambda: ro.open(node, os.O_RDWR),
        lambda: ro.open(node, os.O_RDONLY | os.O_TRUNC),
        lambda: ro(Op.ACCESS, node, os.W_OK, *me()),
    ]
    for call in refused:
        with fails(errno.EROFS):
            call()
    handle = ro.open(node, os.O_RDONLY)
    with fails(errno.EROFS):
        ro.write(handle, b"y")
    assert ro.read(handle) == b"x"
    assert sorted(os.listdir(volume.path)) == ["dir", "file"]
