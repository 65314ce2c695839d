"""Nodes and handles that were never given, are given back or somebody else's; files of kinds that nobody opens."""

import os
import stat
from pathlib import Path
from random import Random
from typing import Any

import pytest

from fusepipe.server import ServerOptions
from fusepipe.wire import Op
from tests.hostile.conftest import ME, Guests, Place, hostile
from tests.hostile.rogue import Rogue
from tests.server.volume import needs_root

ROOT = 1
CLEANUP = 64
BY_NODE: list[tuple[Any, ...]] = [
    (Op.LOOKUP, "n", b"x"),
    (Op.GETATTR, "n", 0),
    (Op.SETATTR, "n", 0, 1, 0o777, 0, 0, 0, 0, 0, 0, 0),
    (Op.READLINK, "n"),
    (Op.MKNOD, "n", b"x", stat.S_IFREG | 0o600, 0, 0, *ME),
    (Op.MKDIR, "n", b"x", 0o700, 0, *ME),
    (Op.SYMLINK, "n", b"x", b"y", *ME),
    (Op.LINK, "n", ROOT, b"x"),
    (Op.LINK, ROOT, "n", b"x"),
    (Op.UNLINK, "n", b"x"),
    (Op.RMDIR, "n", b"x"),
    (Op.RENAME, "n", b"x", ROOT, b"y", 0),
    (Op.ACCESS, "n", 4, *ME),
    (Op.STATFS, "n"),
    (Op.GETXATTR, "n", b"user.x"),
    (Op.SETXATTR, "n", b"user.x", b"", 0),
    (Op.LISTXATTR, "n"),
    (Op.REMOVEXATTR, "n", b"user.x"),
    (Op.OPEN, "n", os.O_RDWR, False, 0, 0),
    (Op.CREATE, "n", b"x", os.O_RDWR, 0o600, 0, *ME, False),
    (Op.TMPFILE, "n", os.O_RDWR, 0o600, 0, *ME),
    (Op.OPENDIR, "n", 0),
    (Op.STATX, "n", 0, 0, 0x7FF),
]
BY_HANDLE: list[tuple[Any, ...]] = [
    (Op.GETATTR, ROOT, "h"),
    (Op.READ, "h", 0, 10),
    (Op.FLUSH, "h", 0),
    (Op.FSYNC, "h", False),
    (Op.READDIR, "h", 0, 4096),
    (Op.FSYNCDIR, "h", False),
    (Op.FALLOCATE, "h", 0, 0, 10, False),
    (Op.LSEEK, "h", 0, os.SEEK_HOLE),
    (Op.COPY_FILE_RANGE, "h", 0, "h", 0, 10, False),
    (Op.IOCTL, "h", 0x80086601, b"", 0, 0),
    (Op.GETLK, ROOT, "h", 1, 0, 0, 0),
    (Op.SETLK, ROOT, "h", 1, 0, 0, 0, 1),
    (Op.FLOCK, "h", 0),
    (Op.RELEASE, "h"),
]


def forged(given: int) -> list[int]:
    """Numbers like one that was given, and others."""
    chance = Random(5)
    near = [given + 1, given + (1 << 32), given ^ (1 << 63), given ^ (1 << 31), given & 0xFFFFFFFF ^ 0xFFFF]
    return [0, (1 << 64) - 1, 1 << 32, *near, *(chance.getrandbits(64) for _ in range(20))]


def each(requests: list[tuple[Any, ...]], letter: str, numbers: list[int], rogue: Rogue, wanted: set[str]) -> None:
    for op, *fields in requests:
        for number in numbers:
            got = rogue.errno(op, *[number if field == letter else field for field in fields])
            assert got in wanted, (op.name, number, got)


def test_nodes_that_were_never_given(rogue: Rogue, place: Place) -> None:
    (place.volume / "f").touch()
    node = rogue.call(Op.LOOKUP, ROOT, b"f")[1][0]
    each(BY_NODE, "n", forged(node), rogue, {"ESTALE"})
    assert os.listdir(place.volume) == ["f"]


def test_nodes_that_were_forgotten(rogue: Rogue, place: Place) -> None:
    (place.volume / "f").touch()
    node = rogue.call(Op.LOOKUP, ROOT, b"f")[1][0]
    rogue.call(Op.CLEANUP, node.to_bytes(8, "little") + (1).to_bytes(8, "little"), b"", b"", slot=CLEANUP)
    each(BY_NODE, "n", [node], rogue, {"ESTALE"})
    again = rogue.call(Op.LOOKUP, ROOT, b"f")[1][0]
    assert again != node
    each(BY_NODE[:2], "n", [node], rogue, {"ESTALE"})


