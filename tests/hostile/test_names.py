"""Names that lead nowhere: every operation that takes one refuses them, and nothing outside of the volume changes."""

import os
import stat
from typing import Any

import pytest

from fusepipe.wire import ErrorCode, Op
from tests.hostile.conftest import ME, Guests, Place
from tests.hostile.rogue import Rogue

ROOT = 1
CHANGES: list[tuple[Op, Any]] = [
    (Op.MKNOD, lambda name: (ROOT, name, stat.S_IFREG | 0o600, 0, 0, *ME)),
    (Op.MKDIR, lambda name: (ROOT, name, 0o700, 0, *ME)),
    (Op.SYMLINK, lambda name: (ROOT, name, b"target", *ME)),
    (Op.LINK, lambda name: (ROOT, ROOT, name)),
    (Op.CREATE, lambda name: (ROOT, name, os.O_RDWR, 0o600, 0, *ME, False)),
    (Op.UNLINK, lambda name: (ROOT, name)),
    (Op.RMDIR, lambda name: (ROOT, name)),
    (Op.RENAME, lambda name: (ROOT, name, ROOT, b"to", 0)),
    (Op.RENAME, lambda name: (ROOT, b"from", ROOT, name, 0)),
    (Op.RENAME, lambda name: (ROOT, b"from", ROOT, name, 2)),
]
ALL = [*CHANGES, (Op.LOOKUP, lambda name: (ROOT, name))]
IDS = [f"{op.name}-{number}" for number, (op, _) in enumerate(ALL)]

SLASHES = [b"a/b", b"/", b"/etc", b"../outside", b"../outside/secret", b"./from", b"from/", b"a/../../outside", b"//"]
IMPOSSIBLE = [b"", b"\0", b"a\0b", b"a\0", b"x" * 256, b"x" * 70_000]


@pytest.mark.parametrize(("op", "fields"), ALL, ids=IDS)
def test_one_component_only(rogue: Rogue, place: Place, op: Op, fields: Any) -> None:
    (place.volume / "from").touch()
    for name in SLASHES:
        assert rogue.errno(op, *fields(name)) == "EINVAL", name
    assert os.listdir(place.volume) == ["from"]


@pytest.mark.parametrize(("op", "fields"), CHANGES, ids=IDS[:-1])
def test_dots_are_no_names(rogue: Rogue, place: Place, op: Op, fields: Any) -> None:
    (place.volume / "from").touch()
    for name in (b".", b".."):
        assert rogue.errno(op, *fields(name)) == "EINVAL", name
    assert os.listdir(place.volume) == ["from"]


def test_what_no_name_can_be_ends_the_connection(rogue: Rogue, guests: Guests, place: Place) -> None:
    (place.volume / "from").touch()
    for number, (op, fields) in enumerate(ALL):
        name = IMPOSSIBLE[number % len(IMPOSSIBLE)]
        assert guests.breaks(lambda it, slot: it.request(op, *fields(name), slot=slot))[0] is ErrorCode.PROTOCOL  # noqa: B023
    for name in IMPOSSIBLE:
        assert guests.breaks(lambda it, slot: it.request(Op.LOOKUP, ROOT, name, slot=slot))[0] is ErrorCode.PROTOCOL  # noqa: B023
    assert os.listdir(place.volume) == ["from"]


def test_what_no_xattr_or_target_can_be_ends_the_connection(rogue: Rogue, guests: Guests, place: Place) -> None:
    requests: list[tuple[Any, ...]] = [
        (Op.GETXATTR, ROOT, b""),
        (Op.GETXATTR, ROOT, b"user.a\0b"),
        (Op.SETXATTR, ROOT, b"user." + b"x" * 300, b"", 0),
        (Op.REMOVEXATTR, ROOT, b"user.a\0"),
        (Op.SYMLINK, ROOT, b"longer", b"x" * 4096, *ME),
        (Op.SYMLINK, ROOT, b"nothing", b"", *ME),
        (Op.SYMLINK, ROOT, b"cut", b"a\0b", *ME),
    ]
    for request in requests:
        assert guests.breaks(lambda it, slot: it.request(*request, slot=slot))[0] is ErrorCode.PROTOCOL  # noqa: B023
    assert os.listdir(place.volume) == [] == os.listxattr(place.volume)


def test_the_parent_of_the_root_is_the_root(rogue: Rogue, place: Place) -> None:
    (place.volume / "d").mkdir()
    assert rogue.call(Op.LOOKUP, ROOT, b"..")[1][0] == ROOT
    assert rogue.call(Op.LOOKUP, ROOT, b".")[1][0] == ROOT
    inner = rogue.call(Op.LOOKUP, ROOT, b"d")[1][0]
    assert rogue.call(Op.LOOKUP, inner, b"..")[1][0] == ROOT
    handle = rogue.call(Op.OPENDIR, ROOT, 0)[1]
    rogue.request(Op.READDIR, handle, 0, 4096)
    frame = rogue.frame()
    assert frame is not None
    assert place.volume.parent.stat().st_ino.to_bytes(8, "little") not in bytes(frame.payload)


def test_a_directory_that_the_host_moved_out_has_no_parent_any_more(rogue: Rogue, place: Place) -> None:
    (place.volume / "a" / "b").mkdir(parents=True)
    node = rogue.call(Op.LOOKUP, ROOT, b"a")[1][0]
    inner = rogue.call(Op.LOOKUP, node, b"b")[1][0]
    (place.volume / "a").rename(place.outside / "a")
    assert rogue.errno(Op.LOOKUP, node, b"..") == "ESTALE"
    assert rogue.errno(Op.LOOKUP, inner, b"..") == "ESTALE"
    (place.outside / "a").rename(place.volume / "a")
    assert rogue.call(Op.LOOKUP, inner, b"..")[1][0] == node


@pytest.mark.parametrize("kind", [stat.S_IFDIR, stat.S_IFLNK, 0o030000, 0o170000])
def test_mknod_of_no_node(rogue: Rogue, place: Place, kind: int) -> None:
    assert rogue.errno(Op.MKNOD, ROOT, b"x", kind | 0o600, 0, 0, *ME) in ("EPERM", "EINVAL")
    assert os.listdir(place.volume) == []
