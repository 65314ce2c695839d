"""Inode numbers: the host's, stable, one per file, and never mistaken for those of a deleted file."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.mount import mounttable
from tests.mount.conftest import MountFactory, Place
from tests.mount.expect import fails
from tests.mount.harness import Runner


def numbers(top: Path) -> dict[str, int]:
    """Relative name -> inode number as lstat shows it, for everything below `top` and for `top` itself."""
    found = {".": top.lstat().st_ino}
    for directory, names, files in os.walk(top):
        for name in names + files:
            path = Path(directory, name)
            found[str(path.relative_to(top))] = path.lstat().st_ino
    return found


def build_tree(top: Path) -> None:
    for i in range(5):
        directory = top / f"d{i}" / "deeper"
        directory.mkdir(parents=True)
        for j in range(4):
            (directory / f"f{j}").write_text(f"{i}{j}")
        (directory / "link").symlink_to("f0")
    os.mkfifo(top / "fifo")


def test_numbers_are_the_hosts(place: Place) -> None:
    build_tree(place.src)
    assert numbers(place.mnt) == numbers(place.src)
    for directory, names, files in os.walk(place.mnt):
        shown = {entry.name: entry.inode() for entry in os.scandir(directory)}
        assert shown == {name: Path(directory, name).lstat().st_ino for name in names + files}


def test_numbers_of_new_files_are_the_hosts(place: Place) -> None:
    build_tree(place.mnt)
    assert numbers(place.mnt) == numbers(place.src)


def test_numbers_survive_a_remount(mounts: MountFactory) -> None:
    mount = mounts()
    build_tree(mount.path)
    before = numbers(mount.path)
    mount.remount()
    assert numbers(mount.path) == before == numbers(mount.source)


def test_hard_links_share_one_number(place: Place) -> None:
    first, second, third = (place.mnt / name for name in ("first", "second", "third"))
    first.write_text("one file")
    os.link(first, second)
    os.link(place.src / "first", place.src / "third")
    found = [path.stat() for path in (first, second, third)]
    assert len({s.st_ino for s in found}) == 1
    assert len({s.st_dev for s in found}) == 1
    assert third.stat().st_nlink == 3
    second.write_text("changed")
    assert third.read_text() == first.read_text() == "changed"
    first.unlink()
    third.unlink()
    assert second.stat().st_nlink == 1


@pytest.mark.once
def test_a_number_used_again_is_another_file(ext4: Path, mounts: MountFactory) -> None:
    """The guest still holds the old file open while the host gives its number to a new one."""
    mount = mounts(source=ext4)
    old, new = mount.path / "old", mount.path / "new"
    old.write_text("the old file")
    with old.open("r+b") as kept:
        (ext4 / "old").unlink()
        (ext4 / "new").write_text("new")
        assert new.read_text() == "new"
        assert new.stat().st_size == 3
        assert kept.read() == b"the old file"
        assert os.fstat(kept.fileno()).st_size == 12
    mount.drop_dentries()
    assert new.read_text() == "new"


@pytest.mark.once
def test_a_late_forget_of_the_old_file_leaves_the_new_one(ext4: Path, mounts: MountFactory, real: str) -> None:
    """Files deleted on the host, new ones with their numbers, the guest looks those up, and only then forgets the old.

    With few descriptors: an inode that the server holds open keeps its number, one that it knows by handle does not.
    """
    for i in range(500):
        os.mknod(ext4 / f"filler{i}")
    mount = mounts(source=ext4, runner=Runner(prefix=("prlimit", "--nofile=256:256")))
    old = {}
    for i in range(40):
        (ext4 / f"a{i}").write_text("a" * 10)
        old[(mount.path / f"a{i}").stat().st_ino] = i
    for i in range(500):
        (mount.path / f"filler{i}").stat()
    for i in range(40):
        (ext4 / f"a{i}").unlink()
    reused = 0
    held = []
    with ExitStack() as stack:
        for i in range(40):
            (ext4 / f"b{i}").write_text("b" * (20 + i))
            reused += (ext4 / f"b{i}").stat().st_ino in old
            held.append(stack.enter_context((mount.path / f"b{i}").open("rb")))
        mount.drop_dentries()  # FORGET of the old ones is sent; the new ones are held by open files
        time.sleep(0.1)
        for i, file in enumerate(held):
            assert os.fstat(file.fileno()).st_size == 20 + i
            assert file.read() == b"b" * (20 + i)
            assert (mount.path / f"b{i}").stat().st_size == 20 + i
    assert reused > 0, "the host gave no number again"


@pytest.mark.once
def test_numbers_used_again_under_load(ext4: Path, mounts: MountFactory) -> None:
    """Threads create, delete (in the mount and behind its back) and read, while the kernel forgets all the time."""
    mount = mounts(source=ext4)
    workers, rounds = 4, 60
    wrong: list[str] = []
    done = threading.Event()

    def work(who: int) -> None:
        for i in range(rounds):
            name = f"w{who}-{i}"
            text = f"{name} " * (1 + i % 7)
            writer = mount.path if i % 3 else ext4
            (writer / name).write_text(text)
            try:
                found = (mount.path / name).read_text()
                size = (mount.path / name).stat().st_size
            except OSError as error:
                wrong.append(f"{name}: {error}")
                continue
            if found != text or size != len(text):
                wrong.append(f"{name}: {found!r} of {size} bytes instead of {text!r}")
            remover = ext4 if i % 2 else mount.path
            (remover / name).unlink()

    def forget() -> None:
        while not done.wait(0.02):
            mount.drop_dentries()

    forgetter = threading.Thread(target=forget)
    threads = [threading.Thread(target=work, args=(who,)) for who in range(workers)]
    for thread in (*threads, forgetter):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    forgetter.join()
    assert not wrong, "\n".join(wrong[:10])
    time.sleep(1.1)  # what was deleted on the host may be believed for the cache's time
    assert list(mount.path.iterdir()) == []


@pytest.fixture
def nested(scratch: Path) -> Iterator[Path]:
    """A directory with two tmpfs in it, which have the same inode numbers."""
    source = scratch / "volume"
    inner = [source / "one", source / "two"]
    for path in inner:
        path.mkdir(parents=True)
        mounttable.mount("tmpfs", path, "tmpfs", 0, "size=1m,mode=755")
        (path / "file").write_text(f"in {path.name}")
        (path / "directory").mkdir()
    (source / "file").write_text("outside")
    assert (inner[0] / "file").stat().st_ino == (inner[1] / "file").stat().st_ino
    yield source
    for path in inner:
        mounttable.umount(path, mounttable.MNT_DETACH)


def test_other_filesystems_inside_do_not_collide(nested: Path, mounts: MountFactory, real: str) -> None:
    """Shown are different numbers for all, which stay after a remount."""
    mount = mounts(source=nested)
    for name in ("one", "two"):
        seen = mount.path / name
        assert (seen / "file").read_text() == f"in {name}"
        (seen / "directory" / "new").write_text("new")
        assert (nested / name / "directory" / "new").read_text() == "new"
    before = numbers(mount.path)
    assert len(set(before.values())) == len(before)
    assert before["file"] == (nested / "file").stat().st_ino
    mount.remount()
    assert numbers(mount.path) == before


@pytest.mark.once
def test_nothing_moves_between_filesystems_inside(nested: Path, mounts: MountFactory) -> None:
    """Renames and links between them answer EXDEV, as on the host; programs then copy."""
    mount = mounts(source=nested)
    for call in (os.rename, os.link):
        with fails(errno.EXDEV):
            call(mount.path / "one" / "file", mount.path / "moved")
    shutil.move(mount.path / "one" / "file", mount.path / "two" / "moved")
    assert (nested / "two" / "moved").read_text() == "in one"
    assert not (nested / "one" / "file").exists()
