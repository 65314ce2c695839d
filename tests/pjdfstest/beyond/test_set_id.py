"""Set-uid and set-gid bits when contents change: gone, unless the one who changes them may keep them (inode(7))."""

import os
from collections.abc import Callable

import pytest

from ..harness import checks
from ..harness.caller import Caller
from ..harness.cases import cases
from ..harness.process import Identity
from ..harness.scene import AsUser, Make
from ..harness.users import MEMBER, OTHER, OWNER, ROOT, SUPPLEMENTARY


def _by_descriptor(action: Callable[[Caller, int], object], flags: int = os.O_RDWR) -> Callable[[Caller], None]:
    def run(user: Caller) -> None:
        descriptor = user.open("file", flags)
        action(user, descriptor)
        user.setup.close(descriptor)

    return run


def _mapped(user: Caller, descriptor: int) -> None:
    """A store into a mapping leaves the bits; the write that follows does not."""
    address = user.map(descriptor, 4096, 3, 1)
    user.poke(address, b"x")
    user.msync(address, 4096)
    user.pwrite(descriptor, b"y", 1)


WAYS: dict[str, Callable[[Caller], None]] = {
    "write": _by_descriptor(lambda user, descriptor: user.write(descriptor, b"x")),
    "pwrite-behind-the-end": _by_descriptor(lambda user, descriptor: user.pwrite(descriptor, b"x", 100_000)),
    "O_APPEND": _by_descriptor(lambda user, descriptor: user.write(descriptor, b"x"), os.O_WRONLY | os.O_APPEND),
    "O_SYNC": _by_descriptor(lambda user, descriptor: user.write(descriptor, b"x"), os.O_WRONLY | os.O_SYNC),
    "O_DIRECT": _by_descriptor(
        lambda user, descriptor: user.pwrite_direct(descriptor, b"x" * 4096, 0), os.O_WRONLY | os.O_DIRECT
    ),
    "mapped": _by_descriptor(_mapped),
    "truncate-shorter": lambda user: user.truncate("file", 1),
    "truncate-longer": lambda user: user.truncate("file", 100_000),
    "truncate-same": lambda user: user.truncate("file", 8192),
    "ftruncate": _by_descriptor(lambda user, descriptor: user.ftruncate(descriptor, 5)),
    "O_TRUNC": _by_descriptor(lambda user, descriptor: None, os.O_WRONLY | os.O_TRUNC),
    "O_TRUNC-O_RDONLY": _by_descriptor(lambda user, descriptor: None, os.O_RDONLY | os.O_TRUNC),
    "O_CREAT-O_TRUNC": _by_descriptor(lambda user, descriptor: None, os.O_RDWR | os.O_CREAT | os.O_TRUNC),
}


@cases(
    "set-id/{way}/{caller}/{mode}",
    way=WAYS.keys(),
    caller=[OTHER, OWNER, MEMBER, SUPPLEMENTARY, ROOT],
    mode={"4777": 0o4777, "2777": 0o2777, "6777": 0o6777},
)
def test_contents_change(way: str, caller: Identity, mode: int, root: Caller, as_user: AsUser, make: Make) -> None:
    make("regular", "file", OWNER)
    root.setup.write_file("file", bytes(8192))
    root.setup.chmod("file", mode)
    if way == "O_DIRECT" and root.attempt("open", "file", os.O_RDONLY | os.O_DIRECT, 0)[0]:
        pytest.skip("no O_DIRECT on this filesystem")
    WAYS[way](as_user(caller))
    root.expect("file", mode=mode if caller == ROOT else 0o777)


@cases("set-id/reading", caller=[OTHER, OWNER, ROOT])
def test_reading_keeps_them(caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    make("regular", "file", OWNER)
    root.setup.write_file("file", b"data")
    root.setup.chmod("file", 0o6777)
    user = as_user(caller)
    checks.equal(user.read(user.open("file", os.O_RDWR), 10), b"data", "contents")
    user.setup.close(user.open("file", os.O_WRONLY))
    root.expect("file", mode=0o6777)


@cases("set-id/writing-nothing", caller=[OTHER, OWNER])
def test_writing_nothing_keeps_them(caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    make("regular", "file", OWNER, mode=0o6777)
    user = as_user(caller)
    user.write(user.open("file", os.O_WRONLY), b"")
    root.expect("file", mode=0o6777)


@cases("set-id/set-gid-without-execute", caller=[OWNER, MEMBER])
def test_set_gid_without_execute(caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    """Without group execution the bit does not mean a group to run with, and members keep it."""
    make("regular", "file", OWNER, mode=0o2666)
    user = as_user(caller)
    user.write(user.open("file", os.O_WRONLY), b"x")
    root.expect("file", mode=0o2666)


@cases("set-id/writer-opened-before")
def test_bits_that_come_after_the_open(root: Caller, other: Caller, make: Make) -> None:
    """What counts is the mode at the write, not at the open."""
    make("regular", "file", OWNER, mode=0o666)
    descriptor = other.open("file", os.O_WRONLY)
    other.write(descriptor, b"x")
    root.chmod("file", 0o6777)
    other.write(descriptor, b"y")
    root.expect("file", mode=0o777, size=2)


@cases("set-id/link-and-rename", call=["link", "rename", "utimensat"])
def test_other_changes_keep_them(call: str, root: Caller, owner: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    make("regular", "dir/file", OWNER, mode=0o6755)
    if call == "utimensat":
        owner.utimensat("dir/file", ((1, 0), (1, 0)))
    else:
        getattr(owner, call)("dir/file", "dir/new")
    root.expect("dir/file" if call == "utimensat" else "dir/new", mode=0o6755)


@cases("set-id/fallocate", caller=[OTHER, OWNER, ROOT])
def test_fallocate(caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    make("regular", "file", OWNER, mode=0o6777)
    user = as_user(caller)
    user.fallocate(user.open("file", os.O_WRONLY), 0, 0, 100)
    root.expect("file", mode=0o6777 if caller == ROOT else 0o777, size=100)


@cases("set-id/copy_file_range", caller=[OTHER, OWNER, ROOT])
def test_copy_file_range(caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    make("regular", "source", mode=0o644)
    root.setup.write_file("source", b"data" * 100)
    make("regular", "file", OWNER, mode=0o6777)
    user = as_user(caller)
    checks.equal(
        user.copy_file_range(user.open("source", os.O_RDONLY), 0, user.open("file", os.O_WRONLY), 0, 400), 400, "copied"
    )
    root.expect("file", mode=0o6777 if caller == ROOT else 0o777, size=400)
