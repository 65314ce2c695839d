"""What an open file can do whatever became of its name and its mode."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.mount import children
from tests.mount.conftest import Place
from tests.mount.expect import fails
from tests.mount.harness import eventually

USER = 12345


@pytest.mark.parametrize("user", [0, USER])
def test_ftruncate_after_chmod_0(place: Place, user: int) -> None:
    place.src.chmod(0o777)
    children.run(
        """
        fd = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY, 0o600)
        os.write(fd, b"0123456789")
        os.fchmod(fd, 0)
        os.ftruncate(fd, 4)
        assert os.fstat(fd).st_size == 4
        os.ftruncate(fd, 100)
        assert os.fstat(fd).st_size == 100
        os.pwrite(fd, b"end", 97)
        """,
        place.mnt / "file",
        user=user,
    )
    assert (place.src / "file").read_bytes() == b"0123" + bytes(93) + b"end"
    assert (place.src / "file").stat().st_mode & 0o777 == 0


def test_a_file_created_with_mode_0_is_usable(place: Place) -> None:
    place.src.chmod(0o777)
    children.run(
        """
        fd = os.open(sys.argv[1], os.O_CREAT | os.O_EXCL | os.O_RDWR, 0)
        os.write(fd, b"0123456789")
        os.ftruncate(fd, 3)
        assert os.pread(fd, 10, 0) == b"012"
        """,
        place.mnt / "file",
        user=USER,
    )
    assert (place.src / "file").stat().st_size == 3


@pytest.mark.parametrize("where", ["guest", "host"])
@pytest.mark.parametrize("forget", [False, True])
def test_an_unlinked_open_file(place: Place, where: str, forget: bool) -> None:
    path = place.mnt / "file"
    path.write_bytes(b"before")
    number = path.stat().st_ino
    with path.open("r+b", buffering=0) as file:
        ((place.mnt if where == "guest" else place.src) / "file").unlink()
        if forget:
            place.mount.drop_dentries()
        assert file.read() == b"before"
        assert file.write(b" and after") == 10
        found = os.fstat(file.fileno())
        assert (found.st_ino, found.st_size) == (number, 16)
        if where == "guest":
            assert found.st_nlink == 0
        os.ftruncate(file.fileno(), 8)
        os.fchmod(file.fileno(), 0o640)
        os.fsync(file.fileno())
        assert os.pread(file.fileno(), 100, 0) == b"before a"
        assert os.fstat(file.fileno()).st_mode & 0o777 == 0o640
        os.utime(file.fileno(), ns=(5, 7))
        assert os.fstat(file.fileno()).st_mtime_ns == 7
    eventually(lambda: not os.path.lexists(place.mnt / "file"), 10, "seeing that the name is gone")


def test_a_file_replaced_by_rename_stays_readable(place: Place) -> None:
    target, source = place.mnt / "target", place.mnt / "source"
    target.write_text("old")
    source.write_text("new!")
    with target.open("rb") as held:
        source.rename(target)
        assert held.read() == b"old"
        assert os.fstat(held.fileno()).st_nlink == 0
        assert target.read_text() == "new!"


def test_a_removed_working_directory(place: Place) -> None:
    """A program stands in a directory that goes away: it gets ENOENT, not a crash, and can leave."""
    (place.mnt / "here").mkdir()
    out = children.run(
        """
        os.chdir(sys.argv[1])
        os.rmdir(sys.argv[1])
        assert os.listdir(".") == []
        assert os.stat(".").st_nlink == 0 or os.stat(".").st_nlink == 2
        try:
            open("file", "w")
        except FileNotFoundError:
            print("ENOENT")
        os.chdir("/")
        """,
        place.mnt / "here",
    )
    assert out == "ENOENT\n"


def test_o_trunc_and_o_excl_reach_the_host(place: Place) -> None:
    path = place.mnt / "file"
    path.write_text("long contents")
    with fails(errno.EEXIST):
        os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    (place.src / "other").write_text("the host's")
    with fails(errno.EEXIST):
        os.open(place.mnt / "other", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
    assert (place.src / "file").stat().st_size == 0


def test_o_tmpfile_is_answered(place: Place) -> None:
    """Either it works as on the host or the errno tells programs to use another way."""
    try:
        fd = os.open(place.mnt, os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError as error:
        assert error.errno in {95, 21, 38}, error  # EOPNOTSUPP, EISDIR (older kernels), ENOSYS
    else:
        os.write(fd, b"x")
        os.close(fd)
    assert list(Path(place.src).iterdir()) == []
