"""POSIX access control lists (acl(5))."""

import os
from errno import EACCES, EINVAL, ENODATA, EOPNOTSUPP, EPERM

import pytest

from ..harness import checks
from ..harness.acl import ACCESS, DEFAULT, acl, text
from ..harness.caller import Caller
from ..harness.cases import cases
from ..harness.creation import BY_ANYBODY, WITH_MODE, Creation
from ..harness.process import Identity
from ..harness.scene import AsUser, Make
from ..harness.times import moves, unchanged
from ..harness.users import MEMBER, OTHER, OWNER, ROOT, SUPPLEMENTARY, THIRD

BASE = "user_obj:rw- group_obj:r-- other:---"
NAMED = f"user_obj:rw- user:{OTHER.uid}:rw- group_obj:r-- mask:rw- other:---"
NAMED_GROUP = f"user_obj:rw- group_obj:--- group:{THIRD.gid}:r-- mask:rwx other:---"


@pytest.fixture(autouse=True)
def _supported(root: Caller, make: Make) -> None:
    make("dir", "probe")
    if root.attempt("setxattr", "probe", DEFAULT, acl("user_obj:rwx group_obj:r-x other:r-x"), 0, True)[0]:
        pytest.skip("no access control lists on this filesystem")
    root.setup.rmdir("probe")


@cases("acl/access/round-trip", kind=["regular", "dir", "fifo"], label=["base", "named-user", "named-group"])
def test_round_trip(kind: str, label: str, root: Caller, owner: Caller, make: Make) -> None:
    make(kind, "file", OWNER, mode=0o600)
    wanted = {"base": BASE, "named-user": NAMED, "named-group": NAMED_GROUP}[label]
    mode = {"base": 0o640, "named-user": 0o660, "named-group": 0o670}[label]
    with moves(root, {"file": "ctime"}):
        owner.setxattr("file", ACCESS, acl(wanted))
    root.expect("file", mode=mode)
    if label == "base":  # nothing more than a mode: no list is kept
        root.fails(ENODATA).getxattr("file", ACCESS)
    else:
        checks.equal(text(root.getxattr("file", ACCESS)), wanted, "access control list")
        checks.check(ACCESS in root.listxattr("file"), "the list is not listed")
        owner.removexattr("file", ACCESS)
        root.fails(ENODATA).getxattr("file", ACCESS)


@cases("acl/access/named-user/{letters}", letters=["---", "r--", "-w-", "rw-", "r-x", "rwx"])
def test_named_user(letters: str, root: Caller, owner: Caller, other: Caller, make: Make) -> None:
    make("regular", "file", OWNER, mode=0o600)
    owner.setxattr("file", ACCESS, acl(f"user_obj:rw- user:{OTHER.uid}:{letters} group_obj:--- mask:rwx other:---"))
    for access, needed in ((os.O_RDONLY, "r"), (os.O_WRONLY, "w"), (os.O_RDWR, "rw")):
        other.expects(set(needed) <= set(letters), EACCES).open("file", access)
    other.expects("w" in letters, EACCES).truncate("file", 0)
    checks.equal(other.access("file", os.X_OK), "x" in letters, "execute permission")


@cases("acl/access/named-group/{caller}", caller=[THIRD, MEMBER, SUPPLEMENTARY, OTHER])
def test_named_group(caller: Identity, owner: Caller, as_user: AsUser, make: Make) -> None:
    """A member of any group that grants it may; who is in a group that applies is not "other"."""
    make("regular", "file", OWNER, mode=0o600)
    owner.setxattr("file", ACCESS, acl(f"user_obj:rw- group_obj:--- group:{THIRD.gid}:rw- mask:rw- other:r--"))
    user = as_user(caller)
    user.expects(caller in (THIRD, OTHER), EACCES).open("file", os.O_RDONLY)
    user.expects(caller == THIRD, EACCES).open("file", os.O_WRONLY)


@cases("acl/access/mask")
def test_mask(root: Caller, owner: Caller, other: Caller, make: Make) -> None:
    """chmod sets the mask, which bounds named users and groups (acl(5))."""
    make("regular", "file", OWNER, mode=0o600)
    owner.setxattr("file", ACCESS, acl(f"user_obj:rw- user:{OTHER.uid}:rw- group_obj:rw- mask:rw- other:---"))
    other.open("file", os.O_RDWR)
    owner.chmod("file", 0o640)
    root.expect("file", mode=0o640)
    checks.equal(
        text(root.getxattr("file", ACCESS)),
        f"user_obj:rw- user:{OTHER.uid}:rw- group_obj:rw- mask:r-- other:---",
        "access control list after chmod",
    )
    other.open("file", os.O_RDONLY)
    other.fails(EACCES).open("file", os.O_RDWR)
    owner.chmod("file", 0o600)
    other.fails(EACCES).open("file", os.O_RDONLY)
    owner.chmod("file", 0o067)
    checks.equal(text(root.getxattr("file", ACCESS)).split()[-2:], ["mask:rw-", "other:rwx"], "mask and other")
    other.open("file", os.O_RDWR)


