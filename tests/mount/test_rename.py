"""rename(2) and renameat2(2): replacing, NOREPLACE, EXCHANGE, and what must not work."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from pathlib import Path

from tests.mount import children
from tests.mount.conftest import Place
from tests.mount.expect import fails

NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
_libc = ctypes.CDLL(None, use_errno=True)


def renameat2(source: Path, target: Path, flags: int) -> int:
    """0 or an errno."""
    if _libc.renameat2(-100, os.fsencode(source), -100, os.fsencode(target), flags) == 0:
        return 0
    return ctypes.get_errno()


def test_noreplace(place: Place) -> None:
    (place.mnt / "a").write_text("a")
    (place.mnt / "b").write_text("b")
    assert renameat2(place.mnt / "a", place.mnt / "b", NOREPLACE) == errno.EEXIST
    assert renameat2(place.mnt / "a", place.mnt / "c", NOREPLACE) == 0
    assert (place.src / "c").read_text() == "a"
    (place.src / "from-host").write_text("h")
    (place.src / "from-host").rename(place.src / "unseen")
    assert renameat2(place.mnt / "b", place.mnt / "unseen", NOREPLACE) == errno.EEXIST
    assert sorted(os.listdir(place.src)) == ["b", "c", "unseen"]


def test_exchange(place: Place) -> None:
    (place.mnt / "file").write_text("file")
    (place.mnt / "directory" / "inside").mkdir(parents=True)
    numbers = [(place.mnt / name).stat().st_ino for name in ("file", "directory")]
    assert renameat2(place.mnt / "file", place.mnt / "directory", EXCHANGE) == 0
    assert (place.mnt / "directory").read_text() == "file" == (place.src / "directory").read_text()
    assert os.listdir(place.mnt / "file") == ["inside"]
    assert [(place.mnt / name).stat().st_ino for name in ("directory", "file")] == numbers
    assert renameat2(place.mnt / "file", place.mnt / "absent", EXCHANGE) == errno.ENOENT
    assert renameat2(place.mnt / "file", place.mnt / "directory", EXCHANGE | NOREPLACE) == errno.EINVAL


def test_whiteout_as_on_the_host(place: Place) -> None:
    outcomes = []
    for top in (place.twin, place.mnt):
        (top / "a").write_text("a")
        outcomes.append(renameat2(top / "a", top / "b", WHITEOUT))
    assert outcomes[1] == outcomes[0]
    if outcomes[0] == 0:
        found = (place.mnt / "a").lstat()
        assert stat.S_ISCHR(found.st_mode)
        assert found.st_rdev == 0


def test_replace_and_keep_the_number(place: Place) -> None:
    (place.mnt / "a").write_text("a")
    (place.mnt / "b").write_text("b")
    os.link(place.mnt / "b", place.mnt / "b2")
    number = (place.mnt / "a").stat().st_ino
    (place.mnt / "a").rename(place.mnt / "b")
    found = (place.mnt / "b").stat()
    assert (found.st_ino, found.st_nlink) == (number, 1)
    assert (place.mnt / "b2").stat().st_nlink == 1
    assert (place.mnt / "b2").read_text() == "b"
    assert not (place.mnt / "a").exists()


def test_directories(place: Place) -> None:
    for name in ("one/deep", "two", "full/x"):
        (place.mnt / name).mkdir(parents=True)
    (place.mnt / "file").touch()
    (place.mnt / "one").rename(place.mnt / "two")
    assert os.listdir(place.src / "two") == ["deep"]
    cases = [
        ("two", "full", {errno.ENOTEMPTY, errno.EEXIST}),
        ("two", "file", {errno.ENOTDIR}),
        ("file", "two", {errno.EISDIR}),
        ("two", "two/deep/below", {errno.EINVAL}),
        ("absent", "two", {errno.ENOENT}),
    ]
    for source, target, expected in cases:
        with fails(*expected):
            os.rename(place.mnt / source, place.mnt / target)


def test_across_filesystems(place: Place, real: str) -> None:
    (place.mnt / "a").touch()
    for call in (os.rename, os.link):
        with fails(errno.EXDEV):
            call(place.mnt / "a", place.twin / "a")


def test_open_file_follows_the_rename(place: Place) -> None:
    (place.mnt / "directory").mkdir()
    with (place.mnt / "a").open("w+b", buffering=0) as file:
        (place.mnt / "a").rename(place.mnt / "directory" / "b")
        file.write(b"after")
        assert os.fstat(file.fileno()).st_size == 5
    assert (place.src / "directory" / "b").read_bytes() == b"after"
    (place.mnt / "directory").rename(place.mnt / "moved")
    assert (place.mnt / "moved" / "b").read_bytes() == b"after"


def test_atomic_replacement_is_never_seen_absent(place: Place) -> None:
    """The way editors and databases save: a reader always finds the old or the new contents."""
    (place.mnt / "file").write_text("0" * 5000)
    writer = children.spawn(
        """
        os.chdir(sys.argv[1])
        print("ready", flush=True)
        for i in range(150):
            with open("new", "w") as file:
                file.write(str(i % 10) * 5000)
            os.rename("new", "file")
        """,
        place.mnt,
    )
    assert children.read_line(writer) == "ready"
    seen = 0
    while writer.poll() is None:
        text = (place.mnt / "file").read_text()
        assert len(text) == 5000
        assert len(set(text)) == 1
        seen += 1
    children.finish(writer)
    assert seen > 0