def test_forgetting_what_one_does_not_have(rogue: Rogue, place: Place) -> None:
    (place.volume / "f").touch()
    node = rogue.call(Op.LOOKUP, ROOT, b"f")[1][0]
    most = ((1 << 64) - 1).to_bytes(8, "little")
    for wrong in (node, ROOT, 0, 999, (1 << 64) - 1):
        rogue.call(Op.CLEANUP, wrong.to_bytes(8, "little") + most, wrong.to_bytes(8, "little"), b"", slot=CLEANUP)
    assert rogue.call(Op.LOOKUP, ROOT, b"f")[0] == 0
    assert rogue.call(Op.GETATTR, ROOT, 0)[0] == 0


def test_handles_that_were_never_given_or_are_released(rogue: Rogue, place: Place) -> None:
    (place.volume / "f").write_bytes(b"data")
    node = rogue.call(Op.LOOKUP, ROOT, b"f")[1][0]
    handle = rogue.call(Op.OPEN, node, os.O_RDWR, False, 0, 0)[1]
    each(BY_HANDLE, "h", [n for n in forged(handle) if n], rogue, {"EBADF"})
    rogue.call(Op.CLEANUP, b"", handle.to_bytes(8, "little"), b"", slot=CLEANUP)
    each(BY_HANDLE, "h", [handle], rogue, {"EBADF"})
    assert rogue.errno(Op.WRITE, handle, 0, 0, payload=b"other") == "EBADF"
    assert (place.volume / "f").read_bytes() == b"data"


def test_a_file_s_handle_for_a_directory_and_for_another_file(rogue: Rogue, place: Place) -> None:
    (place.volume / "f").write_bytes(b"data")
    (place.volume / "g").touch()
    node = rogue.call(Op.LOOKUP, ROOT, b"f")[1][0]
    other = rogue.call(Op.LOOKUP, ROOT, b"g")[1][0]
    handle = rogue.call(Op.OPEN, node, os.O_RDWR, False, 0, 0)[1]
    directory = rogue.call(Op.OPENDIR, ROOT, 0)[1]
    assert rogue.errno(Op.READDIR, handle, 0, 4096) == "EBADF"
    assert rogue.errno(Op.READ, directory, 0, 10) == "EBADF"
    assert rogue.errno(Op.GETATTR, other, handle) == "EBADF"
    assert rogue.errno(Op.SETATTR, other, handle, 8, 0, 0, 0, 1, 0, 0, 0, 0) == "EBADF"
    assert rogue.errno(Op.SETLK, other, handle, 1, 0, 0, 0, 1) == "EBADF"
    assert rogue.errno(Op.OPEN, ROOT, os.O_RDONLY, False, 0, 0) == "EISDIR"
    assert rogue.errno(Op.OPENDIR, node, 0) == "ENOTDIR"
    rogue.call(Op.CLEANUP, b"", handle.to_bytes(8, "little") + directory.to_bytes(8, "little"), b"", slot=CLEANUP)


@pytest.mark.parametrize("native", [False, True], ids=["python", "native"])
def test_numbers_of_another_session(place: Place, guests: Guests, rogue: Rogue, native: bool) -> None:
    """They are valid where they were given, and nowhere else: also hard links and renames stay in their volume."""
    other = place.volume.parent / f"other-{native}-{guests.process.pid}"
    (other / "d").mkdir(parents=True)
    (place.volume / "f").write_bytes(b"mine")
    with hostile(other, ServerOptions(native=native)) as elsewhere:
        for number in range(50):
            (place.volume / f"filler{number}").touch()
            node = rogue.call(Op.LOOKUP, ROOT, f"filler{number}".encode())[1][0]
        handle = rogue.call(Op.OPEN, node, os.O_RDWR, False, 0, 0)[1]
        directory = elsewhere.first.call(Op.LOOKUP, ROOT, b"d")[1][0]
        each(BY_NODE, "n", [node], elsewhere.first, {"ESTALE"})
        each(BY_HANDLE, "h", [handle], elsewhere.first, {"EBADF"})
        # The numbers of a directory there may stand for something else here: never for what is there.
        rogue.call(Op.LINK, node, directory, b"linked")
        rogue.call(Op.RENAME, ROOT, b"f", directory, b"renamed", 0)
        assert os.listdir(other / "d") == []
        rogue.call(Op.CLEANUP, b"", handle.to_bytes(8, "little"), b"", slot=CLEANUP)


def test_links_and_renames_do_not_leave_a_filesystem(rogue: Rogue, place: Place, tmp_path: Path) -> None:
    """By a symlink to the outside no name is made there, and none is taken from there."""
    (place.volume / "out").symlink_to(place.outside)
    (place.volume / "f").write_bytes(b"mine")
    node = rogue.call(Op.LOOKUP, ROOT, b"f")[1][0]
    out = rogue.call(Op.LOOKUP, ROOT, b"out")[1][0]
    assert rogue.errno(Op.LINK, node, out, b"linked") == "ENOTDIR"
    assert rogue.errno(Op.RENAME, ROOT, b"f", out, b"renamed", 0) == "ENOTDIR"
    assert rogue.errno(Op.RENAME, out, b"secret", ROOT, b"stolen", 0) == "ENOTDIR"
    assert rogue.errno(Op.LOOKUP, out, b"secret") == "ENOTDIR"
    assert rogue.call(Op.LINK, out, ROOT, b"another")[0] == 0, "a symlink may have two names"
    assert os.path.islink(place.volume / "another")


