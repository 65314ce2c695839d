"""TMPFILE, and LINK of what it made."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from fusepipe.wire import Op
from tests.server.volume import ROOT, Volume, fails, me, needs_root


def tmpfile(
    volume: Volume, flags: int = os.O_RDWR, mode: int = 0o600, umask: int = 0, parent: int = ROOT
) -> tuple[int, int]:
    """Node and handle."""
    reply = volume(Op.TMPFILE, parent, flags, mode, umask, *me())
    assert stat.S_ISREG(reply.entry.attr.mode)
    assert reply.entry.attr.nlink == 0
    return reply.entry.node, reply.handle


def test_it_lives_as_long_as_its_handle(volume: Volume) -> None:
    node, handle = tmpfile(volume, mode=0o4666, umask=0o27)
    assert volume(Op.GETATTR, node, 0).attr.mode == stat.S_IFREG | 0o4640
    volume.write(handle, b"data")
    assert volume.read(handle) == b"data"
    other = volume.open(node)
    assert volume.read(other) == b"data"
    assert os.listdir(volume.path) == []
    volume.release(handle)
    volume.release(other)
    volume.forget(node)
    assert volume.is_empty()


def test_it_gets_a_name(volume: Volume) -> None:
    node, handle = tmpfile(volume)
    volume.write(handle, b"complete")
    linked = volume(Op.LINK, node, ROOT, b"name").entry
    assert (linked.node, linked.attr.nlink) == (node, 1)
    assert (volume.path / "name").read_bytes() == b"complete"
    assert volume.lookup(b"name").node == node
    volume.release(handle)
    volume.forget(node, 3)
    assert volume.is_empty()


def test_it_gets_none_with_o_excl(volume: Volume) -> None:
    node, _ = tmpfile(volume, os.O_RDWR | os.O_EXCL)
    with fails(errno.ENOENT):
        volume(Op.LINK, node, ROOT, b"name")


def test_many_at_once_are_different_files(volume: Volume) -> None:
    made = [tmpfile(volume) for _ in range(50)]
    assert len({node for node, _ in made}) == 50
    for number, (_, handle) in enumerate(made):
        volume.write(handle, str(number).encode())
    assert [volume.read(handle) for _, handle in made] == [str(number).encode() for number in range(50)]


def test_errors(volume: Volume) -> None:
    entry, _ = volume.create(b"file")
    with fails(errno.ENOTDIR):
        tmpfile(volume, parent=entry.node)
    with fails(errno.EINVAL):
        tmpfile(volume, os.O_RDONLY)
    with fails(errno.ESTALE):
        tmpfile(volume, parent=99)
    assert volume.count("handles") == 1


def test_a_read_only_volume(open_path: Path, serve: Callable[..., Volume]) -> None:
    volume = serve(open_path, read_only=True)
    with fails(errno.EROFS):
        tmpfile(volume)


def test_without_descriptors(open_path: Path, serve: Callable[..., Volume]) -> None:
    volume = serve(open_path, budget=20)
    made = []
    with fails(errno.ENFILE):
        for _ in range(100):
            made.append(tmpfile(volume))
    assert 5 < len(made) < 20
    for node, handle in made:
        volume.release(handle)
        volume.forget(node)
    assert volume.is_empty()


@needs_root
@pytest.mark.parametrize("set_gid", [False, True])
def test_it_belongs_to_its_maker(disk: Volume, set_gid: bool) -> None:
    os.chown(disk.path, 0, 5000)
    os.chmod(disk.path, 0o2775 if set_gid else 0o775)
    with fails(errno.EACCES):
        disk(Op.TMPFILE, ROOT, os.O_RDWR, 0o644, 0, 4000, 4001, ())
    attr = disk(Op.TMPFILE, ROOT, os.O_RDWR, 0o644, 0, 4000, 4001, (5000,)).entry.attr
    assert (attr.uid, attr.gid) == (4000, 5000 if set_gid else 4001)
