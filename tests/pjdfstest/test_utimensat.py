"""utimensat(2) and futimens(3)."""

import os
import time
from errno import EACCES, EINVAL, EPERM

from .harness import checks
from .harness.caller import AT_SYMLINK_NOFOLLOW, UTIME_NOW, UTIME_OMIT, Caller, Time
from .harness.cases import cases
from .harness.process import Identity
from .harness.scene import AsUser, Make
from .harness.status import KINDS, NOT_SYMLINKS
from .harness.times import moves, pass_after, unchanged
from .harness.users import MEMBER, OTHER, OWNER, ROOT, SUPPLEMENTARY

DATES: dict[str, Time] = {
    "2001": (1_000_000_000, 0),
    "nanoseconds": (1_234_567_890, 123_456_789),
    "last-nanosecond": (1_234_567_890, 999_999_999),
    "epoch": (0, 0),
    "first-nanosecond": (0, 1),
    "before-1970": (-1_000_000_000, 500_000_000),
    "1901": ((-(1 << 31)), 0),
    "after-2038": (1 << 31, 250_000_000),
    "2106": (1 << 32, 1),
    "2300": (10_413_792_000, 999_999_999),
}
WAYS = ("path", "nofollow", "through-symlink", "descriptor")


def set_times(caller: Caller, way: str, times: tuple[Time, Time] | None) -> None:
    """Set the times of `file`, to which the symlink `link` leads."""
    if way == "descriptor":
        descriptor = caller.setup.open("file", os.O_RDONLY)
        caller.futimens(descriptor, times)
        caller.setup.close(descriptor)
    elif way == "through-symlink":
        caller.utimensat("link", times)
    else:
        caller.utimensat("file", times, AT_SYMLINK_NOFOLLOW if way == "nofollow" else 0)


def nanoseconds(moment: Time) -> int:
    return moment[0] * 1_000_000_000 + moment[1]


@cases("utimensat/{date}/{kind}", date=DATES, kind=KINDS)
def test_dates(date: Time, kind: str, root: Caller, owner: Caller, make: Make) -> None:
    make(kind, "file", OWNER)
    other_date = DATES["nanoseconds"] if date != DATES["nanoseconds"] else DATES["2001"]
    for times in ((date, other_date), (other_date, date)):
        before = root.lstat("file")
        pass_after(before)
        owner.utimensat("file", times, AT_SYMLINK_NOFOLLOW)
        after = root.expect(
            "file",
            kind=kind,
            mode=before.mode,
            size=before.size,
            atime=nanoseconds(times[0]),
            mtime=nanoseconds(times[1]),
        )
        checks.check(after.ctime > before.ctime, "ctime did not move")


@cases("utimensat/omit/{way}/{which}", way=WAYS, which=["atime", "mtime", "both"])
def test_omitted_times_stay(way: str, which: str, root: Caller, owner: Caller, make: Make) -> None:
    make("regular", "file", OWNER)
    make("symlink", "link", OWNER, target="file")
    first, second, third = DATES["2001"], DATES["nanoseconds"], DATES["after-2038"]
    set_times(owner, way, (first, second))
    root.expect("file", atime=nanoseconds(first), mtime=nanoseconds(second))
    set_times(
        owner,
        way,
        {"atime": (UTIME_OMIT, third), "mtime": (third, UTIME_OMIT), "both": (UTIME_OMIT, UTIME_OMIT)}[which],
    )
    expected = {"atime": (first, third), "mtime": (third, second), "both": (first, second)}[which]
    root.expect("file", atime=nanoseconds(expected[0]), mtime=nanoseconds(expected[1]))


NOW_TIMES: dict[str, tuple[Time, Time] | None] = {
    "null": None,
    "both": (UTIME_NOW, UTIME_NOW),
    "atime": (UTIME_NOW, DATES["2001"]),
    "mtime": (DATES["2001"], UTIME_NOW),
    "atime-only": (UTIME_NOW, UTIME_OMIT),
    "mtime-only": (UTIME_OMIT, UTIME_NOW),
}


@cases("utimensat/now/{way}/{label}", way=WAYS, label=NOW_TIMES.keys())
def test_now(way: str, label: str, root: Caller, owner: Caller, make: Make) -> None:
    make("regular", "file", OWNER)
    make("symlink", "link", OWNER, target="file")
    old = DATES["nanoseconds"]
    set_times(owner, way, (old, old))
    make("regular", "earlier")
    earlier = root.lstat("earlier").mtime
    pass_after(root.lstat("earlier"), root.lstat("file"))
    set_times(owner, way, NOW_TIMES[label])
    pass_after(root.lstat("file"))
    make("regular", "later")
    later = root.lstat("later").mtime
    after = root.lstat("file")
    for name, position in (("atime", 0), ("mtime", 1)):
        times = NOW_TIMES[label] or (UTIME_NOW, UTIME_NOW)
        if times[position] == UTIME_NOW:
            checks.check(
                earlier < getattr(after, name) < later, f"{name} is not now: {earlier}, {getattr(after, name)}, {later}"
            )
        else:
            wanted = old if times[position] == UTIME_OMIT else times[position]
            checks.equal(getattr(after, name), nanoseconds(wanted), name)


