"""fcntl(2) and flock(2) locks between processes, and with whoever comes another way."""

import fcntl
import os
from collections.abc import Callable
from errno import EACCES, EAGAIN, EBADF, EDEADLK, EINVAL, EWOULDBLOCK

import pytest

from ..harness import checks
from ..harness.caller import Caller
from ..harness.cases import cases
from ..harness.scene import Make, Scene
from ..harness.users import OTHER, OWNER

BUSY = (EAGAIN, EACCES)
READ, WRITE, UNLOCK = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
SETLK, SETLKW, GETLK = fcntl.F_SETLK, fcntl.F_SETLKW, fcntl.F_GETLK
OFD_GETLK, OFD_SETLK, OFD_SETLKW = 36, 37, 38
KINDS_OF_LOCK = {"posix": SETLK, "ofd": OFD_SETLK}


@pytest.fixture
def both(owner: Caller, other: Caller, make: Make) -> tuple[tuple[Caller, int], tuple[Caller, int]]:
    """Two users with the same file open for reading and writing."""
    make("regular", "file", OWNER, mode=0o666)
    return (owner, owner.open("file", os.O_RDWR)), (other, other.open("file", os.O_RDWR))


Both = tuple[tuple[Caller, int], tuple[Caller, int]]


@cases(
    "locks/{kind}/{first}-{second}",
    kind=KINDS_OF_LOCK,
    first={"read": READ, "write": WRITE},
    second={"read": READ, "write": WRITE},
)
def test_conflicts(kind: int, first: int, second: int, both: Both) -> None:
    (one, here), (two, there) = both
    one.set_lock(here, kind, first)
    if first == second == READ:
        two.set_lock(there, kind, second)
    else:
        two.fails(*BUSY).set_lock(there, kind, second)
        one.set_lock(here, kind, UNLOCK)
        two.set_lock(there, kind, second)


@cases("locks/{kind}/ranges", kind=KINDS_OF_LOCK)
def test_ranges(kind: int, both: Both) -> None:
    (one, here), (two, there) = both
    one.set_lock(here, kind, WRITE, 10, 10)
    two.set_lock(there, kind, WRITE, 0, 10)
    two.set_lock(there, kind, WRITE, 20, 0)  # length 0: to the end, however far
    for start, length in ((19, 1), (10, 1), (0, 11), (5, 100), (0, 0)):
        two.fails(*BUSY).set_lock(there, kind, READ, start, length)
    one.fails(*BUSY).set_lock(here, kind, READ, 1 << 40, 1)
    one.set_lock(here, kind, UNLOCK, 12, 4)  # splits the lock
    two.set_lock(there, kind, WRITE, 12, 4)
    two.fails(*BUSY).set_lock(there, kind, WRITE, 11, 1)
    two.fails(*BUSY).set_lock(there, kind, WRITE, 16, 1)


@cases("locks/{kind}/upgrade", kind=KINDS_OF_LOCK)
def test_upgrade_and_downgrade(kind: int, both: Both) -> None:
    (one, here), (two, there) = both
    one.set_lock(here, kind, READ)
    two.set_lock(there, kind, READ)
    one.fails(*BUSY).set_lock(here, kind, WRITE)
    two.set_lock(there, kind, UNLOCK)
    one.set_lock(here, kind, WRITE)
    two.fails(*BUSY).set_lock(there, kind, READ)
    one.set_lock(here, kind, READ)
    two.set_lock(there, kind, READ)


@cases("locks/posix/who")
def test_whose_lock(both: Both) -> None:
    (one, here), (two, there) = both
    checks.equal(two.get_lock(there, GETLK, WRITE, 0, 100)[0], UNLOCK, "type of the lock in the way")
    one.set_lock(here, SETLK, WRITE, 50, 10)
    checks.equal(two.get_lock(there, GETLK, WRITE, 0, 100), (WRITE, 50, 10, one.pid()), "the lock in the way")
    checks.equal(two.get_lock(there, GETLK, READ, 0, 50)[0], UNLOCK, "beside it")
    checks.equal(one.get_lock(here, GETLK, WRITE, 0, 100)[0], UNLOCK, "one's own lock")


@cases("locks/ofd/who")
def test_whose_ofd_lock(both: Both) -> None:
    (one, here), (two, there) = both
    one.set_lock(here, OFD_SETLK, WRITE, 50, 10)
    checks.equal(two.get_lock(there, OFD_GETLK, WRITE, 0, 100), (WRITE, 50, 10, -1), "the lock in the way")


@cases("locks/posix/close-releases", which=["same-descriptor", "another-descriptor", "exit"])
def test_end_of_posix_locks(which: str, both: Both, scene: Scene) -> None:
    """A process's locks on a file go with any of its descriptors of that file (fcntl(2))."""
    (_, _), (two, there) = both
    one = scene.another(OWNER)
    here = one.open("file", os.O_RDWR)
    spare = one.open("file", os.O_RDONLY)
    one.set_lock(here, SETLK, WRITE)
    two.fails(*BUSY).set_lock(there, SETLK, WRITE)
    if which == "exit":
        one.end()
    else:
        one.close(here if which == "same-descriptor" else spare)
    two.set_lock(there, SETLK, WRITE)


