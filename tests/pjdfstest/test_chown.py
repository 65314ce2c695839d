"""chown(2), lchown(2), fchown(2)."""

import os
from errno import EPERM

from .harness.caller import Caller
from .harness.cases import cases
from .harness.process import Identity
from .harness.scene import AsUser, Make
from .harness.status import KINDS, NOT_SYMLINKS
from .harness.times import moved, pass_after, unchanged
from .harness.users import JOINED, MEMBER, OTHER, OWNER, ROOT, STRANGE_GROUP, SUPPLEMENTARY, THIRD

WAYS = ("chown", "lchown", "through-symlink", "fchown")
KEEP = -1


def possible(way: str, kind: str, **_others: object) -> bool:
    """Descriptors: of files that open without side effects.  chown follows a symlink, so its own case is lchown's."""
    if way == "fchown":
        return kind in ("regular", "dir")
    return kind != "symlink" or way == "lchown"


def change(caller: Caller, way: str, uid: int, gid: int) -> None:
    """Change the owner of `file`, to which the symlink `link` points."""
    if way == "fchown":
        descriptor = caller.setup.open("file", os.O_RDONLY)
        caller.fchown(descriptor, uid, gid)
        caller.setup.close(descriptor)
    elif way == "through-symlink":
        caller.chown("link", uid, gid)
    else:
        getattr(caller, way)("file", uid, gid)


ROOT_GIVES = {
    "both": (OTHER.uid, OTHER.gid),
    "user": (OTHER.uid, KEEP),
    "group": (KEEP, OTHER.gid),
    "to-root": (0, 0),
    "neither": (KEEP, KEEP),
    "same": (OWNER.uid, OWNER.gid),
    "stranger": (THIRD.uid, STRANGE_GROUP),
}
OWNER_GIVES = {
    "own-group": (KEEP, JOINED.gid),
    "both-own": (JOINED.uid, JOINED.gid),
    "first-supplementary": (KEEP, JOINED.groups[0]),
    "second-supplementary": (KEEP, JOINED.groups[1]),
    "user-and-supplementary": (JOINED.uid, JOINED.groups[1]),
    "user": (JOINED.uid, KEEP),
    "neither": (KEEP, KEEP),
}


@cases("chown/root", kind=KINDS, way=WAYS, ids=ROOT_GIVES, where=possible)
def test_root_gives(kind: str, way: str, ids: tuple[int, int], root: Caller, make: Make) -> None:
    succeeds(root, root, kind, way, ids, make)


@cases("chown/owner", kind=KINDS, way=WAYS, ids=OWNER_GIVES, where=possible)
def test_owner_gives_to_his_groups(
    kind: str, way: str, ids: tuple[int, int], root: Caller, as_user: AsUser, make: Make
) -> None:
    succeeds(root, as_user(JOINED), kind, way, ids, make)


def succeeds(root: Caller, caller: Caller, kind: str, way: str, ids: tuple[int, int], make: Make) -> None:
    make(kind, "file", OWNER)
    make("symlink", "link", THIRD, target="file")
    before = root.lstat("file")
    if ids != (KEEP, KEEP):
        pass_after(before)
    with unchanged(root, "link", "."):
        change(caller, way, *ids)
    wanted = tuple(old if new == KEEP else new for old, new in zip(before.owner, ids, strict=True))
    after = root.expect("file", kind=kind, owner=wanted, mode=before.mode, size=before.size, nlink=before.nlink)
    if ids != (KEEP, KEEP):  # POSIX leaves it open whether a call that names nothing marks the time
        moved(before, after, "ctime", "file")


@cases("chown/current-group", kind=KINDS)
def test_owner_may_name_the_present_group(kind: str, root: Caller, owner: Caller, make: Make) -> None:
    make(kind, "file", ids=(OWNER.uid, STRANGE_GROUP))
    owner.lchown("file", KEEP, STRANGE_GROUP)
    owner.lchown("file", OWNER.uid, STRANGE_GROUP)
    root.expect("file", owner=(OWNER.uid, STRANGE_GROUP))


