"""link(2) and linkat(2)."""

import os
from errno import EACCES, EEXIST, ENOENT, EPERM, EXDEV

from .harness import checks
from .harness.caller import AT_FDCWD, AT_SYMLINK_FOLLOW, Caller
from .harness.cases import cases
from .harness.process import Identity
from .harness.scene import AsUser, Make, Scene
from .harness.smallfs import SmallFilesystem
from .harness.status import KINDS, NOT_DIRECTORIES, SPECIAL
from .harness.times import moves, unchanged
from .harness.users import MEMBER, OTHER, OWNER, ROOT, SUPPLEMENTARY


@cases("link/names", kind=NOT_DIRECTORIES, caller=[ROOT, OWNER])
def test_names_of_one_file(kind: str, caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    user = as_user(caller)
    make("dir", "a", OWNER)
    make("dir", "b", OWNER)
    make(kind, "a/one", OWNER)
    first = root.expect("a/one", nlink=1)
    same = {
        "inode": first.inode,
        "kind": kind,
        "owner": first.owner,
        "mode": first.mode,
        "rdev": first.rdev,
        "size": first.size,
    }
    with moves(root, {"a/one": "ctime", "a": "mtime ctime"}), unchanged(root, "b"):
        user.link("a/one", "a/two")
    for name in ("a/one", "a/two"):
        root.expect(name, nlink=2, **same)
    with moves(root, {"a/one": "ctime", "a/two": "ctime", "b": "mtime ctime"}), unchanged(root, "a"):
        user.link("a/two", "b/three")
    for name in ("a/one", "a/two", "b/three"):
        root.expect(name, nlink=3, **same)
    if kind != "symlink":
        user.chmod("a/two", 0o640)
        user.chown("b/three", OWNER.uid, OWNER.gid)
        same["mode"] = 0o640
        for name in ("a/one", "a/two", "b/three"):
            root.expect(name, nlink=3, **same)
    with moves(root, {"a/two": "ctime", "b/three": "ctime", "a": "mtime ctime"}), unchanged(root, "b"):
        user.unlink("a/one")
    root.missing("a/one")
    for name in ("a/two", "b/three"):
        root.expect(name, nlink=2, **same)
    with moves(root, {"a/two": "ctime", "b": "mtime ctime"}):
        user.unlink("b/three")
    root.missing("b/three")
    root.expect("a/two", nlink=1, **same)
    user.unlink("a/two")
    root.missing("a/two")


@cases("link/contents")
def test_contents_are_shared(root: Caller, owner: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    owner.write_file("dir/one", b"first")
    owner.link("dir/one", "dir/two")
    checks.equal(owner.contents("dir/two"), b"first", "contents by the second name")
    owner.write_file("dir/two", b"and more")
    checks.equal(owner.contents("dir/one"), b"and more", "contents by the first name")
    root.expect("dir/one", size=8, nlink=2)
    owner.truncate("dir/one", 3)
    root.expect("dir/two", size=3, nlink=2)
    descriptor = owner.open("dir/one", os.O_RDWR)
    owner.unlink("dir/one")
    owner.pwrite(descriptor, b"xyz1", 0)
    checks.equal(owner.contents("dir/two"), b"xyz1", "contents after the first name went")
    owner.expect(descriptor, nlink=1, size=4)


@cases("link/symlink-itself")
def test_does_not_follow(root: Caller, make: Make) -> None:
    make("regular", "file")
    make("symlink", "link", target="file")
    root.link("link", "second")
    root.expect("second", kind="symlink", nlink=2)
    root.expect("file", nlink=1)
    checks.equal(root.readlink("second"), "file", "target of the second name")


@cases("linkat/follow")
def test_linkat_follows_if_told(root: Caller, make: Make) -> None:
    make("regular", "file")
    make("symlink", "link", target="file")
    root.linkat(AT_FDCWD, "link", AT_FDCWD, "second", AT_SYMLINK_FOLLOW)
    root.expect("second", kind="regular", nlink=2)
    root.expect("link", kind="symlink", nlink=1)
    descriptor = root.open("file", os.O_RDONLY)
    root.linkat(AT_FDCWD, f"/proc/self/fd/{descriptor}", AT_FDCWD, "third", AT_SYMLINK_FOLLOW)
    root.expect("third", nlink=3, inode=root.lstat("file").inode)


@cases("link/eexist", kind=KINDS, source=["regular", "fifo", "symlink"])
def test_existing_target(kind: str, source: str, root: Caller, owner: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    make(source, "dir/source", OWNER)
    make(kind, "dir/target", OWNER)
    with unchanged(root, "dir", "dir/source", "dir/target", wait=True):
        owner.fails(EEXIST).link("dir/source", "dir/target")
        owner.fails(EEXIST).link("dir/source", "dir/source")


@cases("link/eperm/directory", caller=[ROOT, OWNER])
def test_directories_have_one_name(caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    make("dir", "parent", OWNER)
    make("dir", "parent/dir", OWNER)
    with unchanged(root, "parent", "parent/dir", wait=True):
        as_user(caller).fails(EPERM).link("parent/dir", "parent/second")
    root.missing("parent/second")


@cases("link/eacces/source", caller=[OTHER, MEMBER, SUPPLEMENTARY], kind=["regular", "fifo"])
def test_foreign_files_without_permission(
    caller: Identity, kind: str, root: Caller, as_user: AsUser, make: Make
) -> None:
    """Where the kernel protects hard links (proc(5), protected_hardlinks) it answers EPERM; else linking is allowed."""
    with open("/proc/sys/fs/protected_hardlinks", encoding="ascii") as setting:
        protected = setting.read().strip() == "1"
    make("dir", "dir", OWNER, mode=0o777)
    make(kind, "dir/file", OWNER, mode=0o600)
    as_user(caller).expects(not protected, EPERM).link("dir/file", "dir/second")
    root.expect("dir/file", nlink=1 if protected else 2)


@cases("link/parent-owner")
def test_new_name_changes_no_owner(root: Caller, owner: Caller, make: Make) -> None:
    make("dir", "dir", OTHER, mode=0o2777)
    make("regular", "file", OWNER)
    owner.link("file", "dir/file")
    root.expect("dir/file", owner=(OWNER.uid, OWNER.gid), nlink=2)


@cases("link/exdev", kind=NOT_DIRECTORIES)
def test_other_filesystem(kind: str, small_tmpfs: SmallFilesystem, root: Caller, make: Make) -> None:
    make(kind, "file")
    with unchanged(root, "file", "."):
        root.fails(EXDEV).link("file", f"{small_tmpfs.path}/new")
    root.missing(f"{small_tmpfs.path}/new")


@cases("link/removed-file")
def test_file_without_a_name(root: Caller, scene: Scene, make: Make) -> None:
    """A file whose last name went does not come back."""
    make("regular", "file")
    descriptor = root.open("file", os.O_RDWR)
    root.unlink("file")
    root.fails(ENOENT).linkat(AT_FDCWD, f"/proc/self/fd/{descriptor}", AT_FDCWD, "again", AT_SYMLINK_FOLLOW)
    root.expect(descriptor, nlink=0)
    root.missing("again")


@cases("link/directory-permissions", kind=("regular", *SPECIAL), caller=[OWNER, MEMBER, SUPPLEMENTARY])
def test_write_permission_of_the_new_parent(
    kind: str, caller: Identity, root: Caller, as_user: AsUser, make: Make
) -> None:
    mode = {OWNER: 0o577, MEMBER: 0o757, SUPPLEMENTARY: 0o757}[caller]
    make("dir", "dir", OWNER, mode=mode)
    make(kind, "file", caller)
    with unchanged(root, "dir", "file"):
        as_user(caller).fails(EACCES).link("file", "dir/file")
    root.setup.chmod("dir", 0o777)
    as_user(caller).link("file", "dir/file")
    root.expect("file", nlink=2)