@cases("locks/ofd/close")
def test_end_of_ofd_locks(both: Both) -> None:
    """An open file description keeps its locks until its last descriptor is closed."""
    (one, here), (two, there) = both
    copy = one.dup(here)
    spare = one.open("file", os.O_RDWR)
    one.set_lock(here, OFD_SETLK, WRITE)
    one.fails(*BUSY).set_lock(spare, OFD_SETLK, WRITE)
    one.close(spare)
    one.close(here)
    two.fails(*BUSY).set_lock(there, OFD_SETLK, WRITE)
    one.close(copy)
    two.set_lock(there, OFD_SETLK, WRITE)


@cases("locks/{kind}/waiting", kind={"posix": SETLKW, "ofd": OFD_SETLKW}, end=["unlock", "close"])
def test_waiting(kind: int, end: str, both: Both) -> None:
    (one, here), (two, there) = both
    one.set_lock(here, kind - 1, WRITE)
    two.start("set_lock", there, kind, WRITE, 0, 0)
    two.waits()
    if end == "close":
        one.close(here)
    else:
        one.set_lock(here, kind - 1, UNLOCK)
    two.finish(10)
    if end == "unlock":
        one.fails(*BUSY).set_lock(here, kind - 1, WRITE)


@pytest.mark.locks("local")
@cases("locks/posix/deadlock")
def test_deadlock(both: Both) -> None:
    (one, here), (two, there) = both
    one.set_lock(here, SETLK, WRITE, 0, 1)
    two.set_lock(there, SETLK, WRITE, 1, 1)
    one.start("set_lock", here, SETLKW, WRITE, 1, 1)
    one.waits()
    two.fails(EDEADLK).set_lock(there, SETLKW, WRITE, 0, 1)
    two.set_lock(there, SETLK, UNLOCK, 1, 1)
    one.finish(10)


@cases("locks/{kind}/access-mode", kind=KINDS_OF_LOCK)
def test_access_mode(kind: int, owner: Caller, make: Make) -> None:
    make("regular", "file", OWNER)
    owner.fails(EBADF).set_lock(owner.open("file", os.O_RDONLY), kind, WRITE)
    owner.fails(EBADF).set_lock(owner.open("file", os.O_WRONLY), kind, READ)
    owner.fails(EINVAL).set_lock(owner.open("file", os.O_RDWR), kind, WRITE, -5, 1)


@cases("locks/{kind}/unlinked", kind=KINDS_OF_LOCK)
def test_locks_belong_to_the_file(kind: int, both: Both, root: Caller, make: Make) -> None:
    (one, here), (two, there) = both
    one.set_lock(here, kind, WRITE)
    root.unlink("file")
    two.fails(*BUSY).set_lock(there, kind, WRITE)
    make("regular", "file", OTHER)
    two.set_lock(two.open("file", os.O_RDWR), kind, WRITE)


@cases("locks/{kind}/hard-links", kind=KINDS_OF_LOCK)
def test_names_of_one_file(kind: int, both: Both, root: Caller) -> None:
    (one, here), (two, _) = both
    root.link("file", "second")
    one.set_lock(here, kind, WRITE)
    two.fails(*BUSY).set_lock(two.open("second", os.O_RDWR), kind, READ)


# ---- flock --------------------------------------------------------------------------------------------------------

SHARED, EXCLUSIVE, FREE, NOW = fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN, fcntl.LOCK_NB


@cases(
    "flock/{first}-{second}",
    first={"shared": SHARED, "exclusive": EXCLUSIVE},
    second={"shared": SHARED, "exclusive": EXCLUSIVE},
)
def test_flock_conflicts(first: int, second: int, both: Both) -> None:
    (one, here), (two, there) = both
    one.flock(here, first | NOW)
    if first == second == SHARED:
        two.flock(there, second | NOW)
    else:
        two.fails(EWOULDBLOCK).flock(there, second | NOW)
        one.flock(here, FREE)
        two.flock(there, second | NOW)


@cases("flock/one-process")
def test_flock_is_per_open(both: Both) -> None:
    (one, here), _ = both
    again = one.open("file", os.O_RDONLY)
    copy = one.dup(here)
    one.flock(here, EXCLUSIVE | NOW)
    one.fails(EWOULDBLOCK).flock(again, SHARED | NOW)
    one.flock(copy, SHARED | NOW)  # the copy is the same open file: this converts
    one.flock(again, SHARED | NOW)
    one.close(here)
    one.fails(EWOULDBLOCK).flock(again, EXCLUSIVE | NOW)
    one.close(copy)
    one.flock(again, EXCLUSIVE | NOW)


@cases("flock/waiting", end=["unlock", "close", "convert", "exit"])
def test_flock_waits(end: str, both: Both, scene: Scene) -> None:
    _, (two, there) = both
    one = scene.another(OWNER)
    here = one.open("file", os.O_RDONLY)
    one.flock(here, EXCLUSIVE)
    two.start("flock", there, SHARED)
    two.waits()
    if end == "exit":
        one.end()
    elif end == "close":
        one.close(here)
    else:
        one.flock(here, SHARED if end == "convert" else FREE)
    two.finish(10)


