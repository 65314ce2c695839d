"""Names are bytes: any but NUL and slash, up to 255 of them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.conftest import Place
from tests.mount.expect import fails

ALL_NAMES = [bytes([b]) for b in range(1, 256) if b not in b"/."] + [b"a%cz" % b for b in range(1, 256) if b != 0x2F]
LONGEST = [b"x" * 255, b"\xff" * 255, "ä".encode() * 127 + b"e", b"\n" * 255, b" " * 255]
ODD = [
    b"...",
    b". ",
    b"..a",
    b"-rf",
    b"*",
    b"~",
    b"$(x)",
    b"a\tb",
    b"CON",
    b"\xf0\x9f\x98\x80",
    b"\xc3\x28",
    b"\xed\xa0\x80",
]


def at(directory: Path, name: bytes) -> bytes:
    return os.fsencode(directory) + b"/" + name


@pytest.mark.parametrize("creator", ["guest", "host"])
def test_every_byte(place: Place, creator: str) -> None:
    maker, reader = (place.mnt, place.src) if creator == "guest" else (place.src, place.mnt)
    names = set(ALL_NAMES + LONGEST + ODD)
    for name in names:
        with open(at(maker, name), "wb") as file:
            file.write(name)
    assert set(os.listdir(os.fsencode(reader))) == names
    for name in names:
        with open(at(reader, name), "rb") as file:
            assert file.read() == name
    for name in names:
        os.unlink(at(place.mnt, name))
    assert os.listdir(place.src) == []


def test_every_kind_of_call_takes_odd_names(place: Place) -> None:
    name, other = b"\xff\n\x01 \xc3\x28", b"\\ \x7f\x80"
    os.mkdir(at(place.mnt, name))
    os.rename(at(place.mnt, name), at(place.mnt, other))
    os.symlink(name * 20, at(place.mnt, other + b"/" + name))
    assert os.readlink(at(place.src, other + b"/" + name)) == name * 20
    os.link(at(place.mnt, other + b"/" + name), at(place.mnt, other + b"/hard"), follow_symlinks=False)
    os.mknod(at(place.mnt, name))
    os.setxattr(at(place.mnt, name), b"user.\xff\xfe", b"\0\xff")
    assert os.getxattr(at(place.src, name), b"user.\xff\xfe") == b"\0\xff"
    os.chmod(at(place.mnt, name), 0o600)
    os.unlink(at(place.mnt, other + b"/" + name))
    os.unlink(at(place.mnt, other + b"/hard"))
    os.rmdir(at(place.mnt, other))
    assert os.listdir(os.fsencode(place.src)) == [name]


def test_too_long_names(place: Place) -> None:
    name = b"y" * 256
    calls: list[Callable[[], object]] = [
        lambda: os.stat(at(place.mnt, name)),
        lambda: os.mkdir(at(place.mnt, name)),
        lambda: os.symlink("x", at(place.mnt, name)),
        lambda: os.open(at(place.mnt, name), os.O_CREAT | os.O_WRONLY),
        lambda: os.rename(at(place.mnt, b"short"), at(place.mnt, name)),
        lambda: os.link(at(place.mnt, b"short"), at(place.mnt, name)),
    ]
    (place.mnt / "short").touch()
    for call in calls:
        with fails(errno.ENAMETOOLONG):
            call()


def test_deep_paths_beyond_path_max(place: Place) -> None:
    """40 directories with names of 250 bytes: no path string of the host could name the last one."""
    fd = os.open(place.mnt, os.O_RDONLY)
    for i in range(40):
        name = f"{i:02d}" + "d" * 248
        os.mkdir(name, dir_fd=fd)
        deeper = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    with os.fdopen(os.open("file", os.O_CREAT | os.O_RDWR, 0o644, dir_fd=fd), "w+b") as file:
        file.write(b"deep")
        file.seek(0)
        assert file.read() == b"deep"
    assert os.listdir(fd) == ["file"]
    os.rename("file", "renamed", src_dir_fd=fd, dst_dir_fd=fd)
    os.unlink("renamed", dir_fd=fd)
    os.close(fd)
