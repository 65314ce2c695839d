"""The same files from both sides: through the target, and behind it, where other programs work."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from errno import EEXIST, ENOENT, EXDEV

import pytest

from ..harness import checks
from ..harness.caller import Caller
from ..harness.cases import cases
from ..harness.scene import Make, Scene
from ..harness.status import KINDS
from ..harness.targets import Target, scratch_directory, unmount
from ..harness.users import OWNER

Wait = Callable[[], None]


@cases("views/attributes", kind=KINDS)
def test_attributes_are_the_same(kind: str, root: Caller, behind: Caller, make: Make) -> None:
    """Inode numbers too: git's index and tar depend on them."""
    make(kind, "file", OWNER, mode=0o640)
    here, there = root.lstat("file"), behind.lstat("file")
    for name in ("inode", "st_mode", "nlink", "uid", "gid", "rdev", "size", "atime", "mtime", "ctime", "blocks"):
        checks.equal(getattr(here, name), getattr(there, name), name)


@cases("views/made-here")
def test_what_is_made_here_is_there_at_once(owner: Caller, behind: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    owner.umask(0o027)
    for number in range(10):
        owner.write_file(f"dir/{number}", b"contents %d" % number)
        checks.equal(behind.contents(f"dir/{number}"), b"contents %d" % number, "contents behind")
        behind.expect(f"dir/{number}", owner=(OWNER.uid, OWNER.gid), mode=0o640)
        owner.rename(f"dir/{number}", f"dir/renamed-{number}")
        behind.missing(f"dir/{number}")
        owner.unlink(f"dir/renamed-{number}")
        behind.missing(f"dir/renamed-{number}")


@cases("views/open-file-written-here")
def test_written_data_is_there_after_the_write(owner: Caller, behind: Caller, make: Make) -> None:
    make("regular", "file", OWNER)
    descriptor = owner.open("file", os.O_WRONLY)
    for number in range(5):
        owner.write(descriptor, b"record %d\n" % number)
        owner.fsync(descriptor)
        behind.expect("file", size=9 * (number + 1))
    owner.close(descriptor)
    checks.equal(behind.contents("file").count(b"\n"), 5, "records behind")


@cases("views/exclusive-after-a-miss")
def test_exclusive_creation_asks(owner: Caller, behind: Caller, make: Make) -> None:
    """Having looked in vain before does not let O_EXCL create what somebody else has made meanwhile."""
    make("dir", "dir", OWNER)
    for number in range(5):
        owner.fails(ENOENT).open(f"dir/lock-{number}", os.O_RDONLY)
        behind.setup.write_file(f"dir/lock-{number}", b"theirs")
        owner.fails(EEXIST).open(f"dir/lock-{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        checks.equal(behind.contents(f"dir/lock-{number}"), b"theirs", "contents")


@cases("views/creation-after-a-miss", call=["mkdir", "mkfifo", "symlink", "link", "rename"])
def test_creation_asks(call: str, owner: Caller, behind: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    make("regular", "dir/source", OWNER)
    owner.fails(ENOENT).stat("dir/name")
    behind.setup.write_file("dir/name", b"theirs")
    if call == "rename":
        owner.rename("dir/source", "dir/name")  # replaces it, as on one machine
        behind.expect("dir/name", size=0)
        return
    if call in ("symlink", "link"):
        getattr(owner.fails(EEXIST), call)("dir/source", "dir/name")
    else:
        getattr(owner.fails(EEXIST), call)("dir/name")
    checks.equal(behind.contents("dir/name"), b"theirs", "contents")


@cases("views/changed-behind", change=["grow", "shrink", "replace", "mode", "unlink", "create", "rename-directory"])
def test_changes_behind_appear(
    change: str, owner: Caller, root: Caller, behind: Caller, aged: Wait, make: Make
) -> None:
    """At the latest when what the target remembers has expired."""
    make("dir", "dir", OWNER)
    make("dir", "dir/sub", OWNER)
    owner.write_file("dir/file", b"contents" * 1000)
    owner.write_file("dir/sub/file", b"below")
    checks.equal(len(owner.contents("dir/file")), 8000, "size before")
    owner.contents("dir/sub/file")
    owner.fails(ENOENT).stat("dir/new")
    if change == "grow":
        behind.setup.write(behind.setup.open("dir/file", os.O_WRONLY | os.O_APPEND), b"more")
    elif change == "shrink":
        behind.setup.truncate("dir/file", 3)
    elif change == "replace":
        behind.setup.write_file("dir/new", b"another")
        behind.setup.rename("dir/new", "dir/file")
    elif change == "mode":
        behind.setup.chmod("dir/file", 0o400)
    elif change == "unlink":
        behind.setup.unlink("dir/file")
    elif change == "create":
        behind.setup.write_file("dir/new", b"new")
    else:
        behind.setup.rename("dir/sub", "dir/moved")
    aged()
    if change == "unlink":
        root.missing("dir/file")
    elif change == "create":
        checks.equal(owner.contents("dir/new"), b"new", "contents")
    elif change == "rename-directory":
        root.missing("dir/sub/file")
        checks.equal(owner.contents("dir/moved/file"), b"below", "contents")
    else:
        wanted = {"grow": b"contents" * 1000 + b"more", "shrink": b"con", "replace": b"another"}
        contents = wanted.get(change, b"contents" * 1000)
        root.expect("dir/file", size=len(contents), inode=behind.lstat("dir/file").inode)
        checks.equal(root.contents("dir/file"), contents, "contents")
        root.expect("dir/file", mode=behind.lstat("dir/file").mode)
    checks.equal(sorted(owner.names("dir")), sorted(behind.names("dir")), "names")


@cases("views/open-file-changed-behind")
def test_open_files_see_changes_behind(owner: Caller, behind: Caller, aged: Wait, make: Make) -> None:
    make("regular", "file", OWNER)
    owner.setup.write_file("file", b"0" * 5000)
    descriptor = owner.open("file", os.O_RDONLY)
    checks.equal(owner.pread(descriptor, 10, 4990), b"0" * 10, "before")
    there = behind.setup.open("file", os.O_WRONLY)
    behind.setup.pwrite(there, b"1" * 5000, 2500)
    aged()
    checks.equal(owner.fstat(descriptor).size, 7500, "size")
    checks.equal(owner.pread(descriptor, 10000, 0), b"0" * 2500 + b"1" * 5000, "contents")


@cases("views/removed-behind")
def test_open_files_outlive_their_removal_behind(owner: Caller, behind: Caller, aged: Wait, make: Make) -> None:
    make("dir", "dir", OWNER)
    owner.write_file("dir/file", b"still here")
    descriptor = owner.open("dir/file", os.O_RDWR)
    behind.unlink("dir/file")
    behind.setup.write_file("dir/file", b"another")
    aged()
    checks.equal(owner.pread(descriptor, 100, 0), b"still here", "contents by the descriptor")
    owner.pwrite(descriptor, b"STILL", 0)
    checks.equal(owner.contents("dir/file"), b"another", "contents by the name")


# ---- a volume with other filesystems inside --------------------------------------------------------------------------


@pytest.fixture
def nested(posix_target: Target, scene: Scene) -> Iterator[str]:
    """Let the callers work in a directory that has two more filesystems below it, `one` and `two`."""
    if posix_target.mounter is None and not posix_target.plain:
        pytest.skip("what lies behind this target cannot be chosen")
    with scratch_directory() as source, scratch_directory() as scratch, ExitStack() as stack:
        for name in ("one", "two"):
            point = f"{source}/{name}"
            scene.root.batch([("mkdir", (point, 0o755)), ("mount", ("posix-suite", point, "tmpfs"))])
            stack.callback(unmount, point)
        path = stack.enter_context(posix_target.mounter.mount(source, scratch)) if posix_target.mounter else source
        scene.move(path)
        yield path
        scene.close_files()


@cases("views/nested/inode-numbers")
def test_no_collisions(nested: str, root: Caller, owner: Caller) -> None:
    """Two files of one device number never have one inode number, also where filesystems below count alike."""
    for directory in (".", "one", "two"):
        root.batch([("make_many", (f"{directory}/file-%d", 0, 200))])
    seen: dict[tuple[int, int], str] = {}
    for directory in (".", "one", "two"):
        for name in [b".", *(b"file-%d" % number for number in range(200))]:
            path = f"{directory}/{os.fsdecode(name)}"
            status = owner.lstat(path)
            twin = seen.setdefault((status.device, status.inode), path)
            checks.equal(twin, path, f"the file with inode number {status.inode}")
    for directory in ("one", "two"):
        descriptor = owner.open(directory, os.O_RDONLY)
        for name, inode, _kind, _ in owner.getdents(descriptor, 32768):
            if name.startswith(b"file"):
                checks.equal(inode, owner.lstat(f"{directory}/{os.fsdecode(name)}").inode, "inode number")


@cases("views/nested/boundaries")
def test_boundaries(nested: str, root: Caller) -> None:
    root.write_file("one/file", b"data")
    root.write_file("file", b"outside")
    for call in ("rename", "link"):
        for old, new in (("one/file", "two/file"), ("one/file", "file-2"), ("file", "one/file-2")):
            getattr(root.fails(EXDEV), call)(old, new)
    root.rename("one/file", "one/renamed")
    root.link("one/renamed", "one/second")
    root.expect("one/second", nlink=2, size=4)
    checks.equal(root.lstat("one/..").inode, root.lstat(".").inode, "the parent of the inner root")