@cases("flock/any-access-mode", flags={"O_RDONLY": os.O_RDONLY, "O_WRONLY": os.O_WRONLY})
def test_flock_needs_no_access_mode(flags: int, owner: Caller, make: Make) -> None:
    make("regular", "file", OWNER)
    descriptor = owner.open("file", flags)
    owner.flock(descriptor, EXCLUSIVE | NOW)
    owner.flock(descriptor, SHARED | NOW)


@cases("flock/directory")
def test_flock_on_a_directory(owner: Caller, other: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    here, there = owner.open("dir", os.O_RDONLY), other.open("dir", os.O_RDONLY)
    owner.flock(here, EXCLUSIVE | NOW)
    other.fails(EWOULDBLOCK).flock(there, SHARED | NOW)
    owner.flock(here, FREE)
    other.flock(there, EXCLUSIVE | NOW)


@cases("flock/beside-fcntl")
def test_flock_and_fcntl_are_apart(both: Both) -> None:
    """On a local Linux filesystem the two kinds do not see each other (flock(2))."""
    (one, here), (two, there) = both
    one.flock(here, EXCLUSIVE | NOW)
    two.set_lock(there, SETLK, WRITE)
    two.set_lock(there, SETLK, UNLOCK)
    two.set_lock(there, OFD_SETLK, WRITE)


# ---- locks that are seen on both sides of the target -----------------------------------------------------------------

Lock = Callable[[Caller, int], None]
LOCKS: dict[str, tuple[Lock, Lock]] = {
    "posix": (lambda user, fd: user.set_lock(fd, SETLK, WRITE), lambda user, fd: user.set_lock(fd, SETLK, UNLOCK)),
    "ofd": (
        lambda user, fd: user.set_lock(fd, OFD_SETLK, WRITE),
        lambda user, fd: user.set_lock(fd, OFD_SETLK, UNLOCK),
    ),
    "flock": (lambda user, fd: user.flock(fd, EXCLUSIVE | NOW), lambda user, fd: user.flock(fd, FREE)),
}


@pytest.fixture
def sides(owner: Caller, root: Caller, scene: Scene, behind: Caller, make: Make) -> dict[str, tuple[Caller, int]]:
    """The same file, opened through the target and behind it, by different processes."""
    make("regular", "file", OWNER, mode=0o666)
    return {"here": (owner, owner.open("file", os.O_RDWR)), "behind": (behind, behind.open("file", os.O_RDWR))}


Sides = dict[str, tuple[Caller, int]]


@pytest.mark.locks("shared")
@cases("locks/shared/{kind}/{holder}", kind=LOCKS.keys(), holder=["here", "behind"])
def test_locks_hold_on_both_sides(kind: str, holder: str, sides: Sides) -> None:
    lock, unlock = LOCKS[kind]
    one, here = sides[holder]
    two, there = sides["behind" if holder == "here" else "here"]
    lock(one, here)
    lock(two.fails(EAGAIN, EACCES), there)
    unlock(one, here)
    lock(two, there)


@pytest.mark.locks("shared")
@cases("locks/shared/posix/waiting", holder=["here", "behind"])
def test_waiting_for_the_other_side(holder: str, sides: Sides) -> None:
    one, here = sides[holder]
    two, there = sides["behind" if holder == "here" else "here"]
    one.set_lock(here, SETLK, WRITE)
    two.start("set_lock", there, SETLKW, WRITE, 0, 0)
    two.waits()
    one.set_lock(here, SETLK, UNLOCK)
    two.finish(10)


@pytest.mark.locks("shared")
@cases("locks/shared/posix/one-process-two-descriptors")
def test_two_descriptors_of_one_process(owner: Caller, behind: Caller, make: Make) -> None:
    """A process's own locks never conflict, whatever descriptors it uses, and end with the first that is closed."""
    make("regular", "file", OWNER, mode=0o666)
    first, second = owner.open("file", os.O_RDWR), owner.open("file", os.O_RDWR)
    there = behind.open("file", os.O_RDWR)
    owner.set_lock(first, SETLK, WRITE)
    owner.set_lock(second, SETLK, WRITE)
    behind.fails(*BUSY).set_lock(there, SETLK, READ)
    owner.close(second)
    behind.set_lock(there, SETLK, READ)


@cases("locks/interrupted")
def test_a_waiting_process_can_be_ended(both: Both, scene: Scene) -> None:
    (one, here), (two, there) = both
    one.set_lock(here, SETLK, WRITE)
    waiter = scene.another(OTHER)
    descriptor = waiter.open("file", os.O_RDWR)
    waiter.start("set_lock", descriptor, SETLKW, WRITE, 0, 0)
    waiter.waits()
    waiter.end()
    one.set_lock(here, SETLK, UNLOCK)
    two.set_lock(there, SETLK, WRITE)
