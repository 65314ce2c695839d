"""unlink(2) and rmdir(2)."""

import os
from errno import EACCES, EBUSY, EEXIST, EINVAL, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY, EPERM

from .harness import checks
from .harness.caller import Caller
from .harness.cases import cases
from .harness.process import Identity
from .harness.scene import AsUser, Make, Scene
from .harness.status import KINDS, NOT_DIRECTORIES
from .harness.times import moves, unchanged
from .harness.users import MEMBER, OTHER, OWNER, ROOT, SUPPLEMENTARY

PRIVATE_ROOT = Identity("root with own mounts", 0, 0, own_mounts=True)


@cases("unlink/removes", kind=NOT_DIRECTORIES, caller=[ROOT, OWNER, MEMBER, SUPPLEMENTARY, OTHER])
def test_unlink(kind: str, caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    """Write permission on the directory is what it takes, not on the file."""
    make("dir", "dir", OWNER, mode=0o777)
    make(kind, "dir/file", ROOT, mode=0)
    with moves(root, {"dir": "mtime ctime"}):
        as_user(caller).unlink("dir/file")
    root.missing("dir/file")
    as_user(caller).fails(ENOENT).unlink("dir/file")


@cases("unlink/other-names", kind=NOT_DIRECTORIES)
def test_remaining_names(kind: str, root: Caller, owner: Caller, make: Make) -> None:
    make("dir", "a", OWNER)
    make("dir", "b", OWNER)
    make(kind, "a/one", OWNER)
    for name in ("a/two", "b/three"):
        root.setup.link("a/one", name)
    before = root.lstat("a/one")
    with moves(root, {"a": "mtime ctime", "b/three": "ctime", "a/two": "ctime"}), unchanged(root, "b"):
        owner.unlink("a/one")
    root.expect("a/two", nlink=2, inode=before.inode, mtime=before.mtime)
    with moves(root, {"a": "mtime ctime", "b/three": "ctime"}):
        owner.unlink("a/two")
    root.expect("b/three", nlink=1, inode=before.inode, mtime=before.mtime)
    with moves(root, {"b": "mtime ctime"}):
        owner.unlink("b/three")
    root.missing("b/three")


@cases("unlink/symlink-only", kind=KINDS)
def test_unlink_does_not_follow(kind: str, root: Caller, owner: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    make(kind, "file", OWNER)
    make("symlink", "dir/link", OWNER, target="../file")
    with unchanged(root, "file"):
        owner.unlink("dir/link")
    root.missing("dir/link")


@cases("unlink/directory", caller=[ROOT, OWNER])
def test_unlink_takes_no_directories(caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    make("dir", "parent", OWNER)
    make("dir", "parent/dir", OWNER)
    with unchanged(root, "parent", "parent/dir", wait=True):
        as_user(caller).fails(EISDIR, EPERM).unlink("parent/dir")


@cases("unlink/open-file", names=[1, 2])
def test_open_file_lives_on(names: int, root: Caller, owner: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    owner.write_file("dir/file", b"Hello, World!")
    if names == 2:
        owner.link("dir/file", "dir/second")
    descriptor = owner.open("dir/file", os.O_RDWR)
    with moves(root, {"dir": "mtime ctime"}):
        owner.unlink("dir/file")
    root.missing("dir/file")
    owner.expect(descriptor, nlink=names - 1, size=13)
    checks.equal(owner.pread(descriptor, 100, 0), b"Hello, World!", "contents")
    owner.pwrite(descriptor, b"Goodbye", 0)
    checks.equal(owner.pread(descriptor, 100, 0), b"Goodbye" + b"World!", "contents after a write")
    owner.close(descriptor)
    if names == 2:
        root.expect("dir/second", nlink=1, size=13)


@cases("{call}/eacces/{caller}", call=["unlink", "rmdir"], caller=[OWNER, MEMBER, SUPPLEMENTARY, OTHER])
def test_needs_write_permission(call: str, caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    make("dir", "parent", OWNER, mode={OWNER: 0o577, MEMBER: 0o757, SUPPLEMENTARY: 0o757}.get(caller, 0o775))
    for kind in ["dir"] if call == "rmdir" else NOT_DIRECTORIES:
        make(kind, f"parent/{kind}", caller)
        with unchanged(root, "parent", f"parent/{kind}"):
            as_user(caller).fails(EACCES).remove(kind, f"parent/{kind}")
    root.setup.chmod("parent", 0o777)
    for kind in ["dir"] if call == "rmdir" else NOT_DIRECTORIES:
        as_user(caller).remove(kind, f"parent/{kind}")
        root.missing(f"parent/{kind}")


@cases("rmdir/removes", caller=[ROOT, OWNER, MEMBER, SUPPLEMENTARY, OTHER])
def test_rmdir(caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    make("dir", "parent", OWNER, mode=0o777)
    make("dir", "parent/dir", ROOT, mode=0)
    before = root.lstat("parent")
    with moves(root, {"parent": "mtime ctime"}):
        as_user(caller).rmdir("parent/dir")
    root.missing("parent/dir")
    root.expect("parent", nlink=before.nlink - (before.nlink > 2))


@cases("rmdir/not-empty", kind=KINDS, caller=[ROOT, OWNER])
def test_rmdir_wants_it_empty(kind: str, caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    make("dir", "parent", OWNER)
    make("dir", "parent/dir", OWNER)
    make(kind, "parent/dir/inside", OWNER)
    with unchanged(root, "parent", "parent/dir", "parent/dir/inside", wait=True):
        as_user(caller).fails(EEXIST, ENOTEMPTY).rmdir("parent/dir")
    as_user(caller).remove(kind, "parent/dir/inside")
    as_user(caller).rmdir("parent/dir")
    root.missing("parent/dir")


@cases("rmdir/not-a-directory", kind=NOT_DIRECTORIES, caller=[ROOT, OWNER])
def test_rmdir_takes_directories_only(kind: str, caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    make("dir", "parent", OWNER)
    make("dir", "target", OWNER)
    make(kind, "parent/file", OWNER, **({"target": "../target"} if kind == "symlink" else {}))
    with unchanged(root, "parent", "parent/file", "target", wait=True):
        as_user(caller).fails(ENOTDIR).rmdir("parent/file")


@cases("rmdir/dots", caller=[ROOT, OWNER])
def test_rmdir_of_dots(caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    make("dir", "dir", OWNER)
    make("dir", "dir/sub", OWNER)
    with unchanged(root, "dir", "dir/sub", wait=True):
        as_user(caller).fails(EINVAL).rmdir("dir/sub/.")
        as_user(caller).fails(EEXIST, ENOTEMPTY).rmdir("dir/sub/..")


@cases("mount-point")
def test_mount_point_is_busy(root: Caller, scene: Scene, make: Make) -> None:
    make("dir", "parent")
    make("dir", "parent/point")
    make("dir", "parent/empty")
    make("regular", "parent/file")
    mounter = scene.another(PRIVATE_ROOT)
    mounter.mount("posix-suite", "parent/point", "tmpfs")
    with unchanged(root, "parent", "parent/point"):
        mounter.fails(EBUSY).rmdir("parent/point")
        mounter.fails(EBUSY).rename("parent/point", "parent/moved")
        mounter.fails(EBUSY).rename("parent/empty", "parent/point")
    mounter.umount("parent/point")
    mounter.rmdir("parent/point")
    root.missing("parent/point")


@cases("rmdir/open-directory")
def test_removed_directory_in_use(root: Caller, owner: Caller, make: Make) -> None:
    """Whoever still works in a removed directory can create nothing there and sees nothing."""
    make("dir", "parent", OWNER)
    make("dir", "parent/dir", OWNER)
    descriptor = owner.open("parent/dir", os.O_RDONLY | os.O_DIRECTORY)
    owner.chdir("parent/dir")
    root.rmdir("parent/dir")
    owner.expect(descriptor, kind="dir", nlink=0)
    owner.fails(ENOENT).mkdir("new")
    owner.fails(ENOENT).open("new", os.O_CREAT | os.O_WRONLY, 0o644)
    owner.fails(ENOENT).openat(descriptor, "new", os.O_CREAT | os.O_WRONLY, 0o644)
    owner.fails(ENOENT).symlink("x", "new")
    owner.fails(ENOENT).openat(descriptor, "missing", os.O_RDONLY)
    owner.fails(ENOENT).getdents(descriptor, 4096)
