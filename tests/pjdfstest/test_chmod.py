"""chmod(2), fchmod(2), and changing a mode without following symlinks."""

import os
from errno import ENOSYS, EOPNOTSUPP, EPERM

import pytest

from .harness import checks
from .harness.caller import Caller
from .harness.cases import cases
from .harness.process import Identity
from .harness.scene import AsUser, Make
from .harness.status import KINDS, NOT_DIRECTORIES, NOT_SYMLINKS
from .harness.times import moves, unchanged
from .harness.users import JOINED, MEMBER, OTHER, OWNER, ROOT, STRANGE_GROUP, SUPPLEMENTARY

MODES = (0o111, 0o000, 0o777, 0o4711, 0o2755, 0o1777, 0o7777, 0o644)


def need_lchmod(caller: Caller, path: str) -> None:
    """Skip where the kernel cannot change a mode without following symlinks (before Linux 6.6)."""
    if caller.attempt("lchmod", path, 0o644)[0] == ENOSYS:
        pytest.skip("this kernel has no fchmodat2(2)")


@cases("chmod/mode", kind=NOT_SYMLINKS, caller=[ROOT, OWNER])
def test_mode(kind: str, caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    make(kind, "file", OWNER)
    for mode in MODES:
        as_user(caller).chmod("file", mode)
        root.expect("file", kind=kind, mode=mode, owner=(OWNER.uid, OWNER.gid))


@cases("chmod/ctime", kind=NOT_SYMLINKS, call=["chmod", "lchmod"])
def test_ctime_moves(kind: str, call: str, root: Caller, owner: Caller, other: Caller, make: Make) -> None:
    make(kind, "file", OWNER)
    if call == "lchmod":
        need_lchmod(owner, "file")
    with moves(root, {"file": "ctime"}):
        getattr(owner, call)("file", 0o711)
    with unchanged(root, "file", ".", wait=True):
        getattr(other.fails(EPERM), call)("file", 0o777)
    root.expect("file", mode=0o711)


@cases("chmod/through-symlink", kind=NOT_SYMLINKS)
def test_follows_symlinks(kind: str, root: Caller, owner: Caller, make: Make) -> None:
    make(kind, "file", OWNER)
    make("symlink", "link", OWNER, target="file")
    with unchanged(root, "link"):
        for mode in MODES:
            owner.chmod("link", mode)
            root.expect("file", kind=kind, mode=mode)


@cases("chmod/without-following", kind=NOT_SYMLINKS)
def test_lchmod(kind: str, root: Caller, owner: Caller, make: Make) -> None:
    make(kind, "file", OWNER)
    need_lchmod(owner, "file")
    for mode in MODES:
        owner.lchmod("file", mode)
        root.expect("file", kind=kind, mode=mode)


@cases("chmod/of-symlink", caller=[ROOT, OWNER])
def test_symlinks_have_no_mode(caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    make("regular", "file", OWNER)
    make("symlink", "link", OWNER, target="file")
    need_lchmod(root, "file")
    with unchanged(root, "file", "link"):
        as_user(caller).fails(EOPNOTSUPP).lchmod("link", 0o600)


@cases("chmod/eperm", kind=NOT_SYMLINKS, caller=[OTHER, MEMBER, SUPPLEMENTARY])
def test_only_the_owner(kind: str, caller: Identity, root: Caller, owner: Caller, as_user: AsUser, make: Make) -> None:
    make(kind, "file", OWNER, mode=0o666)
    make("symlink", "link", caller, target="file")
    user = as_user(caller)
    with unchanged(root, "file", "link"):
        for mode in (0o644, 0o777, 0o666, 0o4755):
            user.fails(EPERM).chmod("file", mode)
            user.fails(EPERM).chmod("link", mode)
            user.fails(EPERM, ENOSYS).lchmod("file", mode)
    make(kind, "roots", ROOT, mode=0o666)
    with unchanged(root, "roots"):
        owner.fails(EPERM).chmod("roots", 0o777)


@cases("fchmod/eperm", kind=["regular", "dir"], caller=[OTHER, MEMBER, SUPPLEMENTARY])
def test_only_the_owner_by_descriptor(kind: str, caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    make(kind, "file", OWNER, mode=0o777)
    user = as_user(caller)
    descriptor = user.setup.open("file", os.O_RDONLY)
    with unchanged(root, "file"):
        user.fails(EPERM).fchmod(descriptor, 0o700)


@cases("chmod/set-gid/outside-group", kind=NOT_SYMLINKS)
def test_set_gid_needs_the_group(kind: str, root: Caller, owner: Caller, as_user: AsUser, make: Make) -> None:
    """chmod(2): the bit is turned off without an error if the file's group is none of the caller's."""
    make(kind, "file", ids=(OWNER.uid, STRANGE_GROUP))
    owner.chmod("file", 0o2755)
    root.expect("file", mode=0o755)
    owner.chmod("file", 0o6755)
    root.expect("file", mode=0o4755)
    root.chmod("file", 0o2755)
    root.expect("file", mode=0o2755)
    make(kind, "shared", ids=(JOINED.uid, JOINED.groups[0]))
    owner.chmod("shared", 0o2755)
    root.expect("shared", mode=0o755)
    as_user(JOINED).chmod("shared", 0o2755)
    root.expect("shared", mode=0o2755)


@cases("chmod/sticky", kind=NOT_DIRECTORIES, where=lambda kind: kind != "symlink")
def test_sticky_on_files(kind: str, root: Caller, owner: Caller, make: Make) -> None:
    """Linux lets anybody set it on his files, where other systems answer EFTYPE."""
    make(kind, "file", OWNER)
    make("symlink", "link", OWNER, target="file")
    owner.chmod("file", 0o1644)
    root.expect("file", mode=0o1644)
    owner.chmod("file", 0o755)
    owner.chmod("link", 0o1640)
    root.expect("file", mode=0o1640, kind=kind)
    root.chmod("file", 0o1751)
    root.expect("file", mode=0o1751)


@cases(
    "chmod/write-clears",
    caller=[OTHER, OWNER, MEMBER, SUPPLEMENTARY],
    mode={"4777": 0o4777, "2777": 0o2777, "6777": 0o6777},
)
def test_write_clears_set_ids(caller: Identity, mode: int, root: Caller, as_user: AsUser, make: Make) -> None:
    make("regular", "file", OWNER, mode=mode)
    user = as_user(caller)
    descriptor = user.open("file", os.O_WRONLY)
    root.expect("file", mode=mode)
    user.write(descriptor, b"x")
    root.expect("file", mode=0o777, size=1)
    checks.equal(user.fstat(descriptor).mode, 0o777, "mode by descriptor")


@cases("chmod/write-clears/not-for-root")
def test_roots_write_keeps_set_ids(root: Caller, make: Make) -> None:
    make("regular", "file", OWNER, mode=0o6777)
    descriptor = root.open("file", os.O_WRONLY)
    root.write(descriptor, b"x")
    root.expect("file", mode=0o6777, size=1)


@cases("fchmod/handle", kind=["regular", "dir"])
def test_descriptor_decides(kind: str, root: Caller, owner: Caller, make: Make) -> None:
    """fchmod acts on the open file, whatever its name means by now."""
    make("dir", ".work", OWNER)
    make(kind, ".work/file", OWNER)
    descriptor = owner.open(".work/file", os.O_RDONLY)
    owner.fchmod(descriptor, 0o751)
    root.expect(".work/file", mode=0o751)
    owner.rename(".work/file", ".work/elsewhere")
    make(kind, ".work/file", OWNER, mode=0o700)
    owner.fchmod(descriptor, 0o711)
    root.expect(".work/file", mode=0o700)
    root.expect(".work/elsewhere", mode=0o711)
    owner.remove(kind, ".work/elsewhere")
    owner.fchmod(descriptor, 0o640)
    owner.expect(descriptor, mode=0o640)
    root.expect(".work/file", mode=0o700)


@cases("chmod/type-bits", kind=KINDS, where=lambda kind: kind != "symlink")
def test_type_bits_are_ignored(kind: str, root: Caller, owner: Caller, make: Make) -> None:
    make(kind, "file", OWNER)
    owner.chmod("file", 0o170000 | 0o4700)
    root.expect("file", kind=kind, mode=0o4700)
