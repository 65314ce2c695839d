"""renameat2(2): RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT."""

import os
from errno import EACCES, EEXIST, EINVAL, ENOENT, EPERM

from ..harness import checks
from ..harness.caller import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, Caller
from ..harness.cases import cases
from ..harness.process import Identity
from ..harness.scene import AsUser, Make
from ..harness.status import KINDS, NOT_DIRECTORIES
from ..harness.targets import Target
from ..harness.times import moves, unchanged
from ..harness.users import MEMBER, OTHER, OWNER, ROOT, SUPPLEMENTARY


@cases("renameat2/noreplace/free", kind=KINDS, caller=[ROOT, OWNER])
def test_noreplace(kind: str, caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    make("dir", "a", OWNER)
    make("dir", "b", OWNER)
    make(kind, "a/old", OWNER)
    before = root.lstat("a/old")
    for old, new in (("a/old", "a/new"), ("a/new", "b/new")):
        with moves(root, {os.path.dirname(name): "mtime ctime" for name in (old, new)}):
            as_user(caller).renameat2(old, new, RENAME_NOREPLACE)
        root.missing(old)
        root.same(new, before, "ctime", "atime")


@cases("renameat2/noreplace/eexist/{source}-onto-{existing}", source=KINDS, existing=(*KINDS, "itself"))
def test_noreplace_onto_something(source: str, existing: str, root: Caller, owner: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    make(source, "dir/old", OWNER)
    if existing != "itself":
        make(existing, "dir/new", OWNER)
    new = "dir/old" if existing == "itself" else "dir/new"
    with unchanged(root, "dir", "dir/old", new, wait=True):
        owner.fails(EEXIST).renameat2("dir/old", new, RENAME_NOREPLACE)


@cases("renameat2/exchange/{one}-{two}/{place}", one=KINDS, two=KINDS, place=["same-directory", "other-directory"])
def test_exchange(
    one: str, two: str, place: str, posix_target: Target, root: Caller, owner: Caller, make: Make
) -> None:
    make("dir", "a", OWNER)
    make("dir", "b", OWNER)
    second = "a/two" if place == "same-directory" else "b/two"
    make(one, "a/one", OWNER)
    make(two, second, OWNER)
    first_before, second_before = root.lstats(["a/one", second])
    a, b = root.lstats(["a", "b"])
    with moves(root, {"a": "mtime ctime", os.path.dirname(second): "mtime ctime"}):
        owner.renameat2("a/one", second, RENAME_EXCHANGE)
    # xfs counts a new ".." as a change of the directory's contents.
    touched = ["mtime"] if place == "other-directory" and posix_target.below == "xfs" else []
    root.same("a/one", second_before, "ctime", "atime", *(touched if two == "dir" else []))
    root.same(second, first_before, "ctime", "atime", *(touched if one == "dir" else []))
    if place == "other-directory" and a.nlink > 1 and b.nlink > 1:
        change = (two == "dir") - (one == "dir")
        root.expect("a", nlink=a.nlink + change)
        root.expect("b", nlink=b.nlink - change)


@cases("renameat2/exchange/contents")
def test_exchange_swaps_contents(root: Caller, owner: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    make("dir", "dir/sub", OWNER)
    owner.write_file("dir/one", b"one")
    owner.write_file("dir/sub/inner", b"inner")
    owner.renameat2("dir/one", "dir/sub", RENAME_EXCHANGE)
    checks.equal(owner.contents("dir/sub"), b"one", "contents of the file")
    checks.equal(owner.contents("dir/one/inner"), b"inner", "contents below the directory")
    checks.equal(sorted(owner.names("dir")), [b"one", b"sub"], "names")
    checks.equal(root.lstat("dir/one/..").inode, root.lstat("dir").inode, "the parent")


@cases("renameat2/exchange/missing", kind=KINDS)
def test_exchange_needs_both(kind: str, root: Caller, owner: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    make(kind, "dir/one", OWNER)
    with unchanged(root, "dir", "dir/one", wait=True):
        owner.fails(ENOENT).renameat2("dir/one", "dir/two", RENAME_EXCHANGE)
        owner.fails(ENOENT).renameat2("dir/two", "dir/one", RENAME_EXCHANGE)


@cases("renameat2/exchange/under-itself")
def test_exchange_with_something_below(root: Caller, owner: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    make("dir", "dir/a", OWNER)
    make("dir", "dir/a/b", OWNER)
    with unchanged(root, "dir", "dir/a", "dir/a/b"):
        owner.fails(EINVAL).renameat2("dir/a", "dir/a/b", RENAME_EXCHANGE)
        owner.fails(EINVAL).renameat2("dir/a/b", "dir/a", RENAME_EXCHANGE)


@cases("renameat2/exchange/sticky/{which}", which=["first", "second"])
def test_exchange_in_sticky_directories(which: str, root: Caller, owner: Caller, make: Make) -> None:
    """Both names go, so both must be the caller's."""
    make("dir", "sticky", ROOT, mode=0o1777)
    make("regular", "sticky/one", OTHER if which == "first" else OWNER)
    make("regular", "sticky/two", OTHER if which == "second" else OWNER)
    with unchanged(root, "sticky", "sticky/one", "sticky/two"):
        owner.fails(EPERM, EACCES).renameat2("sticky/one", "sticky/two", RENAME_EXCHANGE)


@cases(
    "renameat2/eacces/{flag}/{caller}",
    flag={"noreplace": RENAME_NOREPLACE, "exchange": RENAME_EXCHANGE},
    caller=[MEMBER, SUPPLEMENTARY, OTHER],
)
def test_permissions(flag: int, caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    make("dir", "dir", OWNER, mode=0o755)
    make("regular", "dir/one", caller)
    make("regular", "dir/two", caller)
    new = "dir/two" if flag == RENAME_EXCHANGE else "dir/new"
    with unchanged(root, "dir", "dir/one", "dir/two"):
        as_user(caller).fails(EACCES).renameat2("dir/one", new, flag)


@cases("renameat2/einval", flags=[RENAME_NOREPLACE | RENAME_EXCHANGE, RENAME_WHITEOUT | RENAME_EXCHANGE, 8, 1 << 31])
def test_bad_flags(flags: int, root: Caller, make: Make) -> None:
    make("regular", "one")
    make("regular", "two")
    with unchanged(root, ".", "one", "two"):
        root.fails(EINVAL).renameat2("one", "two", flags)


@cases("renameat2/whiteout/{kind}/{onto}", kind=KINDS, onto=["free", "existing"])
def test_whiteout(kind: str, onto: str, root: Caller, make: Make) -> None:
    """The old name becomes a character device 0/0, which overlayfs takes for a deleted name."""
    make("dir", "dir")
    make(kind, "dir/old")
    if onto == "existing":
        make("dir" if kind == "dir" else "regular", "dir/new")
    before = root.lstat("dir/old")
    root.renameat2("dir/old", "dir/new", RENAME_WHITEOUT)
    root.expect("dir/old", kind="char", rdev=0, nlink=1)
    root.same("dir/new", before, "ctime", "atime")
    root.unlink("dir/old")
    root.missing("dir/old")


@cases("renameat2/whiteout/noreplace", kind=NOT_DIRECTORIES)
def test_whiteout_with_noreplace(kind: str, root: Caller, make: Make) -> None:
    make(kind, "old")
    make(kind, "there")
    with unchanged(root, ".", "old", "there"):
        root.fails(EEXIST).renameat2("old", "there", RENAME_WHITEOUT | RENAME_NOREPLACE)
    root.renameat2("old", "new", RENAME_WHITEOUT | RENAME_NOREPLACE)
    root.expect("old", kind="char", rdev=0)
    root.expect("new", kind=kind)
