"""Frames that break the protocol: that connection ends with an error frame, the session and others go on."""

import os
import struct
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from msgpack import packb  # type: ignore[import-untyped]  # it brings no type information

from fusepipe.wire import ErrorCode, Op
from tests.hostile.conftest import Guests, Place
from tests.hostile.rogue import Rogue

ROOT = 1
PROTOCOL = ErrorCode.PROTOCOL


def prefix(header: int, payload: int, number: int) -> bytes:
    """A prefix whose own checksum is right."""
    lengths = struct.pack("<III", header, payload, number)
    return lengths + struct.pack("<I", zlib.crc32(lengths))


def raw_header(data: bytes) -> Callable[[Rogue, int], None]:
    return lambda rogue, _slot: rogue.raw(b"".join(rogue.sender.frame(data)))


def nested(depth: int, closed: bytes = b"\xc0") -> bytes:
    return b"\x94\x00\x01\x14" + b"\x91" * depth + closed


HEADERS: dict[str, bytes] = {
    "nothing": b"",
    "nil": b"\xc0",
    "a number": b"\x07",
    "a map": packb({1: 2}),
    "two elements": packb([0, 1]),
    "text for the slot": packb(["0", 1, int(Op.GETATTR), 1, 0]),
    "a negative slot": packb([-1, 1, int(Op.GETATTR), 1, 0]),
    "a slot of 33 bits": packb([1 << 32, 1, int(Op.GETATTR), 1, 0]),
    "true for the seq": packb([0, True, int(Op.GETATTR), 1, 0]),
    "a float for the op": packb([0, 1, 1.5, 1, 0]),
    "no op of that number": packb([0, 1, 9999, 1, 0]),
    "an extension": packb([0, 1, int(Op.GETATTR)])[:-1] + b"\xc7\x04\x01abcd",
    "cut": packb([0, 1, int(Op.GETATTR), 1, 0])[:-1],
    "more behind": packb([0, 1, int(Op.GETATTR), 1, 0]) + b"\x01",
    "nested deeply": nested(100_000),
    "nested and cut": nested(250_000, b""),
    "an array of four thousand million": b"\xdd\xff\xff\xff\xff",
    "bytes of four thousand million": b"\x95\x00\x01\x14\xc6\xff\xff\xff\xff",
    "too many elements": packb([0, 1, int(Op.GETATTR), *range(100)]),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_are_none(guests: Guests, rogue: Rogue, name: str) -> None:
    assert guests.breaks(raw_header(HEADERS[name]))[0] is PROTOCOL


FIELDS: dict[str, tuple[Any, ...]] = {
    "text for a node": (Op.GETATTR, "1", 0),
    "a negative node": (Op.GETATTR, -1, 0),
    "a node of 65 bits": (Op.READ, 0, 0, 1 << 32),
    "nil for a handle": (Op.GETATTR, 1, None),
    "too few": (Op.READ, 1),
    "text for a name": (Op.LOOKUP, 1, "name"),
    "a list for a name": (Op.LOOKUP, 1, [b"name"]),
    "a number for a flag": (Op.FSYNC, 1, 1),
    "groups of five bytes": (Op.MKDIR, 1, b"x", 0o755, 0, 0, 0, b"12345"),
    "handles of seven bytes": (Op.CLEANUP, b"", b"1234567", b""),
    "forgets without a count": (Op.CLEANUP, b"12345678", b"", b""),
}


@pytest.mark.parametrize("name", FIELDS)
def test_fields_of_wrong_types(guests: Guests, rogue: Rogue, place: Place, name: str) -> None:
    op, *fields = FIELDS[name]

    def act(rogue: Rogue, slot: int) -> None:
        rogue.request(op, *fields, slot=256 if op is Op.CLEANUP else slot)

    code, text = guests.breaks(act)
    assert code is PROTOCOL and text
    assert os.listdir(place.volume) == []


def test_prefixes(guests: Guests, rogue: Rogue) -> None:
    def sends(data: bytes) -> Callable[[Rogue, int], None]:
        return lambda rogue, _slot: rogue.raw(data)

    assert guests.breaks(sends(bytes(16)))[0] is PROTOCOL
    assert guests.breaks(sends(os.urandom(64)))[0] is PROTOCOL
    # The connection's first frame had the number 0.
    for number in (0, 2, 3, 0xFFFFFFFF):
        assert guests.breaks(sends(prefix(10, 0, number)))[0] is PROTOCOL
    for header, payload in ((1 << 20, 0), (0xFFFFFFFF, 0), (10, 0xFFFFFFFF), (10, (1 << 20) + 1)):
        assert guests.breaks(sends(prefix(header, payload, 1)))[0] is PROTOCOL


def test_a_frame_that_comes_twice(guests: Guests, rogue: Rogue, place: Place) -> None:
    slot = guests.fresh()

    def act(rogue: Rogue, _: int) -> None:
        frame = b"".join(rogue.sender.frame(packb([slot, 1, int(Op.MKDIR), 1, b"once", 0o755, 0, 0, 0, b""])))
        rogue.raw(frame)
        rogue.raw(frame)

    assert guests.breaks(act)[0] is PROTOCOL
    assert os.listdir(place.volume) in (["once"], [])


def test_streams_that_end_anywhere(guests: Guests, rogue: Rogue, place: Place) -> None:
    """Nothing of a frame that is cut is carried out."""
    rogue.call(Op.GETATTR, 1, 0)
    whole = packb([60, 1, int(Op.MKDIR), 1, b"never", 0o755, 0, 0, 0, b""])
    for cut in range(0, 16 + len(whole), 5):
        with guests.attached() as other:
            other.raw(b"".join(other.sender.frame(whole))[:cut])
    assert rogue.call(Op.GETATTR, 1, 0)[0] == 0
    assert os.listdir(place.volume) == []


def test_payloads_where_none_belongs(guests: Guests, rogue: Rogue, place: Place) -> None:
    for request in ((Op.GETATTR, 1, 0), (Op.MKDIR, 1, b"x", 0o755, 0, 0, 0, b""), (Op.READ, 1, 0, 1)):
        assert guests.breaks(lambda it, slot: it.request(*request, slot=slot, payload=b"data"))[0] is PROTOCOL  # noqa: B023
    assert os.listdir(place.volume) == []


# ---- slots and seqs ----


def test_slots_that_are_not_the_operation_s(guests: Guests, rogue: Rogue) -> None:
    """64 for requests, then 4 for cleanup, then 64 for lock waits."""
    for slot in (64, 67, 68, 131, 132, 324, 5000, 0xFFFFFFFF):
        assert guests.breaks(lambda it, _: it.request(Op.GETATTR, 1, 0, slot=slot))[0] is PROTOCOL  # noqa: B023
    for slot in (0, 63, 68):
        assert guests.breaks(lambda it, _: it.request(Op.CLEANUP, b"", b"", b"", slot=slot))[0] is PROTOCOL  # noqa: B023
    assert guests.breaks(lambda it, _: it.values(None, 2, int(Op.GETATTR), 1, 0))[0] is PROTOCOL
    assert guests.breaks(lambda it, slot: it.values(slot, 1, int(Op.PING)))[0] is PROTOCOL


@pytest.mark.parametrize("seq", [0, 2, 3, 1 << 53, (1 << 54) + 1, (1 << 64) - 1])
def test_seqs_that_skip(guests: Guests, rogue: Rogue, seq: int) -> None:
    assert guests.breaks(lambda it, slot: it.values(slot, seq, int(Op.GETATTR), 1, 0))[0] is PROTOCOL


def test_seqs_that_go_back(guests: Guests, rogue: Rogue, place: Place) -> None:
    slot = guests.fresh()

    def act(rogue: Rogue, _: int) -> None:
        for name in (b"one", b"two", b"three"):
            assert rogue.call(Op.MKDIR, 1, name, 0o755, 0, 0, 0, b"", slot=slot)[0] == 0
        rogue.values(slot, 1, int(Op.MKDIR), 1, b"again", 0o755, 0, 0, 0, b"")

    assert guests.breaks(act)[0] is PROTOCOL
    assert sorted(os.listdir(place.volume)) == ["one", "three", "two"]


def test_a_request_that_is_sent_again_runs_once(guests: Guests, rogue: Rogue, place: Place) -> None:
    seq = rogue.request(Op.MKDIR, 1, b"once", 0o755, 0, 0, 0, b"")
    first = rogue.reply()
    for _ in range(20):
        rogue.values(0, seq, int(Op.MKDIR), 1, b"another", 0o755, 0, 0, 0, b"")
        assert rogue.reply() == first
    assert os.listdir(place.volume) == ["once"]


def test_the_same_seq_as_another_operation(guests: Guests, rogue: Rogue, place: Place) -> None:
    slot = guests.fresh()

    def act(rogue: Rogue, _: int) -> None:
        rogue.call(Op.MKDIR, 1, b"d", 0o755, 0, 0, 0, b"", slot=slot)
        rogue.values(slot, 1, int(Op.RMDIR), 1, b"d")

    assert guests.breaks(act)[0] is PROTOCOL
    assert os.listdir(place.volume) == ["d"]


# ---- control messages ----


def test_control_messages_out_of_turn(guests: Guests, rogue: Rogue) -> None:
    for seq in (0, 1, 3, 1 << 40):
        assert guests.breaks(lambda it, _: it.values(None, seq, int(Op.PING)))[0] is PROTOCOL  # noqa: B023
    secret = bytes(32)
    assert guests.breaks(lambda it, _: it.values(None, 2, int(Op.CONFIRM), secret))[0] is PROTOCOL
    assert guests.breaks(lambda it, _: it.values(None, 2, int(Op.ATTACH), bytes(16), secret, []))[0] is PROTOCOL
    for slot in (132, 5000, 0xFFFFFFFF):
        assert guests.breaks(lambda it, _: it.values(None, 2, int(Op.INTERRUPT), slot, 1))[0] is PROTOCOL  # noqa: B023


def test_interrupts_of_what_never_was(rogue: Rogue, guests: Guests) -> None:
    with guests.attached() as other:
        for number, (slot, seq) in enumerate([(0, 0), (0, 1 << 63), (131, 7), (50, 2), (50, (1 << 64) - 1)]):
            other.values(None, 2 + number, int(Op.INTERRUPT), slot, seq)
            assert other.reply()[:3] == [None, 2 + number, 0]
    assert rogue.call(Op.GETATTR, 1, 0)[0] == 0


# ---- secrets ----


def test_wrong_secrets(guests: Guests, rogue: Rogue) -> None:
    right = guests.first.secret
    wrong = [bytes(32), bytes([right[0] ^ 1]) + right[1:], right[:-1] + bytes([right[-1] ^ 1]), right[::-1]]
    for secret in wrong:
        fields: tuple[Any, ...]
        for fields in ((int(Op.ATTACH), secret, []), (int(Op.RESUME), secret, bytes(8 * 132), [])):
            with guests.connect() as other:
                other.values(None, 1, fields[0], guests.first.session, *fields[1:])
                code, text = other.refused()
                assert code in (ErrorCode.STALE, PROTOCOL)
                assert right.hex() not in text and repr(right)[2:-1] not in text
    for secret in (b"", right[:-1], right + b"x"):
        with guests.connect() as other:
            other.values(None, 1, int(Op.ATTACH), guests.first.session, secret, [])
            assert other.refused()[0] is PROTOCOL
    for session in (bytes(16), guests.first.session[::-1]):
        with guests.connect() as other:
            other.values(None, 1, int(Op.ATTACH), session, right, [])
            assert other.refused()[0] is ErrorCode.STALE
    assert rogue.call(Op.GETATTR, 1, 0)[0] == 0


def test_a_second_hello(guests: Guests, rogue: Rogue) -> None:
    with guests.connect() as other:
        other.hello_only()
        assert other.refused()[0] is PROTOCOL
    assert guests.breaks(lambda it, _: it.hello_only())[0] is PROTOCOL
    assert rogue.call(Op.GETATTR, 1, 0)[0] == 0


@pytest.mark.parametrize(
    "changed",
    [
        {"magic": b"fusepipf"},
        {"minor_min": 5, "minor_max": 3},
        {"request_slots": 0},
        {"connections": 0},
        {"max_read": 1},
        {"max_in_flight": 0},
        {"max_name": 0},
        {"features": ["x"] * 65},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_hellos_that_cannot_be(guests: Guests, rogue: Rogue, changed: dict[str, Any]) -> None:
    with guests.connect() as other:
        other.hello_only(**changed)
        assert other.refused()[0] in (PROTOCOL, ErrorCode.LIMIT)