MODES = {"6555": 0o6555, "4755": 0o4755, "2775": 0o2775, "7555": 0o7555}
SET_ID_CASES = {
    "root-both": (ROOT, (OTHER.uid, OTHER.gid)),
    "root-user": (ROOT, (OTHER.uid, KEEP)),
    "root-group": (ROOT, (KEEP, OTHER.gid)),
    "owner-group": (JOINED, (KEEP, JOINED.groups[0])),
    "owner-both": (JOINED, (JOINED.uid, JOINED.groups[1])),
    "owner-same": (JOINED, (JOINED.uid, JOINED.gid)),
}


@cases("chown/set-id", kind=NOT_SYMLINKS, way=WAYS, case=SET_ID_CASES, where=possible)
def test_set_ids_are_cleared(
    kind: str, way: str, case: tuple[Identity, tuple[int, int]], root: Caller, as_user: AsUser, make: Make
) -> None:
    """chown(2): on executables both bits go, also for root since Linux 2.2.13; directories keep them."""
    caller, ids = case
    for number, mode in enumerate(MODES.values()):
        make(kind, "file", OWNER, mode=mode)
        make("symlink", "link", THIRD, target="file")
        change(as_user(caller), way, *ids)
        wanted = tuple(old if new == KEEP else new for old, new in zip((OWNER.uid, OWNER.gid), ids, strict=True))
        root.expect("file", mode=mode if kind == "dir" else mode & ~0o6000, owner=wanted)
        root.setup.rename("file", f"done-{number}")
        root.setup.unlink("link")


NOT_HIS = {
    "give-away": (OTHER.uid, KEEP),
    "give-away-with-own-group": (OTHER.uid, OWNER.gid),
    "foreign-group": (KEEP, OTHER.gid),
    "own-user-foreign-group": (OWNER.uid, STRANGE_GROUP),
    "both-foreign": (OTHER.uid, OTHER.gid),
    "to-root": (0, 0),
    "roots-user": (0, KEEP),
    "roots-group": (KEEP, 0),
}


@cases("chown/eperm/owner", kind=KINDS, way=WAYS, where=possible)
def test_owner_may_not(kind: str, way: str, root: Caller, owner: Caller, make: Make) -> None:
    make(kind, "file", OWNER)
    make("symlink", "link", OWNER, target="file")
    for ids in NOT_HIS.values():
        with unchanged(root, "file", "link"):
            change(owner.fails(EPERM), way, *ids)


@cases("chown/eperm/{caller}", caller=[OTHER, MEMBER, SUPPLEMENTARY], kind=KINDS, way=WAYS, where=possible)
def test_others_may_not(caller: Identity, kind: str, way: str, root: Caller, as_user: AsUser, make: Make) -> None:
    make(kind, "file", OWNER, mode=0o777)
    make("symlink", "link", caller, target="file")
    for ids in (
        (caller.uid, KEEP),
        (caller.uid, caller.gid),
        (KEEP, caller.gid),
        (OWNER.uid, OWNER.gid),
        (KEEP, OWNER.gid),
        (OWNER.uid, KEEP),
    ):
        with unchanged(root, "file", "link"):
            change(as_user(caller).fails(EPERM), way, *ids)


@cases("fchown/handle", kind=["regular", "dir"])
def test_descriptor_decides(kind: str, root: Caller, make: Make) -> None:
    make(kind, "file", OWNER)
    descriptor = root.open("file", os.O_RDONLY)
    root.rename("file", "elsewhere")
    make(kind, "file", OTHER)
    root.fchown(descriptor, THIRD.uid, THIRD.gid)
    root.expect("file", owner=(OTHER.uid, OTHER.gid))
    root.expect("elsewhere", owner=(THIRD.uid, THIRD.gid))
    root.remove(kind, "elsewhere")
    root.fchown(descriptor, OWNER.uid, OWNER.gid)
    root.expect(descriptor, owner=(OWNER.uid, OWNER.gid))
    root.expect("file", owner=(OTHER.uid, OTHER.gid))


@cases("chown/large-ids")
def test_large_ids(root: Caller, make: Make) -> None:
    make("regular", "file")
    for number in (65536, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE):
        root.chown("file", number, number - 1)
        root.expect("file", owner=(number, number - 1))
