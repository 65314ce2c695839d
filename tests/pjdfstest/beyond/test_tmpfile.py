"""O_TMPFILE (open(2)): a file without a name, which may get one."""

import os
from errno import EACCES, EINVAL, EISDIR, ENOENT, ENOTDIR

from ..harness import checks
from ..harness.caller import AT_FDCWD, AT_SYMLINK_FOLLOW, O_TMPFILE, Caller
from ..harness.cases import cases
from ..harness.process import Identity
from ..harness.scene import AsUser, Make
from ..harness.times import unchanged
from ..harness.users import MEMBER, OTHER, OWNER, ROOT, SUPPLEMENTARY


@cases("tmpfile/mode-and-owner", umask={"000": 0, "027": 0o027}, caller=[ROOT, OWNER, MEMBER, SUPPLEMENTARY])
def test_mode_and_owner(umask: int, caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    make("dir", "dir", OWNER, mode=0o777)
    make("dir", "inherits", OWNER, mode=0o2777)
    user = as_user(caller)
    user.umask(umask)
    with unchanged(root, "dir", wait=True):
        descriptor = user.open("dir", O_TMPFILE | os.O_RDWR, 0o666)
    user.expect(descriptor, mode=0o666 & ~umask, owner=(caller.uid, caller.gid), nlink=0, size=0, kind="regular")
    descriptor = user.open("inherits", O_TMPFILE | os.O_WRONLY, 0o640)
    user.expect(descriptor, owner=(caller.uid, OWNER.gid))
    checks.equal(root.names("dir"), [], "names")


@cases("tmpfile/link")
def test_gets_a_name(root: Caller, owner: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    descriptor = owner.open("dir", O_TMPFILE | os.O_RDWR, 0o600)
    owner.write(descriptor, b"complete")
    owner.linkat(AT_FDCWD, f"/proc/self/fd/{descriptor}", AT_FDCWD, "dir/file", AT_SYMLINK_FOLLOW)
    owner.expect(descriptor, nlink=1)
    root.expect("dir/file", size=8, mode=0o600, owner=(OWNER.uid, OWNER.gid))
    checks.equal(owner.contents("dir/file"), b"complete", "contents")


@cases("tmpfile/exclusive")
def test_never_gets_a_name(root: Caller, owner: Caller, make: Make) -> None:
    """With O_EXCL it cannot be linked."""
    make("dir", "dir", OWNER)
    descriptor = owner.open("dir", O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o600)
    owner.fails(ENOENT).linkat(AT_FDCWD, f"/proc/self/fd/{descriptor}", AT_FDCWD, "dir/file", AT_SYMLINK_FOLLOW)
    root.missing("dir/file")


@cases("tmpfile/contents")
def test_contents(owner: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    first = owner.open("dir", O_TMPFILE | os.O_RDWR, 0o600)
    second = owner.open("dir", O_TMPFILE | os.O_RDWR, 0)
    owner.write(first, b"first")
    owner.write(second, b"the second")
    owner.ftruncate(second, 3)
    checks.equal(owner.pread(first, 100, 0), b"first", "contents")
    checks.equal(owner.pread(second, 100, 0), b"the", "contents")
    checks.check(owner.fstat(first).inode != owner.fstat(second).inode, "both are one file")


@cases("tmpfile/errors")
def test_errors(root: Caller, owner: Caller, other: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    make("regular", "file", OWNER)
    owner.open("dir", O_TMPFILE | os.O_WRONLY, 0o600)
    owner.fails(EINVAL).open("dir", O_TMPFILE | os.O_RDONLY, 0o600)
    owner.fails(ENOTDIR).open("file", O_TMPFILE | os.O_RDWR, 0o600)
    owner.fails(ENOENT).open("missing", O_TMPFILE | os.O_RDWR, 0o600)
    other.fails(EACCES).open("dir", O_TMPFILE | os.O_RDWR, 0o600)
    owner.fails(EISDIR, EINVAL).open("dir", os.O_RDWR | os.O_CREAT, 0o600)
    checks.equal(root.names("dir"), [], "names")


@cases("tmpfile/caller", caller=[OTHER])
def test_in_a_directory_of_another(caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    make("dir", "dir", OWNER, mode=0o1777)
    user = as_user(caller)
    descriptor = user.open("dir", O_TMPFILE | os.O_RDWR, 0o644)
    user.linkat(AT_FDCWD, f"/proc/self/fd/{descriptor}", AT_FDCWD, "dir/his", AT_SYMLINK_FOLLOW)
    root.expect("dir/his", owner=(caller.uid, caller.gid), mode=0o644)