@needs_root
def test_files_that_are_not_opened(rogue: Rogue, place: Place) -> None:
    """The guest's kernel opens them itself: on the host a fifo would wait and a device would act."""
    kinds = {"fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK, "disk": stat.S_IFBLK, "tty": stat.S_IFCHR}
    for name, kind in kinds.items():
        os.mknod(place.volume / name, kind | 0o666, os.makedev(1, 3))
    (place.volume / "link").symlink_to(place.outside / "secret")
    for name in (*kinds, "link"):
        node = rogue.call(Op.LOOKUP, ROOT, name.encode())[1][0]
        wanted = "ELOOP" if name == "link" else "ENXIO"
        for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_PATH, os.O_RDONLY | os.O_NONBLOCK):
            assert rogue.errno(Op.OPEN, node, flags, False, 0, 0) == wanted
        create = rogue.errno(Op.CREATE, ROOT, name.encode(), os.O_RDWR | os.O_TRUNC, 0o600, 0, *ME, False)
        assert create == wanted
        assert rogue.errno(Op.SETATTR, node, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0) in ("EINVAL", "ELOOP")


def test_sizes_and_offsets(rogue: Rogue, guests: Guests, place: Place) -> None:
    (place.volume / "f").write_bytes(b"data")
    node = rogue.call(Op.LOOKUP, ROOT, b"f")[1][0]
    handle = rogue.call(Op.OPEN, node, os.O_RDWR, False, 0, 0)[1]
    most = (1 << 64) - 1
    for offset in (most, 1 << 63, (1 << 63) - 1):
        assert rogue.errno(Op.READ, handle, offset, 100) == "EINVAL"
        assert rogue.errno(Op.WRITE, handle, offset, 0, payload=b"xy") == "EFBIG"
        assert rogue.errno(Op.SETATTR, node, 0, 8, 0, 0, 0, offset, 0, 0, 0, 0) in ("EFBIG", "EINVAL")
        assert rogue.errno(Op.FALLOCATE, handle, 0, offset, offset, False) in ("EINVAL", "EFBIG")
        assert rogue.errno(Op.COPY_FILE_RANGE, handle, offset, handle, offset, most, False) in (
            "EINVAL", "EFBIG", "EOVERFLOW",
        )  # fmt: skip
        assert rogue.errno(Op.LSEEK, handle, offset, os.SEEK_DATA) == "ENXIO"
    assert rogue.errno(Op.LSEEK, handle, 0, os.SEEK_END) == "EINVAL"
    assert rogue.errno(Op.SETATTR, node, 0, 16, 0, 0, 0, 0, 0, 1_000_000_000, 0, 0) == "EINVAL"
    for size in ((1 << 20) + 1, (1 << 32) - 1):
        assert "agreed" in guests.breaks(lambda it, slot: it.request(Op.READ, handle, 0, size, slot=slot))[1]  # noqa: B023
        assert "agreed" in guests.breaks(lambda it, slot: it.request(Op.READDIR, handle, 0, size, slot=slot))[1]  # noqa: B023
    assert rogue.errno(Op.IOCTL, handle, 0x5421, b"1234", 0, 0) == "ENOTTY"
    assert rogue.errno(Op.IOCTL, handle, 0x40086602, b"x" * 300, 0, 0) in ("EINVAL", "E2BIG")
    rogue.call(Op.CLEANUP, b"", handle.to_bytes(8, "little"), b"", slot=CLEANUP)
    assert (place.volume / "f").read_bytes() == b"data"


def test_identities_that_are_none(rogue: Rogue, place: Place) -> None:
    """-1 would mean "leave it as it is", which is root."""
    none = 0xFFFFFFFF
    for who in ((none, 0, b""), (0, none, b""), (none, none, b"")):
        assert rogue.errno(Op.MKDIR, ROOT, b"x", 0o700, 0, *who) == "EINVAL"
        assert rogue.errno(Op.CREATE, ROOT, b"x", os.O_RDWR, 0o600, 0, *who, False) == "EINVAL"
        assert rogue.errno(Op.SYMLINK, ROOT, b"x", b"y", *who) == "EINVAL"
        assert rogue.errno(Op.ACCESS, ROOT, 4, *who) == "EINVAL"
    assert os.listdir(place.volume) == []


@needs_root
def test_more_groups_than_there_can_be(rogue: Rogue, place: Place) -> None:
    groups = b"".join(number.to_bytes(4, "little") for number in range(60_000))
    assert rogue.call(Op.MKDIR, ROOT, b"many", 0o700, 0, 0, 0, groups)[0] == 0
    assert (place.volume / "many").stat().st_uid == 0
