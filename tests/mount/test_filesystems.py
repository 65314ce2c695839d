"""Volumes on other filesystems than the one that holds /tmp: with file handles, without them, and FUSE itself."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.mount import mounttable
from tests.mount.conftest import MountFactory, loop_filesystem
from tests.mount.harness import Mount, Runner
from tests.mount.test_inodes import numbers
from tests.mount.test_random import World, compare, one_call

pytestmark = pytest.mark.once

SIZES = {"ext4": 64, "xfs": 320, "btrfs": 128}


@pytest.fixture(params=["tmpfs", "ext4", "xfs", "btrfs", "overlay", "bindfs"])
def source(request: pytest.FixtureRequest, scratch: Path) -> Iterator[Path]:
    """An empty directory on a filesystem of that kind."""
    kind = str(request.param)
    if kind == "bindfs":
        below = scratch / "below"
        below.mkdir()
        with Mount("bindfs", below) as lower:
            yield lower.path
        return
    if kind == "tmpfs":
        path = scratch / "tmpfs"
        path.mkdir()
        mounttable.mount("tmpfs", path, "tmpfs", 0, "size=64m")
    elif kind == "overlay":
        path = scratch / "overlay"
        for name in ("lower", "upper", "work", "overlay"):
            (scratch / name).mkdir()
        (scratch / "lower" / "from-below").write_text("from below")
        data = ",".join(f"{name}dir={scratch / name}" for name in ("lower", "upper", "work"))
        mounttable.mount("overlay", path, "overlay", 0, data)
    else:
        path = loop_filesystem(scratch, kind, SIZES[kind])
    yield path
    mounttable.umount(path)


def test_a_volume_on_it(source: Path, mounts: MountFactory, real: str) -> None:
    """Random calls, many more files than descriptors, files without names, numbers: all as in a directory beside it."""
    volume, twin = source / "volume", source / "twin"
    volume.mkdir()
    twin.mkdir()
    # Without file handles, as on overlayfs, each file that the guest knows takes a descriptor.
    limit = 4096 if source.name == "overlay" else 1024
    mount = mounts(source=volume, runner=Runner(prefix=("prlimit", f"--nofile={limit}:{limit}")))
    rng = random.Random(11)
    history: list[str] = []
    with ExitStack() as stack:
        host, guest = World(twin, stack), World(mount.path, stack)
        for number in range(300):
            text, call = one_call(rng, number, list(host.open))
            history.append(text)
            compare(host.result(call), guest.result(call), history)
            if number % 40 == 0:
                mount.drop_dentries()
    many = volume / "many"
    many.mkdir()
    for i in range(1500):
        (many / f"f{i}").write_text(str(i))
    with os.scandir(mount.path / "many") as entries:
        assert sum(entry.stat().st_size for entry in entries) == sum(len(str(i)) for i in range(1500))
    for i in range(0, 1500, 7):
        assert (mount.path / "many" / f"f{i}").read_text() == str(i)
        (mount.path / "many" / f"f{i}").unlink()
    for top in (many, mount.path / "many"):
        assert len([name for name in os.listdir(top) if name.startswith("f")]) == 1500 - 215
    before = numbers(mount.path)
    assert before == numbers(volume)
    mount.remount()
    assert numbers(mount.path) == before


def test_a_hard_link_whose_other_name_goes(source: Path, mounts: MountFactory, real: str) -> None:
    """Also where the filesystem below gives each name an inode of its own, which ends with that name."""
    volume = source / "volume"
    volume.mkdir()
    mount = mounts("--cache", "none", source=volume)
    one, other = mount.path / "one", mount.path / "other"
    for make in (lambda: one.symlink_to("target"), lambda: one.write_text("text")):
        make()
        os.link(one, other, follow_symlinks=False)
        assert {one.lstat().st_ino, other.lstat().st_ino} == {(volume / "one").lstat().st_ino}
        one.unlink()
        assert other.lstat().st_ino == (volume / "other").lstat().st_ino
        assert os.readlink(other) == "target" if other.is_symlink() else other.read_text() == "text"
        other.unlink()
    assert not {"one", "other"} & set(os.listdir(volume))


def test_an_overlay_on_top(mounts: MountFactory, real: str, scratch: Path) -> None:
    """The mount as the lower layer of an overlay, as containers use one."""
    mount = mounts()
    (mount.path / "directory").mkdir()
    (mount.path / "directory" / "file").write_text("below")
    (mount.path / "gone").write_text("below")
    for name in ("upper", "work", "merged"):
        (scratch / name).mkdir()
    merged = scratch / "merged"
    data = f"lowerdir={mount.path},upperdir={scratch / 'upper'},workdir={scratch / 'work'}"
    mounttable.mount("overlay", merged, "overlay", 0, data)
    try:
        assert (merged / "directory" / "file").read_text() == "below"
        (merged / "directory" / "file").write_text("changed above")
        (merged / "gone").unlink()
        assert sorted(os.listdir(merged)) == ["directory"]
        assert (merged / "directory" / "file").read_text() == "changed above"
    finally:
        mounttable.umount(merged)
    assert (mount.path / "directory" / "file").read_text() == "below"
    assert (mount.path / "gone").exists()
