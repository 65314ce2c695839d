"""What mkdir, mkfifo, mknod, symlink and open(O_CREAT) have in common: mode, owner, times, existing names."""

import os
from errno import EACCES, EEXIST, EPERM

from .harness import checks
from .harness.caller import Caller
from .harness.cases import cases
from .harness.creation import BY_ANYBODY, CREATIONS, WITH_MODE, Creation
from .harness.process import Identity
from .harness.scene import AsUser, Make
from .harness.status import FORMAT, KINDS
from .harness.targets import Target
from .harness.times import moves, unchanged
from .harness.users import JOINED, MEMBER, OTHER, OWNER, ROOT, STRANGE_GROUP, SUPPLEMENTARY

MASKS = {"000": 0, "022": 0o022, "027": 0o027, "077": 0o077, "177": 0o177, "777": 0o777}


def allowed(how: Creation, caller: Identity, **_others: object) -> bool:
    return caller == ROOT or not how.root_only


@cases("{how}/mode/umask-{umask}/{caller}", how=WITH_MODE, umask=MASKS, caller=[ROOT, OWNER], where=allowed)
def test_mode_and_umask(
    how: Creation,
    umask: int,
    caller: Identity,
    posix_target: Target,
    root: Caller,
    as_user: AsUser,
    make: Make,
) -> None:
    make("dir", "dir", OWNER)
    nlink = posix_target.empty_directory_nlink if how.kind == "dir" else 1
    user = as_user(caller)
    user.umask(umask)
    for mode in (0o755, 0o151, 0o640, 0o777, 0o000):
        how.run(user, f"dir/{mode:o}", mode)
        root.expect(f"dir/{mode:o}", kind=how.kind, mode=mode & ~umask, nlink=nlink)


