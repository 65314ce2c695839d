"""GETLK, SETLK, SETLKW, FLOCK, FLOCKW and RELEASE, and locks that end with FLUSH and CLEANUP."""

import errno
import fcntl
import itertools
import os
import random
import struct
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusepipe.server.tables.locks import END
from fusepipe.server.tables.ranges import Range, changed
from fusepipe.wire import Op
from tests.server.volume import ROOT, Volume, fails

READ, WRITE, UNLOCK = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
PID = 4711
F_OFD_SETLK = 37


class Locked:
    """A file with two handles."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        entry, self.first = volume.create(b"f")
        self.node = entry.node
        self.second = volume.open(self.node)

    def set(self, owner: int, type: int, start: int = 0, end: int = END, *, handle: int = 0, op: Op = Op.SETLK) -> None:
        self.volume(op, self.node, handle or self.first, owner, type, start, end, PID + owner)

    def find(self, owner: int, type: int, start: int = 0, end: int = END) -> tuple[int, ...]:
        return tuple(self.volume(Op.GETLK, self.node, self.first, owner, type, start, end))

    def host(self) -> bool:
        """Whether a program of the host finds any lock."""
        fd = os.open(self.volume.path / "f", os.O_RDWR)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        finally:
            os.close(fd)


@pytest.fixture
def file(volume: Volume) -> Locked:
    return Locked(volume)


def test_owners_meet_and_handles_do_not(file: Locked) -> None:
    file.set(1, WRITE, 10, 19)
    file.set(1, WRITE, 15, 29, handle=file.second)
    with fails(errno.EAGAIN):
        file.set(2, READ, 29, 40)
    file.set(2, READ, 30, 40)
    assert file.find(2, WRITE) == (WRITE, 10, 29, PID + 1)
    assert file.find(1, WRITE) == (READ, 30, 40, PID + 2)
    assert file.find(1, READ) == (UNLOCK, 0, 0, 0)
    assert file.host()


def test_the_host_and_the_guest_meet(file: Locked) -> None:
    fd = os.open(file.volume.path / "f", os.O_RDWR)
    try:
        # Not one of fcntl.lockf, which ends with any descriptor that this process closes.
        fcntl.fcntl(fd, F_OFD_SETLK, struct.pack("hhqqi4x", WRITE, os.SEEK_SET, 5, 10, 0))
        with fails(errno.EAGAIN):
            file.set(1, READ)
        assert file.find(1, READ) == (WRITE, 5, 14, 0)
    finally:
        os.close(fd)
    file.set(1, READ)


def test_flush_ends_what_an_owner_holds(file: Locked) -> None:
    for owner in (1, 2):
        file.set(owner, READ)
    file.volume(Op.FLUSH, file.second, 1)
    with fails(errno.EAGAIN):
        file.set(1, WRITE)
    file.volume(Op.FLUSH, file.second, 0)
    file.volume(Op.FLUSH, file.first, 2)
    assert not file.host()


@pytest.mark.parametrize("by", ["release", "cleanup"])
def test_the_last_handle_that_set_a_lock_ends_them(file: Locked, by: str) -> None:
    def end(handle: int) -> None:
        if by == "release":
            file.volume(Op.RELEASE, handle)
        else:
            file.volume.release(handle)

    third = file.volume.open(file.node)
    file.set(1, WRITE, 0, 9)
    file.set(1, WRITE, 20, 29, handle=third)
    end(file.first)
    assert file.host()
    end(third)
    assert not file.host()
    file.volume.release(file.second)
    file.volume.forget(file.node)
    assert file.volume.is_empty()


def test_nothing_is_left(file: Locked) -> None:
    before = file.volume.count("fds")
    for owner in range(1, 20):
        file.set(owner, READ, owner, owner + 5)
        with fails(errno.EAGAIN):
            file.set(100 + owner, WRITE)
    assert file.volume.count("fds") == before + 19
    for owner in range(1, 20):
        file.set(owner, UNLOCK)
    assert file.volume.count("fds") == before
    file.set(1, UNLOCK)
    assert file.find(1, WRITE)[0] == UNLOCK
    assert file.volume.count("fds") == before


def test_what_makes_no_sense(file: Locked) -> None:
    for start, end in ((5, 4), (0, 1 << 63), (1 << 63, (1 << 64) - 1)):
        with fails(errno.EINVAL):
            file.set(1, WRITE, start, end)
    with fails(errno.EINVAL):
        file.set(1, 3)
    with fails(errno.EINVAL):
        file.find(1, UNLOCK)
    with fails(errno.EINVAL):
        file.volume(Op.FLOCK, file.first, 3)
    with fails(errno.EBADF):
        file.volume(Op.SETLK, ROOT, file.first, 1, WRITE, 0, END, PID)
    for op in (Op.SETLK, Op.SETLKW):
        with fails(errno.EBADF):
            file.set(1, WRITE, handle=99, op=op)
    with fails(errno.EBADF):
        file.volume(Op.RELEASE, 99)
    with fails(errno.EBADF):
        file.volume(Op.FLOCK, 99, WRITE)
    assert not file.host()


def test_flock(file: Locked) -> None:
    file.volume(Op.FLOCK, file.first, WRITE)
    with fails(errno.EAGAIN):
        file.volume(Op.FLOCK, file.second, READ)
    file.volume(Op.FLOCK, file.first, READ)
    file.volume(Op.FLOCKW, file.second, READ)
    with fails(errno.EAGAIN):
        file.volume(Op.FLOCK, file.first, WRITE)
    file.volume(Op.FLOCK, file.second, UNLOCK)
    file.volume(Op.FLOCKW, file.second, READ)
    file.volume(Op.RELEASE, file.second)
    file.volume(Op.FLOCK, file.first, WRITE)
    with fails(errno.EBADF):
        file.volume(Op.FLOCK, file.second, UNLOCK)


def test_waiting(file: Locked) -> None:
    file.set(1, WRITE)
    file.volume(Op.FLOCK, file.first, WRITE)
    got = []

    def wait(op: Op, *fields: Any) -> None:
        file.volume(op, *fields)
        got.append(op)

    threads = [
        threading.Thread(target=wait, args=(Op.SETLKW, file.node, file.second, 2, WRITE, 0, END, PID)),
        threading.Thread(target=wait, args=(Op.FLOCKW, file.second, WRITE)),
    ]
    for thread in threads:
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
    file.volume(Op.FLUSH, file.first, 1)
    threads[0].join(30)
    file.volume(Op.RELEASE, file.first)
    threads[1].join(30)
    assert got == [Op.SETLKW, Op.FLOCKW]
    assert file.host()


def test_too_few_descriptors(tmp_path: Any) -> None:
    with Volume(tmp_path, budget=16, privileged=False) as volume:
        file = Locked(volume)
        with fails(errno.ENOLCK):
            for owner in range(1, 20):
                file.set(owner, READ)
        assert file.host()


# ---- against a model that has an entry for every byte ---------------------------------------------------------------

BYTES = 24

steps = st.tuples(
    st.integers(0, 2), st.integers(0, BYTES - 1), st.integers(0, BYTES - 1), st.sampled_from([READ, WRITE, UNLOCK])
)


@given(st.lists(steps, max_size=30))
def test_ranges(steps: list[tuple[int, int, int, int]]) -> None:
    ranges: tuple[Range, ...] = ()
    model = [UNLOCK] * BYTES
    for _, one, other, type in steps:
        start, end = min(one, other), max(one, other)
        ranges = changed(ranges, start, end, type)
        model[start : end + 1] = [type] * (end + 1 - start)
        shown = [UNLOCK] * BYTES
        for held in ranges:
            assert held.start <= held.end
            assert all(type == UNLOCK for type in shown[held.start : held.end + 1])
            shown[held.start : held.end + 1] = [held.type] * (held.end + 1 - held.start)
        assert shown == model
        for before, after in itertools.pairwise(ranges):
            assert before.end < after.start
            assert (before.type, before.end + 1) != (after.type, after.start)


@pytest.mark.parametrize("seed", range(6))
def test_owners_against_a_model(file: Locked, seed: int) -> None:
    """Random locks of three owners: who gets them, and what GETLK says of them."""
    dice = random.Random(seed)
    model = {owner: [UNLOCK] * BYTES for owner in (1, 2, 3)}
    for _ in range(300):
        owner, type = dice.choice([1, 2, 3]), dice.choice([READ, WRITE, UNLOCK])
        start, end = sorted(dice.choices(range(BYTES), k=2))
        meets = {
            other
            for other, held in model.items()
            if other != owner and any(had == WRITE or (had == READ and type == WRITE) for had in held[start : end + 1])
        }
        if type != UNLOCK:
            found, first, last, pid = file.find(owner, type, start, end)
            assert (found == UNLOCK) == (not meets)
            if meets:
                whose = [other for other in meets if set(model[other][first : last + 1]) == {found}]
                assert pid - PID in whose
        if dice.random() < 0.05:
            file.volume(Op.FLUSH, file.second, owner)
            model[owner] = [UNLOCK] * BYTES
        elif type != UNLOCK and meets:
            with fails(errno.EAGAIN):
                file.set(owner, type, start, end)
        else:
            file.set(owner, type, start, end, handle=dice.choice([file.first, file.second]))
            model[owner][start : end + 1] = [type] * (end + 1 - start)