@cases("acl/access/directory")
def test_directories(root: Caller, owner: Caller, other: Caller, make: Make) -> None:
    make("dir", "dir", OWNER, mode=0o700)
    make("regular", "dir/file", OWNER, mode=0o666)
    other.fails(EACCES).open("dir/file", os.O_RDONLY)
    owner.setxattr("dir", ACCESS, acl(f"user_obj:rwx user:{OTHER.uid}:--x group_obj:--- mask:rwx other:---"))
    other.open("dir/file", os.O_RDONLY)
    other.fails(EACCES).open("dir", os.O_RDONLY)
    other.fails(EACCES).mkdir("dir/new")
    owner.setxattr("dir", ACCESS, acl(f"user_obj:rwx user:{OTHER.uid}:rwx group_obj:--- mask:rwx other:---"))
    other.mkdir("dir/new")
    other.rename("dir/file", "dir/new/file")
    root.expect("dir/new", owner=(OTHER.uid, OTHER.gid))
    checks.equal(sorted(other.names("dir")), [b"new"], "names")


@cases("acl/eperm", which={"access": ACCESS, "default": DEFAULT}, caller=[OTHER, MEMBER, SUPPLEMENTARY])
def test_only_the_owner(which: str, caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    make("dir", "dir", OWNER, mode=0o777)
    with unchanged(root, "dir", wait=True):
        as_user(caller).fails(EPERM).setxattr("dir", which, acl("user_obj:rwx group_obj:rwx other:rwx"))
    as_user(OWNER).setxattr("dir", which, acl(f"user_obj:rwx user:{OTHER.uid}:rwx group_obj:rwx mask:rwx other:rwx"))
    with unchanged(root, "dir"):
        as_user(caller).fails(EPERM).removexattr("dir", which)


@cases("acl/invalid", which={"access": ACCESS, "default": DEFAULT})
def test_invalid_lists(which: str, root: Caller, make: Make) -> None:
    make("dir", "dir")
    valid = acl("user_obj:rwx group_obj:r-x other:r-x")
    with unchanged(root, "dir", wait=True):
        root.fails(EINVAL).setxattr("dir", which, acl("user_obj:rwx group_obj:r-x"))  # an entry is missing
        root.fails(EINVAL).setxattr(
            "dir", which, acl(f"user_obj:rwx user:{OTHER.uid}:r-- group_obj:r-x other:r-x")
        )  # no mask
        root.fails(EINVAL).setxattr("dir", which, valid + b"x")
        root.fails(EINVAL).setxattr("dir", which, valid + valid[4:12])
        root.fails(EINVAL, EOPNOTSUPP).setxattr("dir", which, b"\x07" + valid[1:])


@cases("acl/default/only-directories", kind=["regular", "fifo"])
def test_default_lists_of_files(kind: str, root: Caller, owner: Caller, make: Make) -> None:
    make(kind, "file", OWNER)
    with unchanged(root, "file"):
        owner.fails(EACCES, EPERM).setxattr("file", DEFAULT, acl(BASE))


@cases("acl/symlink")
def test_symlinks_have_none(root: Caller, make: Make) -> None:
    make("symlink", "link", target="nowhere")
    root.fails(EOPNOTSUPP, EPERM).setxattr("link", ACCESS, acl(BASE), 0, False)


DEFAULTS = {
    "open": "user_obj:rwx group_obj:rwx other:rwx",
    "closed": "user_obj:rwx group_obj:--- other:---",
    "named": f"user_obj:rwx user:{OTHER.uid}:rwx group_obj:r-x mask:rwx other:---",
}
INHERITED = {"open": 0o777, "closed": 0o700, "named": 0o770}


@cases(
    "acl/default/umask-{umask}/{label}/{how}",
    umask={"000": 0, "022": 0o022, "077": 0o077},
    label=DEFAULTS.keys(),
    how=WITH_MODE,
)
def test_default_replaces_the_umask(umask: int, label: str, how: Creation, root: Caller, make: Make) -> None:
    """Below a default list the umask does not count: the mode asked for meets the list (acl(5))."""
    make("dir", "dir", OWNER)
    root.setxattr("dir", DEFAULT, acl(DEFAULTS[label]))
    root.umask(umask)
    for mode in (0o777, 0o666, 0o640, 0o600, 0o000):
        how.run(root, f"dir/{mode:o}", mode)
        root.expect(f"dir/{mode:o}", mode=mode & INHERITED[label])
        if label == "named":
            letters = "".join(letter if mode >> 3 & bit else "-" for letter, bit in zip("rwx", (4, 2, 1), strict=True))
            found = text(root.getxattr(f"dir/{mode:o}", ACCESS, False)).split()
            checks.equal(found[1], f"user:{OTHER.uid}:rwx", "the named user")
            checks.equal(found[3], f"mask:{letters}", "the mask")
    if how.kind == "dir":
        checks.equal(text(root.getxattr("dir/777", DEFAULT)), DEFAULTS[label], "the list below")
    else:
        root.fails(ENODATA, EOPNOTSUPP).getxattr("dir/777", DEFAULT, False)


@cases("acl/default/by-others/{how}/{caller}", how=BY_ANYBODY, caller=[OWNER, MEMBER, SUPPLEMENTARY, OTHER])
def test_default_for_everybody(how: Creation, caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    make("dir", "dir", OWNER, mode=0o777)
    root.setxattr("dir", DEFAULT, acl(DEFAULTS["named"]))
    user = as_user(caller)
    user.umask(0o077)
    how.run(user, "dir/new", 0o664)
    mode = 0o777 if how.kind == "symlink" else 0o660
    root.expect("dir/new", owner=(caller.uid, caller.gid), mode=mode, kind=how.kind)


@cases("acl/default/inherited-by-descendants")
def test_descendants(root: Caller, owner: Caller, other: Caller, make: Make) -> None:
    make("dir", "dir", OWNER, mode=0o700)
    owner.setxattr("dir", ACCESS, acl(DEFAULTS["named"]))
    owner.setxattr("dir", DEFAULT, acl(DEFAULTS["named"]))
    owner.umask(0o077)
    owner.mkdir("dir/a", 0o777)
    owner.mkdir("dir/a/b", 0o777)
    owner.write_file("dir/a/b/file", b"shared")
    checks.equal(other.contents("dir/a/b/file"), b"shared", "contents for the named user")
    other.write_file("dir/a/b/file", b"changed")
    other.write_file("dir/a/b/his", b"his")
    root.expect("dir/a/b/his", owner=(OTHER.uid, OTHER.gid), mode=0o660)
    owner.removexattr("dir", DEFAULT)
    owner.mkdir("dir/plain", 0o777)
    root.expect("dir/plain", mode=0o700)


@cases("acl/default/set-gid")
def test_default_in_set_gid_directories(root: Caller, as_user: AsUser, make: Make) -> None:
    make("dir", "dir", ids=(ROOT.uid, OWNER.gid), mode=0o2777)
    root.setxattr("dir", DEFAULT, acl(DEFAULTS["named"]))
    user = as_user(THIRD)
    user.umask(0o077)
    user.mkdir("dir/sub", 0o777)
    user.write_file("dir/file", b"x")
    root.expect("dir/sub", mode=0o2770, owner=(THIRD.uid, OWNER.gid))
    root.expect("dir/file", mode=0o660, owner=(THIRD.uid, OWNER.gid))
    root.expect("dir", mode=0o2777)


@cases("acl/set-gid-kept", caller=[OWNER, ROOT])
def test_setting_a_list_as_a_group_member(caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    make("regular", "file", OWNER, mode=0o2770)
    as_user(caller).setxattr("file", ACCESS, acl(DEFAULTS["named"]))
    root.expect("file", mode=0o2770)


@cases("acl/set-gid-lost")
def test_setting_a_list_outside_the_group(root: Caller, owner: Caller, make: Make) -> None:
    """As chmod does, setting a list clears set-gid of a group that the caller is not in."""
    make("regular", "file", ids=(OWNER.uid, THIRD.gid), mode=0o2770)
    owner.setxattr("file", ACCESS, acl(DEFAULTS["named"]))
    root.expect("file", mode=0o770)


@cases("acl/seen-behind")
def test_the_same_behind(root: Caller, behind: Caller, make: Make) -> None:
    make("dir", "dir")
    for name in (ACCESS, DEFAULT):
        root.setxattr("dir", name, acl(DEFAULTS["named"]))
        checks.equal(text(behind.getxattr("dir", name)), DEFAULTS["named"], "list behind")
    root.umask(0o077)
    root.write_file("dir/file", b"x")
    behind.expect("dir/file", mode=0o660)
    checks.equal(behind.getxattr("dir/file", ACCESS), root.getxattr("dir/file", ACCESS), "list of a new file")
