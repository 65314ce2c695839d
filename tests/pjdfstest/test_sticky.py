"""Sticky directories: a name goes only at the will of who owns it, its directory, or the system (inode(7))."""

import os
from errno import EACCES, EPERM

from .harness.caller import Caller
from .harness.cases import cases
from .harness.process import Identity
from .harness.scene import AsUser, Make
from .harness.status import KINDS, NOT_DIRECTORIES
from .harness.times import unchanged
from .harness.users import OTHER, OWNER, ROOT, SUPPLEMENTARY, THIRD

USERS = (OWNER, OTHER, THIRD)
CALLERS = (OWNER, OTHER, THIRD, ROOT)
REFUSED = (EPERM, EACCES)


def may_remove(caller: Identity, directory: Identity, file: Identity) -> bool:
    return caller == ROOT or caller in (directory, file)


@cases(
    "rename/sticky/dir-{directory}-file-{file}/{kind}/by-{caller}",
    directory=USERS,
    file=USERS,
    kind=KINDS,
    caller=CALLERS,
)
def test_rename_from(
    directory: Identity, file: Identity, kind: str, caller: Identity, root: Caller, as_user: AsUser, make: Make
) -> None:
    """Out of a sticky directory, and under another name in it."""
    make("dir", "sticky", directory, mode=0o1777)
    make("dir", "free", OTHER, mode=0o777)
    make(kind, "sticky/file", file, mode=0o777 if kind == "dir" else 0o600)
    allowed = may_remove(caller, directory, file)
    user = as_user(caller)
    inode = root.lstat("sticky/file").inode
    for new in ("free/file", "sticky/new"):
        if allowed:
            user.rename("sticky/file", new)
            root.missing("sticky/file")
            root.expect(new, inode=inode, owner=(file.uid, file.gid), kind=kind)
            root.setup.rename(new, "sticky/file")
        else:
            with unchanged(root, "sticky", "sticky/file", "free"):
                user.fails(*REFUSED).rename("sticky/file", new)
            root.missing(new)


@cases(
    "rename/sticky-target/dir-{directory}-file-{file}/{kind}/by-{caller}",
    directory=USERS,
    file=USERS,
    kind=KINDS,
    caller=CALLERS,
)
def test_rename_onto(
    directory: Identity, file: Identity, kind: str, caller: Identity, root: Caller, as_user: AsUser, make: Make
) -> None:
    """Onto a name in a sticky directory, from elsewhere and from within."""
    make("dir", "sticky", directory, mode=0o1777)
    make("dir", "free", OTHER, mode=0o777)
    allowed = may_remove(caller, directory, file)
    user = as_user(caller)
    sources = ("dir",) if kind == "dir" else NOT_DIRECTORIES
    for source in sources:
        for old in ("free/source", "sticky/source") if source == kind else ("free/source",):
            make(kind, "sticky/target", file)
            make(source, old, caller)
            if allowed:
                user.rename(old, "sticky/target")
                root.missing(old)
                root.expect("sticky/target", kind=source, owner=(caller.uid, caller.gid))
                root.setup.remove(source, "sticky/target")
            else:
                with unchanged(root, "sticky", "free", old, "sticky/target"):
                    user.fails(*REFUSED).rename(old, "sticky/target")
                root.setup.remove(source, old)
                root.setup.remove(kind, "sticky/target")


@cases(
    "{call}/sticky/dir-{directory}-file-{file}/{kind}/by-{caller}",
    call=["unlink", "rmdir"],
    directory=USERS,
    file=USERS,
    kind=KINDS,
    caller=CALLERS,
    where=lambda call, kind, **_: (call == "rmdir") == (kind == "dir"),
)
def test_remove(
    call: str,
    directory: Identity,
    file: Identity,
    kind: str,
    caller: Identity,
    root: Caller,
    as_user: AsUser,
    make: Make,
) -> None:
    make("dir", "sticky", directory, mode=0o1777)
    make(kind, "sticky/file", file)
    user = as_user(caller)
    if may_remove(caller, directory, file):
        getattr(user, call)("sticky/file")
        root.missing("sticky/file")
    else:
        with unchanged(root, "sticky", "sticky/file"):
            getattr(user.fails(*REFUSED), call)("sticky/file")


@cases("rename/sticky/foreign-directory/{new}", new=["free/dir", "sticky/new"])
def test_moving_a_foreign_directory(new: str, root: Caller, owner: Caller, make: Make) -> None:
    """The owner of a sticky directory may rename others' directories in it, but move them elsewhere only if he may
    write them, since `..` in them changes."""
    make("dir", "sticky", OWNER, mode=0o1777)
    make("dir", "free", OWNER, mode=0o777)
    make("dir", "sticky/dir", OTHER, mode=0o755)
    if new == "free/dir":
        with unchanged(root, "sticky", "free", "sticky/dir"):
            owner.fails(*REFUSED).rename("sticky/dir", new)
        root.setup.chmod("sticky/dir", 0o777)
    owner.rename("sticky/dir", new)
    root.expect(new, owner=(OTHER.uid, OTHER.gid))


@cases("sticky/group-membership-is-not-ownership", kind=KINDS)
def test_members_of_the_group(kind: str, root: Caller, as_user: AsUser, make: Make) -> None:
    make("dir", "sticky", OWNER, mode=0o1777)
    make(kind, "sticky/file", OWNER)
    member = as_user(SUPPLEMENTARY)
    with unchanged(root, "sticky", "sticky/file"):
        member.fails(*REFUSED).rename("sticky/file", "sticky/new")
        member.fails(*REFUSED).remove(kind, "sticky/file")


@cases("sticky/only-removal", kind=["regular"])
def test_other_calls_are_free(kind: str, root: Caller, other: Caller, make: Make) -> None:
    """The bit restricts nothing but removal and renaming."""
    make("dir", "sticky", OWNER, mode=0o1777)
    make(kind, "sticky/file", OWNER, mode=0o666)
    other.write(other.open("sticky/file", os.O_WRONLY), b"data")
    other.mkdir("sticky/dir")
    other.rename("sticky/dir", "sticky/renamed")
    root.expect("sticky/file", size=4)
