"""Too much of everything: memory stays bounded, others are served, and what is not allowed is refused."""

import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgpack import packb  # type: ignore[import-untyped]  # it brings no type information

from fusepipe.wire import ErrorCode, Op
from tests.hostile.conftest import Guests, Place
from tests.hostile.rogue import Rogue
from tests.server.processes import until

ROOT = 1
MIB = 1 << 20
GROWTH = 96 * MIB
"""Bytes of memory that one guest may make the server use for what it does not take: far less than a flood asks for."""

CYCLES = 100
SHARE = 20_000
"""Requests of a flood that may be served while another session is served one small cycle of three."""


def memory(guests: Guests) -> int:
    """Bytes of memory that the session process has used at most."""
    for line in Path(f"/proc/{guests.process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError


@contextmanager
def flooding(rogue: Rogue, data: bytes) -> Iterator[threading.Thread]:
    """Sends bytes in a thread, which the server does not take all while nobody reads its replies."""
    thread = threading.Thread(target=rogue.raw, args=(data,))
    thread.start()
    try:
        yield thread
    finally:
        rogue.sock.shutdown(2)
        thread.join(60)
        assert not thread.is_alive()


def frames(rogue: Rogue, headers: list[bytes]) -> bytes:
    return b"".join(piece for header in headers for piece in rogue.sender.frame(header))


@pytest.mark.parametrize("size", [65_536, 1 << 18, 1 << 20])
def test_replies_that_nobody_reads(
    guests: Guests, rogue: Rogue, place: Place, bystander: Callable[[], None], size: int
) -> None:
    """Many small requests for much data in one go."""
    (place.volume / "big").write_bytes(bytes(MIB))
    node = rogue.call(Op.LOOKUP, ROOT, b"big")[1][0]
    handle = rogue.call(Op.OPEN, node, os.O_RDONLY, False, 0, 0)[1]
    rogue.call(Op.READ, handle, 0, MIB)
    before = memory(guests)
    slots = [guests.fresh() for _ in range(16)]
    with guests.attached() as other:
        headers = [packb([slot, seq, int(Op.READ), handle, 0, size]) for seq in range(1, 1500) for slot in slots]
        with flooding(other, frames(other, headers)):
            for _ in range(100):
                bystander()
    assert rogue.call(Op.GETATTR, ROOT, 0)[0] == 0
    assert memory(guests) - before < GROWTH
    rogue.call(Op.CLEANUP, b"", handle.to_bytes(8, "little"), b"", slot=64)


def test_pings_whose_answers_nobody_reads(guests: Guests, rogue: Rogue, bystander: Callable[[], None]) -> None:
    before = memory(guests)
    with guests.attached() as other:
        data = frames(other, [packb([None, 2 + number, int(Op.PING)]) for number in range(200_000)])
        with flooding(other, data):
            for _ in range(20):
                bystander()
    assert rogue.call(Op.GETATTR, ROOT, 0)[0] == 0
    assert memory(guests) - before < GROWTH


def test_others_are_served_while_one_floods(guests: Guests, rogue: Rogue, bystander: Callable[[], None]) -> None:
    """Counted in requests, not in time: the flood is not served more than its share."""
    served = 0
    stop = threading.Event()
    slots = [guests.fresh() for _ in range(8)]
    with guests.attached() as other:

        def flood() -> None:
            nonlocal served
            seq = 0
            while not stop.is_set():
                seq += 1
                other.raw(frames(other, [packb([slot, seq, int(Op.GETATTR), ROOT, 0]) for slot in slots]))
                for _ in slots:
                    assert other.reply()[2] == 0
                    served += 1

        thread = threading.Thread(target=flood)
        thread.start()
        try:
            until(lambda: served)
            begin = served
            for _ in range(CYCLES):
                bystander()
            shared = served - begin
        finally:
            stop.set()
            thread.join(60)
    assert not thread.is_alive()
    assert shared < CYCLES * SHARE


def test_cleanup_batches_of_what_one_does_not_have(guests: Guests, rogue: Rogue, bystander: Callable[[], None]) -> None:
    before = memory(guests)
    wrong = b"".join(number.to_bytes(8, "little") for number in range(1 << 40, (1 << 40) + 8000))
    for _ in range(100):
        for slot in range(64, 68):
            assert rogue.call(Op.CLEANUP, wrong, wrong, b"", slot=slot)[0] == 0
        if not _ % 20:
            bystander()
    assert memory(guests) - before < GROWTH


def test_lock_waits(guests: Guests, rogue: Rogue, place: Place, bystander: Callable[[], None]) -> None:
    """All the slots that there are wait; ordinary requests go on, and what waits can be interrupted."""
    path = place.volume / "locked"
    path.touch()
    with path.open("r+b") as held:
        fcntl.lockf(held, fcntl.LOCK_EX)
        node = rogue.call(Op.LOOKUP, ROOT, b"locked")[1][0]
        handle = rogue.call(Op.OPEN, node, os.O_RDWR, False, 0, 0)[1]
        with guests.attached() as waiting:
            seqs = {}
            for slot in range(68, 132):
                seqs[slot] = rogue.seqs.get(slot, 0) + 1
                waiting.values(slot, seqs[slot], int(Op.SETLKW), node, handle, slot, 1, slot, slot, 1)
            for _ in range(20):
                assert rogue.call(Op.GETATTR, ROOT, 0)[0] == 0
                bystander()
            for number, slot in enumerate(range(68, 132)):
                waiting.values(None, 2 + number, int(Op.INTERRUPT), slot, seqs[slot])
            ended = [reply for reply in (waiting.reply() for _ in range(128)) if reply[0] is not None]
            assert {reply[2] for reply in ended} == {errno.EINTR} and len(ended) == 64
    rogue.seqs.update(seqs)
    rogue.call(Op.CLEANUP, b"", handle.to_bytes(8, "little"), b"", slot=64)


def test_ranges_of_locks(guests: Guests, rogue: Rogue, place: Place) -> None:
    """The kernel keeps each range in memory of the host: there is an end, and it is not the others' end."""
    (place.volume / "ranges").touch()
    node = rogue.call(Op.LOOKUP, ROOT, b"ranges")[1][0]
    handle = rogue.call(Op.OPEN, node, os.O_RDWR, False, 0, 0)[1]
    most = (1 << 63) - 1
    made = 0
    while (code := rogue.call(Op.SETLK, node, handle, 1, 1, 2 * made, 2 * made, 1)[0]) == 0:
        made += 1
        assert made < 20_000
    assert code == errno.ENOLCK and made > 1000
    # Neither by another owner nor by splitting: unlocking in the middle makes one more, too.
    assert rogue.errno(Op.SETLK, node, handle, 2, 0, most - 10, most, 1) == "ENOLCK"
    assert rogue.errno(Op.SETLK, node, handle, 1, 1, 0, 2 * made, 1) == "0", "joining them makes fewer"
    assert rogue.errno(Op.SETLK, node, handle, 1, 2, 5, 5, 1) == "0"
    assert rogue.errno(Op.SETLK, node, handle, 1, 2, 0, most, 1) == "0"
    assert rogue.errno(Op.SETLK, node, handle, 2, 1, 0, most, 1) == "0"
    rogue.call(Op.CLEANUP, b"", handle.to_bytes(8, "little"), b"", slot=64)


def test_handles_without_end(guests: Guests, rogue: Rogue, place: Place, bystander: Callable[[], None]) -> None:
    (place.volume / "f").touch()
    node = rogue.call(Op.LOOKUP, ROOT, b"f")[1][0]
    handles = []
    while (reply := rogue.call(Op.OPEN, node, os.O_RDONLY, False, 0, 0))[0] == 0:
        handles.append(reply[1])
        assert len(handles) < 100_000
    assert reply[0] == errno.ENFILE
    bystander()
    assert rogue.call(Op.GETATTR, ROOT, 0)[0] == 0
    for begin in range(0, len(handles), 4000):
        batch = b"".join(handle.to_bytes(8, "little") for handle in handles[begin : begin + 4000])
        assert rogue.call(Op.CLEANUP, b"", batch, b"", slot=64)[0] == 0
    assert rogue.call(Op.OPEN, node, os.O_RDONLY, False, 0, 0)[0] == 0


def test_attached_connections_have_an_end(guests: Guests, rogue: Rogue) -> None:
    refused = 0
    others = []
    try:
        for _ in range(40):
            other = guests.connect()
            others.append(other)
            other.values(None, 1, int(Op.ATTACH), guests.first.session, guests.first.secret, [])
            reply = other.reply()
            refused += reply[0] is None and reply[1] is None and reply[2] == ErrorCode.LIMIT
        assert refused == 40 - 15
    finally:
        for other in others:
            other.close()
    until(lambda: rogue.call(Op.GETATTR, ROOT, 0)[0] == 0)


def test_connections_that_wait_to_be_confirmed_have_an_end(guests: Guests, rogue: Rogue) -> None:
    """The oldest goes; the session itself is not touched by any of them."""
    seqs = b"".join((guests.first.seqs.get(slot, 0)).to_bytes(8, "little") for slot in range(132))
    others = []
    try:
        for _ in range(40):
            other = guests.connect()
            others.append(other)
            other.values(None, 1, int(Op.RESUME), guests.first.session, guests.first.secret, seqs, [])
            other.reply()
        assert rogue.call(Op.GETATTR, ROOT, 0)[0] == 0
    finally:
        for other in others:
            other.close()