@cases("{how}/special-bits/{caller}", how=WITH_MODE, caller=[ROOT, OWNER], where=allowed)
def test_special_mode_bits(how: Creation, caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    """Set-uid, set-gid and sticky bits arrive; mkdir(2) takes the sticky bit only."""
    make("dir", "dir", OWNER)
    user = as_user(caller)
    user.umask(0o022)
    for mode in (0o4755, 0o2755, 0o1755, 0o6711, 0o7777):
        how.run(user, f"dir/{mode:o}", mode)
        taken = mode & 0o1777 if how.kind == "dir" else mode
        root.expect(f"dir/{mode:o}", kind=how.kind, mode=taken & ~0o022)


@cases(
    "{how}/owner/parent-{parent}/{caller}",
    how=CREATIONS,
    parent={"own": OWNER, "roots": ROOT, "others": OTHER},
    caller=[ROOT, OWNER, MEMBER, SUPPLEMENTARY, JOINED],
    where=allowed,
)
def test_owner(how: Creation, parent: Identity, caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    make("dir", "dir", parent, mode=0o777)
    how.run(as_user(caller), "dir/new", 0o644)
    root.expect("dir/new", owner=(caller.uid, caller.gid), kind=how.kind)


@cases(
    "{how}/owner/set-gid-parent/{caller}",
    how=CREATIONS,
    caller=[ROOT, OWNER, MEMBER, SUPPLEMENTARY, OTHER],
    where=allowed,
)
def test_group_of_a_set_gid_parent(how: Creation, caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    """inode(7): a file takes the group of such a directory, and a directory the bit as well."""
    user = as_user(caller)
    for group in (OWNER.gid, STRANGE_GROUP):
        make("dir", f"dir-{group}", ids=(OTHER.uid, group), mode=0o2777)
        how.run(user, f"dir-{group}/new", 0o755)
        mode = {"dir": 0o2755, "symlink": 0o777}.get(how.kind, 0o755)
        root.expect(f"dir-{group}/new", owner=(caller.uid, group), kind=how.kind, mode=mode)


@cases("{how}/set-gid/in-set-gid-parent", how=WITH_MODE)
def test_set_gid_of_a_foreign_group(how: Creation, root: Caller, as_user: AsUser, make: Make) -> None:
    """A group-executable file cannot be made set-gid for a group that its maker is not in (inode(7), Linux 4.18)."""
    make("dir", "dir", ids=(ROOT.uid, OWNER.gid), mode=0o2777)
    how.run(root, "dir/roots", 0o2755)
    root.expect("dir/roots", mode=0o2755, owner=(0, OWNER.gid))
    if how.root_only:
        return
    kept = 0o2755 if how.kind == "dir" else 0o755
    for caller, mode in ((OTHER, kept), (MEMBER, 0o2755), (SUPPLEMENTARY, 0o2755)):
        how.run(as_user(caller), f"dir/{caller.name}", 0o2755)
        root.expect(f"dir/{caller.name}", mode=mode, owner=(caller.uid, OWNER.gid))


@cases("{how}/times/{caller}", how=CREATIONS, caller=[ROOT, OWNER], where=allowed)
def test_times(how: Creation, caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    make("dir", "dir", OWNER)
    make("regular", "before")
    with moves(root, {"dir": "mtime ctime"}):
        how.run(as_user(caller), "dir/new", 0o644)
    earlier, new, parent = root.lstat("before"), root.lstat("dir/new"), root.lstat("dir")
    for name in ("atime", "mtime", "ctime"):
        checks.check(getattr(new, name) > getattr(earlier, name), f"{name} of the new file is too early")
    checks.check(new.ctime >= parent.mtime - 1_000_000_000, "the new file is much older than the change of its parent")


@cases("{how}/parent-nlink", how=CREATIONS)
def test_links_of_the_parent(how: Creation, root: Caller, make: Make) -> None:
    make("dir", "dir")
    before = root.lstat("dir")
    how.run(root, "dir/new", 0o755)
    root.expect("dir", nlink=before.nlink + (how.kind == "dir" and before.nlink > 1))


@cases("{how}/eexist/{kind}", how=CREATIONS, kind=(*KINDS, "dangling"))
def test_existing_names(how: Creation, kind: str, root: Caller, owner: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    make("regular", "there", OWNER)
    if kind == "dangling":
        make("symlink", "dir/name", OWNER, target="not-there")
    else:
        make(kind, "dir/name", OWNER, **({"target": "../there"} if kind == "symlink" else {}))
    with unchanged(root, "dir", "dir/name", "there", wait=True):
        how.run(root.fails(EEXIST), "dir/name", 0o644)
        if not how.root_only:
            how.run(owner.fails(EEXIST), "dir/name", 0o644)
    root.missing("dir/not-there")


@cases("{how}/group-writable-parent/{caller}", how=BY_ANYBODY, caller=[MEMBER, SUPPLEMENTARY, OTHER])
def test_parent_writable_by_group(how: Creation, caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    """Members of the directory's group may create in it, also those who have it as a supplementary group only."""
    make("dir", "dir", OWNER, mode=0o770)
    make("dir", "inherits", OWNER, mode=0o2770)
    user = as_user(caller)
    if caller == OTHER:
        with unchanged(root, "dir", "inherits"):
            how.run(user.fails(EACCES), "dir/new", 0o644)
            how.run(user.fails(EACCES), "inherits/new", 0o644)
        return
    how.run(user, "dir/new", 0o644)
    root.expect("dir/new", owner=(caller.uid, caller.gid), kind=how.kind)
    how.run(user, "inherits/new", 0o644)
    root.expect("inherits/new", owner=(caller.uid, OWNER.gid), kind=how.kind)


@cases("mknod/eperm", kind=["block", "char"], caller=[OWNER, MEMBER])
def test_devices_need_root(kind: str, caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    make("dir", "dir", caller)
    with unchanged(root, "dir", wait=True):
        as_user(caller).fails(EPERM).mknod("dir/device", FORMAT[kind] | 0o600, os.makedev(1, 3))
    root.missing("dir/device")


@cases("mknod/numbers", kind=["block", "char"])
def test_device_numbers(kind: str, root: Caller, make: Make) -> None:
    make("dir", "dir")
    for major, minor in ((0, 1), (1, 3), (7, 255), (240, 256), (255, 65535), (4095, 1048575)):
        name = f"dir/{major}-{minor}"
        with moves(root, {"dir": "mtime ctime"}):
            root.mknod(name, FORMAT[kind] | 0o600, os.makedev(major, minor))
        root.expect(name, kind=kind, rdev=os.makedev(major, minor), mode=0o600, size=0)
        root.unlink(name)


@cases("mknod/directory")
def test_mknod_makes_no_directories(root: Caller) -> None:
    root.fails(EPERM).mknod("dir", FORMAT["dir"] | 0o755)
    root.missing("dir")


@cases("symlink/target", label=["short", "64", "long", "longest", "bytes", "not-a-path"])
def test_symlink_targets(label: str, root: Caller, owner: Caller, make: Make) -> None:
    target = {
        "short": b"x",
        "64": b"y" * 64,
        "long": b"d/" * 450 + b"e",
        "longest": b"z" * 1000,
        "bytes": bytes(range(1, 256)).replace(b"/", b""),
        "not-a-path": b"//../:mount[1] \xff",
    }[label]
    make("dir", "dir", OWNER)
    owner.symlink(target, b"dir/link")
    root.expect("dir/link", kind="symlink", size=len(target), mode=0o777, nlink=1)
    checks.equal(os.fsencode(owner.readlink(b"dir/link")), target, "target")


@cases("socket/bind")
def test_bound_sockets(root: Caller, owner: Caller, make: Make) -> None:
    """bind(2) makes a socket that a connect(2) by its name finds."""
    make("dir", "dir", OWNER)
    owner.umask(0o027)
    owner.bind_socket("dir/socket")
    root.expect("dir/socket", kind="socket", owner=(OWNER.uid, OWNER.gid), mode=0o750)
    root.connect_socket("dir/socket")
    owner.connect_socket("dir/socket")
    owner.rename("dir/socket", "dir/moved")
    owner.connect_socket("dir/moved")
