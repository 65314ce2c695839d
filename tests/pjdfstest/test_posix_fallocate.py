"""posix_fallocate(3).  The C library writes the blocks itself where the filesystem cannot allocate them."""

import os
from errno import EBADF, EINVAL, EISDIR, ENODEV, EPERM, ESPIPE

from .harness import checks
from .harness.caller import Caller
from .harness.cases import cases
from .harness.process import Identity
from .harness.scene import AsUser, Make
from .harness.times import moves, unchanged
from .harness.users import OWNER, ROOT

DATA = b"some data that must survive" * 50


@cases(
    "posix_fallocate/extends/{caller}/{start}-{length}",
    caller=[ROOT, OWNER],
    start=[0, 1, 1000, 4096, 5000],
    length=[1, 567, 4096, 20000],
)
def test_extends(caller: Identity, start: int, length: int, root: Caller, as_user: AsUser, make: Make) -> None:
    make("regular", "file", OWNER)
    root.setup.write_file("file", DATA)
    user = as_user(caller)
    descriptor = user.open("file", os.O_RDWR)
    if start + length > len(DATA):
        with moves(root, {"file": "ctime"}):
            user.posix_fallocate(descriptor, start, length)
    else:
        user.posix_fallocate(descriptor, start, length)
    size = max(len(DATA), start + length)
    root.expect("file", size=size)
    checks.equal(root.contents("file"), DATA.ljust(size, b"\0"), "contents")


@cases("posix_fallocate/mode-0")
def test_new_file_without_permission(owner: Caller, root: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    descriptor = owner.open("dir/file", os.O_CREAT | os.O_RDWR, 0)
    owner.posix_fallocate(descriptor, 0, 1)
    root.expect("dir/file", size=1, mode=0)


@cases("posix_fallocate/einval")
def test_bad_ranges(root: Caller, owner: Caller, make: Make) -> None:
    make("regular", "file", OWNER)
    descriptor = owner.open("file", os.O_RDWR)
    with unchanged(root, "file", wait=True):
        owner.fails(EINVAL).posix_fallocate(descriptor, 0, 0)
        owner.fails(EINVAL).posix_fallocate(descriptor, -1, 10)
        owner.fails(EINVAL).posix_fallocate(descriptor, 10, -5)


@cases("posix_fallocate/descriptor")
def test_wrong_descriptors(root: Caller, owner: Caller, make: Make) -> None:
    make("regular", "file", OWNER)
    make("dir", "dir", OWNER)
    make("fifo", "fifo", OWNER)
    read_only = owner.open("file", os.O_RDONLY)
    directory = owner.open("dir", os.O_RDONLY)
    fifo = owner.open("fifo", os.O_RDWR)
    with unchanged(root, "file", "dir", "fifo"):
        owner.fails(EBADF, EPERM).posix_fallocate(read_only, 0, 10)
        owner.fails(EBADF, EISDIR, ENODEV).posix_fallocate(directory, 0, 10)
        owner.fails(ESPIPE, ENODEV).posix_fallocate(fifo, 0, 10)
