"""rename(2)."""

import os
from errno import EACCES, EBUSY, EEXIST, EINVAL, EISDIR, ENOTDIR, ENOTEMPTY, EXDEV

from .harness import checks
from .harness.caller import Caller
from .harness.cases import cases
from .harness.process import Identity
from .harness.scene import AsUser, Make
from .harness.smallfs import SmallFilesystem
from .harness.status import KINDS, NOT_DIRECTORIES, Status
from .harness.times import moves, pass_after, unchanged
from .harness.users import MEMBER, OTHER, OWNER, ROOT, SUPPLEMENTARY, THIRD

IGNORED = ("ctime", "atime")  # POSIX leaves open whether rename marks the time of the file


@cases("rename/moves", kind=KINDS, place=["same-directory", "other-directory"], caller=[ROOT, OWNER])
def test_moves(kind: str, place: str, caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    make("dir", "a", OWNER)
    make("dir", "b", OWNER)
    make(kind, "a/old", OWNER)
    new = "a/new" if place == "same-directory" else "b/new"
    before = root.lstat("a/old")
    with moves(root, {"a": "mtime ctime", os.path.dirname(new): "mtime ctime"}):
        as_user(caller).rename("a/old", new)
    root.missing("a/old")
    root.same(new, before, *IGNORED)
    if kind not in ("dir", "symlink"):
        as_user(caller).link(new, "a/second")
        with moves(root, {"a": "mtime ctime"}):
            as_user(caller).rename("a/second", "a/third")
        for name in (new, "a/third"):
            root.expect(name, inode=before.inode, nlink=2, kind=kind)
        root.missing("a/second")


@cases("rename/through-symlink", kind=KINDS)
def test_symlink_itself_is_renamed(kind: str, root: Caller, owner: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    make(kind, "dir/file", OWNER)
    make("symlink", "dir/link", OWNER, target="file")
    link = root.lstat("dir/link")
    with unchanged(root, "dir/file"):
        owner.rename("dir/link", "dir/renamed")
    root.same("dir/renamed", link, *IGNORED)
    root.missing("dir/link")
    checks.equal(root.readlink("dir/renamed"), "file", "target")


@cases("rename/contents")
def test_contents_are_kept(root: Caller, owner: Caller, make: Make) -> None:
    make("dir", "a", OWNER)
    make("dir", "b", OWNER)
    owner.write_file("a/file", b"contents")
    descriptor = owner.open("a/file", os.O_RDWR)
    owner.rename("a/file", "b/file")
    checks.equal(owner.contents("b/file"), b"contents", "contents under the new name")
    owner.pwrite(descriptor, b"more", 8)
    checks.equal(owner.contents("b/file"), b"contentsmore", "contents written through the old descriptor")
    root.rename("b", "a/c")
    checks.equal(owner.contents("a/c/file"), b"contentsmore", "contents in the moved directory")


@cases("rename/ctime", kind=KINDS)
def test_ctime_of_the_renamed_file(kind: str, root: Caller, make: Make) -> None:
    """Linux filesystems mark it; nothing else about the file moves."""
    make("dir", "dir")
    make(kind, "dir/old")
    before = root.lstat("dir/old")
    pass_after(before)
    root.rename("dir/old", "dir/new")
    after = root.lstat("dir/new")
    checks.check(after.ctime > before.ctime, f"ctime did not move: {before.ctime} -> {after.ctime}")
    root.same("dir/new", before, *IGNORED)


@cases(
    "rename/onto/{source}-onto-{existing}/{place}",
    source=KINDS,
    existing=KINDS,
    place=["same-directory", "other-directory"],
)
def test_existing_target(source: str, existing: str, place: str, root: Caller, owner: Caller, make: Make) -> None:
    make("dir", "a", OWNER)
    make("dir", "b", OWNER)
    new = "a/new" if place == "same-directory" else "b/new"
    make(source, "a/old", OWNER)
    make(existing, new, OWNER)
    before = root.lstat("a/old")
    if (source == "dir") == (existing == "dir"):
        with moves(root, {"a": "mtime ctime", os.path.dirname(new): "mtime ctime"}):
            owner.rename("a/old", new)
        root.missing("a/old")
        root.same(new, before, *IGNORED)
    else:
        with unchanged(root, "a", "b", "a/old", new, wait=True):
            owner.fails(ENOTDIR if source == "dir" else EISDIR).rename("a/old", new)


@cases("rename/target-with-links", kind=NOT_DIRECTORIES)
def test_target_with_several_links(kind: str, root: Caller, owner: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    make("regular", "dir/old", OWNER)
    make(kind, "dir/target", OWNER)
    root.setup.link("dir/target", "dir/second")
    with moves(root, {"dir/second": "ctime"}):
        owner.rename("dir/old", "dir/target")
    root.expect("dir/second", kind=kind, nlink=1)
    root.expect("dir/target", kind="regular", nlink=1)
    root.missing("dir/old")


@cases("rename/target-open")
def test_open_target_stays_readable(root: Caller, owner: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    owner.write_file("dir/target", b"replaced")
    owner.write_file("dir/old", b"new")
    descriptor = owner.open("dir/target", os.O_RDWR)
    owner.rename("dir/old", "dir/target")
    checks.equal(owner.pread(descriptor, 100, 0), b"replaced", "contents of the replaced file")
    owner.expect(descriptor, nlink=0, size=8)
    checks.equal(owner.contents("dir/target"), b"new", "contents of the new one")


@cases("rename/same-file", kind=NOT_DIRECTORIES)
def test_two_names_of_one_file(kind: str, root: Caller, owner: Caller, make: Make) -> None:
    """rename(2): if both name the same file it does nothing and succeeds."""
    make("dir", "dir", OWNER)
    make(kind, "dir/one", OWNER)
    root.setup.link("dir/one", "dir/two")
    before = root.lstat("dir/one")
    owner.rename("dir/one", "dir/two")
    owner.rename("dir/one", "dir/one")
    for name in ("dir/one", "dir/two"):
        root.same(name, before, *IGNORED)


@cases("rename/under-itself", below=["dir/new", "dir/sub/new", "dir/sub"], caller=[ROOT, OWNER])
def test_directory_under_itself(below: str, caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    make("dir", "parent", OWNER)
    make("dir", "parent/dir", OWNER)
    make("dir", "parent/dir/sub", OWNER)
    with unchanged(root, "parent", "parent/dir", "parent/dir/sub", wait=True):
        as_user(caller).fails(EINVAL).rename("parent/dir", f"parent/{below}")


@cases("rename/onto-ancestor")
def test_onto_an_ancestor(root: Caller, make: Make) -> None:
    make("dir", "a")
    make("dir", "a/b")
    make("dir", "a/b/c")
    make("regular", "a/b/file")
    with unchanged(root, "a", "a/b", "a/b/c", "a/b/file", wait=True):
        root.fails(ENOTEMPTY, EEXIST).rename("a/b/c", "a/b")
        root.fails(ENOTEMPTY, EEXIST).rename("a/b/c", "a")
        root.fails(ENOTEMPTY, EEXIST, EISDIR).rename("a/b/file", "a")


@cases("rename/dots", name=["dir/.", "dir/..", "dir/sub/.", "dir/sub/.."])
def test_dots(name: str, root: Caller, owner: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    make("dir", "dir/sub", OWNER)
    make("dir", "dir/source", OWNER)
    with unchanged(root, "dir", "dir/sub", wait=True):
        owner.fails(EINVAL, EBUSY).rename(name, "dir/new")
        owner.fails(EINVAL, EBUSY, ENOTEMPTY, EEXIST).rename("dir/source", name)
    root.missing("dir/new")


@cases("rename/not-empty/{kind}/{place}", kind=KINDS, place=["same-directory", "other-directory"])
def test_target_directory_not_empty(kind: str, place: str, root: Caller, owner: Caller, make: Make) -> None:
    make("dir", "a", OWNER)
    make("dir", "b", OWNER)
    target = "a/target" if place == "same-directory" else "b/target"
    make("dir", "a/source", OWNER)
    make("dir", target, OWNER)
    make(kind, f"{target}/inside", OWNER)
    with unchanged(root, "a", "b", "a/source", target, f"{target}/inside", wait=True):
        owner.fails(EEXIST, ENOTEMPTY).rename("a/source", target)
    root.setup.attempt("rmdir" if kind == "dir" else "unlink", f"{target}/inside")
    owner.rename("a/source", target)
    root.missing("a/source")


@cases("rename/parent-of-a-moved-directory/{replaced}", replaced=["nothing", "empty-directory"])
def test_dotdot_and_links_follow(replaced: str, root: Caller, owner: Caller, make: Make) -> None:
    make("dir", "a", OWNER)
    make("dir", "b", OWNER)
    make("dir", "a/moved", OWNER)
    if replaced != "nothing":
        make("dir", "b/moved", OWNER)
    a, b = root.lstat("a"), root.lstat("b")
    counted = a.nlink > 2  # some filesystems (btrfs) do not count the links of directories
    checks.equal(root.lstat("a/moved/..").inode, a.inode, "parent before")
    owner.rename("a/moved", "b/moved")
    checks.equal(root.lstat("b/moved/..").inode, b.inode, "parent after")
    root.expect("a", nlink=a.nlink - counted)
    root.expect("b", nlink=b.nlink + (counted and replaced == "nothing"))
    root.expect("b/moved", nlink=2 if counted else 1)


@cases("rename/write-permission-of-a-directory/{caller}", caller=[OWNER, MEMBER, SUPPLEMENTARY, OTHER])
def test_moving_a_directory_writes_it(caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    """A new parent changes the directory's `..`: whoever moves it must be allowed to write it (rename(2), EACCES)."""
    mode = {OWNER: 0o577, MEMBER: 0o757, SUPPLEMENTARY: 0o757}.get(caller, 0o775)
    make("dir", "a", ROOT, mode=0o777)
    make("dir", "b", ROOT, mode=0o777)
    make("dir", "a/dir", OWNER, mode=mode)
    user = as_user(caller)
    with unchanged(root, "a", "b", "a/dir", wait=True):
        user.fails(EACCES).rename("a/dir", "b/dir")
    user.rename("a/dir", "a/elsewhere")
    root.setup.chmod("a/elsewhere", 0o777)
    user.rename("a/elsewhere", "b/dir")
    root.expect("b/dir", kind="dir")


@cases("rename/eacces/{which}/{caller}", which=["from", "to"], caller=[OWNER, MEMBER, SUPPLEMENTARY, OTHER])
def test_needs_write_permission_of_both_parents(
    which: str, caller: Identity, root: Caller, as_user: AsUser, make: Make
) -> None:
    closed = {OWNER: 0o577, MEMBER: 0o757, SUPPLEMENTARY: 0o757}.get(caller, 0o775)
    make("dir", "from", OWNER, mode=closed if which == "from" else 0o777)
    make("dir", "to", OWNER, mode=closed if which == "to" else 0o777)
    make("regular", "from/file", caller)
    make("regular", "to/there", caller)
    user = as_user(caller)
    with unchanged(root, "from", "to", "from/file", "to/there", wait=True):
        user.fails(EACCES).rename("from/file", "to/new")
        user.fails(EACCES).rename("from/file", "to/there")
    root.setup.chmod(which, 0o777)
    user.rename("from/file", "to/new")
    user.rename("to/new", "to/there")
    root.expect("to/there", owner=(caller.uid, caller.gid))


@cases("rename/exdev", kind=KINDS)
def test_other_filesystem(kind: str, small_tmpfs: SmallFilesystem, root: Caller, make: Make) -> None:
    make(kind, "file")
    with unchanged(root, "file", "."):
        root.fails(EXDEV).rename("file", f"{small_tmpfs.path}/new")
    root.missing(f"{small_tmpfs.path}/new")


@cases("rename/atomic")
def test_target_is_always_there(root: Caller, as_user: AsUser, make: Make) -> None:
    """Whoever opens the target while it is replaced finds the old file or the new one, whole."""
    make("dir", "dir", mode=0o777)
    writer, reader = as_user(THIRD), as_user(OTHER)
    writer.setup.write_file("dir/target", b"0" * 100)
    contents = {b"0" * 100}
    for number in range(1, 60):
        text = str(number % 10).encode() * 100
        contents.add(text)
        writer.setup.write_file("dir/new", text)
        reader.start("read_file", "dir/target")
        writer.rename("dir/new", "dir/target")
        checks.check(reader.finish() in contents, "the reader saw a mixture")
    root.missing("dir/new")


@cases("rename/cwd-and-open-directory")
def test_directories_in_use(root: Caller, owner: Caller, make: Make) -> None:
    """A directory that is somebody's working directory, or open, moves with its users."""
    make("dir", "a", OWNER)
    make("dir", "a/work", OWNER)
    descriptor = owner.open("a/work", os.O_RDONLY | os.O_DIRECTORY)
    owner.chdir("a/work")
    root.rename("a/work", "elsewhere")
    owner.write_file("file", b"x")
    root.expect("elsewhere/file", size=1)
    inner = owner.openat(descriptor, "file", os.O_RDONLY)
    before: Status = root.lstat("elsewhere/file")
    checks.equal(owner.fstat(inner).inode, before.inode, "the file below the moved directory")
