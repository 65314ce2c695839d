"""Open files whose name went or changed: everything still works, on that file and no other."""

import os
from errno import EACCES, EBADF, EEXIST

from ..harness import checks
from ..harness.caller import Caller
from ..harness.cases import cases
from ..harness.scene import Make
from ..harness.targets import Target
from ..harness.times import moves, unchanged
from ..harness.users import OTHER, OWNER, THIRD

DATE = (1_234_567_890, 123_456_789)


@cases("handles/unlinked", way=["unlink", "rename-over"], again=["name-free", "name-taken"])
def test_everything_works_without_a_name(way: str, again: str, root: Caller, owner: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    descriptor = owner.open("dir/file", os.O_CREAT | os.O_RDWR, 0o644)
    owner.write(descriptor, b"before")
    if way == "unlink":
        owner.unlink("dir/file")
    else:
        make("regular", "dir/other", OWNER)
        owner.rename("dir/other", "dir/file")
    if again == "name-taken" and way == "unlink":
        make("regular", "dir/file", OWNER)
    taken = way == "rename-over" or again == "name-taken"
    owner.write(descriptor, b" and after")
    checks.equal(owner.pread(descriptor, 100, 0), b"before and after", "contents")
    owner.expect(descriptor, nlink=0, size=16, kind="regular")
    owner.fchmod(descriptor, 0o751)
    owner.fchown(descriptor, -1, OWNER.gid)
    owner.futimens(descriptor, (DATE, DATE))
    owner.expect(descriptor, mode=0o751, mtime=DATE[0] * 10**9 + DATE[1])
    owner.ftruncate(descriptor, 6)
    owner.pwrite(descriptor, b"x" * 10000, 5000)
    owner.expect(descriptor, size=15000)
    owner.fsync(descriptor)
    owner.fdatasync(descriptor)
    address = owner.map(descriptor, 15000, 3, 1)
    owner.poke(address, b"MAPPED")
    owner.msync(address, 15000)
    checks.equal(owner.pread(descriptor, 6, 0), b"MAPPED", "what the mapping wrote")
    second = owner.dup(descriptor)
    owner.close(descriptor)
    checks.equal(owner.pread(second, 6, 0), b"MAPPED", "contents by the copy")
    if taken:
        root.expect("dir/file", size=0, mode=0o644, nlink=1)
    else:
        root.missing("dir/file")


@cases("handles/attributes-of-unlinked")
def test_extended_attributes_without_a_name(owner: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    descriptor = owner.open("dir/file", os.O_CREAT | os.O_RDWR, 0o644)
    owner.setxattr(descriptor, "user.before", b"1")
    owner.unlink("dir/file")
    owner.setxattr(descriptor, "user.after", b"2")
    checks.equal(owner.getxattr(descriptor, "user.before"), b"1", "value")
    checks.equal(owner.getxattr(descriptor, "user.after"), b"2", "value")
    owner.removexattr(descriptor, "user.before")
    names = [name for name in owner.listxattr(descriptor) if name.startswith("user.")]
    checks.equal(names, ["user.after"], "names")


@cases("handles/replaced-many-times")
def test_many_generations_of_one_name(root: Caller, owner: Caller, make: Make) -> None:
    """Filesystems reuse the inode number of a removed file at once; the old file must not be taken for the new one."""
    make("dir", "dir", OWNER)
    descriptors = []
    for number in range(40):
        descriptor = owner.setup.open("dir/file", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        owner.setup.write(descriptor, b"%d" % number)
        descriptors.append(descriptor)
        owner.setup.unlink("dir/file")
        if number % 2:
            owner.setup.close(descriptors.pop(0))
    for number, descriptor in enumerate(descriptors, start=40 - len(descriptors)):
        owner.expect(descriptor, nlink=0)
        checks.equal(owner.pread(descriptor, 10, 0), b"%d" % number, "contents")
    root.missing("dir/file")


@cases("handles/reused-inode-numbers", kind=["regular", "dir", "fifo", "symlink"])
def test_new_files_are_new(kind: str, posix_target: Target, root: Caller, owner: Caller, make: Make) -> None:
    """Nothing of a removed file shows in the next one, whatever its inode number."""
    make("dir", "dir", OWNER)
    for number in range(25):
        make("regular", "dir/file", OTHER, mode=0o600)
        root.setup.write_file("dir/file", b"old" * number)
        root.setup.link("dir/file", "dir/second")
        root.lstat("dir/file")
        for name in ("dir/file", "dir/second"):
            root.setup.unlink(name)
        make(kind, "dir/file", OWNER)
        expected = {
            "kind": kind,
            "owner": (OWNER.uid, OWNER.gid),
            "nlink": posix_target.empty_directory_nlink if kind == "dir" else 1,
        }
        if kind != "dir":
            expected["size"] = len("nowhere") if kind == "symlink" else 0
        root.expect("dir/file", **expected)
        root.setup.remove(kind, "dir/file")


@cases("handles/renamed")
def test_descriptor_follows_a_rename(root: Caller, owner: Caller, make: Make) -> None:
    make("dir", "a", OWNER)
    make("dir", "b", OWNER)
    descriptor = owner.open("a/file", os.O_CREAT | os.O_RDWR, 0o644)
    owner.write(descriptor, b"one")
    owner.rename("a/file", "b/file")
    make("regular", "a/file", OWNER)
    with moves(root, {"b/file": "mtime ctime"}), unchanged(root, "a/file"):
        owner.ftruncate(descriptor, 2)
    owner.fchmod(descriptor, 0o600)
    root.fchown(root.open("b/file", os.O_RDONLY), THIRD.uid, THIRD.gid)
    root.expect("b/file", size=2, mode=0o600, owner=(THIRD.uid, THIRD.gid))
    root.expect("a/file", size=0, mode=0o644, owner=(OWNER.uid, OWNER.gid))


@cases("handles/rights-stay")
def test_rights_of_an_open_descriptor(root: Caller, other: Caller, make: Make) -> None:
    """What was allowed at open(2) stays allowed, whatever happens to mode and owner."""
    make("regular", "file", OWNER, mode=0o666)
    root.setup.write_file("file", b"data")
    both = other.open("file", os.O_RDWR)
    reader = other.open("file", os.O_RDONLY)
    writer = other.open("file", os.O_WRONLY)
    root.chmod("file", 0)
    root.chown("file", 0, 0)
    other.fails(EACCES).open("file", os.O_RDONLY)
    checks.equal(other.pread(both, 10, 0), b"data", "contents")
    checks.equal(other.pread(reader, 10, 0), b"data", "contents")
    other.pwrite(both, b"D", 0)
    other.pwrite(writer, b"A", 1)
    other.fails(EBADF).pwrite(reader, b"x", 0)
    other.fails(EBADF).pread(writer, 10, 0)
    checks.equal(root.contents("file"), b"DAta", "contents")


@cases("handles/independent-offsets")
def test_offsets(owner: Caller, make: Make) -> None:
    """Each open(2) has its own offset; dup(2) shares it."""
    make("regular", "file", OWNER)
    owner.setup.write_file("file", bytes(range(100)))
    first = owner.open("file", os.O_RDONLY)
    second = owner.open("file", os.O_RDONLY)
    copy = owner.dup(first)
    checks.equal(owner.read(first, 10), bytes(range(10)), "first read")
    checks.equal(owner.read(second, 5), bytes(range(5)), "read by another open")
    checks.equal(owner.read(copy, 10), bytes(range(10, 20)), "read by the copy")
    checks.equal(owner.lseek(first, 0, os.SEEK_CUR), 20, "shared offset")
    checks.equal(owner.lseek(first, -10, os.SEEK_END), 90, "offset from the end")
    checks.equal(owner.read(first, 100), bytes(range(90, 100)), "the rest")
    checks.equal(owner.read(first, 100), b"", "at the end")


@cases("handles/exclusive", kind=["same-user", "other-user"])
def test_exclusive_creation_between_processes(
    kind: str, owner: Caller, other: Caller, root: Caller, make: Make
) -> None:
    """Of two that create a name with O_EXCL exactly one succeeds: how lock files work."""
    make("dir", "dir", mode=0o777)
    rival = other if kind == "other-user" else root
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    for number in range(100):
        name = f"dir/{number}"
        owner.start("open", name, flags, 0o644)
        rival.start("open", name, flags, 0o644)
        results = sorted([owner.outcome()[0], rival.outcome()[0]])
        checks.equal(results, [0, EEXIST], "errno of both")