@cases("utimensat/symlink-itself")
def test_times_of_a_symlink(root: Caller, owner: Caller, make: Make) -> None:
    make("regular", "file", OWNER)
    make("symlink", "link", OWNER, target="file")
    date = DATES["2001"]
    with unchanged(root, "file"):
        owner.utimensat("link", (date, date), AT_SYMLINK_NOFOLLOW)
    root.expect("link", atime=nanoseconds(date), mtime=nanoseconds(date))
    link = root.lstat("link")
    owner.utimensat("link", (date, date))
    root.expect("file", atime=nanoseconds(date), mtime=nanoseconds(date))
    root.same("link", link, "atime")


@cases(
    "utimensat/now-permission/{caller}/{label}",
    caller=[OTHER, MEMBER, SUPPLEMENTARY],
    label=["null", "both"],
    kind=NOT_SYMLINKS,
)
def test_now_needs_write_permission(
    caller: Identity, label: str, kind: str, root: Caller, as_user: AsUser, make: Make
) -> None:
    make(kind, "file", OWNER, mode={OTHER: 0o775}.get(caller, 0o757))
    user = as_user(caller)
    with unchanged(root, "file", wait=True):
        user.fails(EACCES).utimensat("file", NOW_TIMES[label])
    root.setup.chmod("file", {OTHER: 0o002}.get(caller, 0o020))
    with moves(root, {"file": "atime mtime ctime"}):
        user.utimensat("file", NOW_TIMES[label])


@cases("utimensat/owner-without-permission", label=["null", "both", "mtime"], kind=NOT_SYMLINKS)
def test_ownership_is_enough(label: str, kind: str, root: Caller, owner: Caller, make: Make) -> None:
    make(kind, "file", OWNER, mode=0)
    with moves(root, {"file": "ctime mtime"}):
        owner.utimensat("file", NOW_TIMES[label])
    owner.utimensat("file", (DATES["2001"], DATES["epoch"]))
    root.expect("file", atime=nanoseconds(DATES["2001"]), mtime=0)


def reachable(way: str, kind: str, **_others: object) -> bool:
    """A symlink that leads nowhere has no times but its own."""
    return kind != "symlink" or way == "nofollow"


@cases(
    "utimensat/eperm/{caller}/{way}",
    caller=[OTHER, MEMBER, SUPPLEMENTARY],
    way=["path", "nofollow", "through-symlink"],
    kind=KINDS,
    where=reachable,
)
def test_explicit_times_need_ownership(
    caller: Identity, way: str, kind: str, root: Caller, as_user: AsUser, make: Make
) -> None:
    make(kind, "file", OWNER, mode=0o777)
    make("symlink", "link", caller, target="file")
    date = DATES["2001"]
    for times in ((date, date), (UTIME_NOW, date), (date, UTIME_NOW), (UTIME_OMIT, date), (date, UTIME_OMIT)):
        with unchanged(root, "file"):
            set_times(as_user(caller).fails(EPERM), way, times)
    for times in ((UTIME_NOW, UTIME_OMIT), (UTIME_OMIT, UTIME_NOW)):  # setting one of them only is not "both to now"
        with unchanged(root, "file"):
            set_times(as_user(caller).fails(EPERM), way, times)


@cases("utimensat/omit-both-by-anybody", caller=[OTHER, MEMBER])
def test_omitting_both_is_nothing(caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    """utimensat(2): with UTIME_OMIT in both nothing is checked on the file and nothing changes."""
    make("regular", "file", OWNER, mode=0)
    with unchanged(root, "file", wait=True):
        as_user(caller).utimensat("file", (UTIME_OMIT, UTIME_OMIT))


@cases("utimensat/einval", value=[1_000_000_000, -1, 1 << 31])
def test_bad_nanoseconds(value: int, root: Caller, owner: Caller, make: Make) -> None:
    make("regular", "file", OWNER)
    with unchanged(root, "file", wait=True):
        owner.fails(EINVAL).utimensat("file", ((1, value), (1, 0)))
        owner.fails(EINVAL).utimensat("file", ((1, 0), (1, value)))


@cases("futimens/unlinked", caller=[ROOT, OWNER])
def test_unlinked_file(caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    make("regular", "file", OWNER)
    user = as_user(caller)
    descriptor = user.open("file", os.O_RDWR)
    root.unlink("file")
    date = DATES["nanoseconds"]
    user.futimens(descriptor, (date, DATES["epoch"]))
    user.expect(descriptor, atime=nanoseconds(date), mtime=0, nlink=0)


@cases("utimensat/kept-over-read-and-chmod")
def test_set_times_stay(root: Caller, owner: Caller, make: Make) -> None:
    """What was set stays until something is written; closing a descriptor that wrote before does not move it."""
    make("regular", "file", OWNER)
    descriptor = owner.open("file", os.O_RDWR)
    owner.write(descriptor, b"data")
    date = DATES["nanoseconds"]
    owner.futimens(descriptor, (date, date))
    owner.fsync(descriptor)
    owner.close(descriptor)
    owner.chmod("file", 0o600)
    root.expect("file", mtime=nanoseconds(date), size=4)
    checks.check(root.lstat("file").ctime > nanoseconds(date), "ctime cannot be set")
    checks.check(abs(root.lstat("file").ctime / 1e9 - time.time()) < 3600, "ctime is not of these days")
