"""fsync(2), fdatasync(2), statvfs(3)."""

import os

from ..harness import checks
from ..harness.caller import Caller
from ..harness.cases import cases
from ..harness.scene import Make
from ..harness.users import OWNER


@cases("fsync/file", flags={"O_RDONLY": os.O_RDONLY, "O_WRONLY": os.O_WRONLY, "O_RDWR": os.O_RDWR})
def test_files(flags: int, owner: Caller, make: Make) -> None:
    make("regular", "file", OWNER)
    owner.setup.write(owner.setup.open("file", os.O_WRONLY), b"data")
    descriptor = owner.open("file", flags)
    owner.fsync(descriptor)
    owner.fdatasync(descriptor)
    checks.equal(owner.contents("file"), b"data", "contents")


@cases("fsync/directory", change=["nothing", "create", "rename", "unlink", "mkdir", "link", "symlink"])
def test_directories(change: str, root: Caller, owner: Caller, make: Make) -> None:
    """What makes a new or changed name durable (fsync(2))."""
    make("dir", "dir", OWNER)
    make("regular", "dir/file", OWNER)
    descriptor = owner.open("dir", os.O_RDONLY | os.O_DIRECTORY)
    actions = {
        "create": lambda: owner.write_file("dir/new", b"data"),
        "rename": lambda: owner.rename("dir/file", "dir/new"),
        "unlink": lambda: owner.unlink("dir/file"),
        "mkdir": lambda: owner.mkdir("dir/new"),
        "link": lambda: owner.link("dir/file", "dir/new"),
        "symlink": lambda: owner.symlink("target", "dir/new"),
    }
    if change != "nothing":
        actions[change]()
    owner.fsync(descriptor)
    owner.fdatasync(descriptor)
    checks.check((b"new" in owner.names("dir")) == (change not in ("nothing", "unlink")), "names after fsync")


@cases("fsync/removed", kind=["regular", "dir"])
def test_without_a_name(kind: str, owner: Caller, root: Caller, make: Make) -> None:
    make(kind, "file", OWNER)
    descriptor = owner.open("file", os.O_RDONLY)
    root.remove(kind, "file")
    owner.fsync(descriptor)


@cases("fsync/O_SYNC", flag={"O_SYNC": os.O_SYNC, "O_DSYNC": os.O_DSYNC})
def test_synchronous_writes(flag: int, owner: Caller, make: Make) -> None:
    make("regular", "file", OWNER)
    descriptor = owner.open("file", os.O_WRONLY | flag)
    for number in range(5):
        owner.pwrite(descriptor, b"block %d" % number, number * 5000)
    owner.expect(descriptor, size=4 * 5000 + 7)


@cases("statvfs/values")
def test_statvfs(root: Caller, owner: Caller, behind: Caller, make: Make) -> None:
    make("regular", "file", OWNER)
    here, there = owner.statvfs("file"), behind.statvfs("file")
    for name in ("f_bsize", "f_frsize", "f_blocks", "f_files", "f_namemax"):
        checks.equal(getattr(here, name), getattr(there, name), name)
    checks.check(0 <= here.f_bavail <= here.f_bfree <= here.f_blocks, f"free blocks: {here}")
    checks.check(here.f_namemax >= 255, f"longest name: {here.f_namemax}")
    checks.check(abs(here.f_bfree - there.f_bfree) <= here.f_blocks // 10, "free blocks differ from what is behind")
