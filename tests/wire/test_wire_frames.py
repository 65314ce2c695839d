"""Frames: in pieces of any size, with and without checksums, and damaged."""

import struct
import zlib
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusepipe.wire import MAX_HEADER, PREFIX, Frame, FrameReceiver, FrameSender, RemoteProtocolError
from fusepipe.wire.frames import read_prefix

from . import reference
from .pair import pour

MAX_PAYLOAD = 1 << 20
SIZES = st.one_of(st.integers(0, 40), st.sampled_from([65_500, 65_536, 70_000, 200_000]))
HEADERS = st.one_of(st.integers(1, 60), st.sampled_from([32_767, 32_769, 65_536, MAX_HEADER]))


def receive(receiver: FrameReceiver, data: bytes, amount: Callable[[], int]) -> list[Frame]:
    """The frames of the bytes, which arrive `amount()` at once."""
    frames = []
    for _ in pour(receiver, data, amount):
        while (frame := receiver.next()) is not None:
            frames.append(frame)
    return frames


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(HEADERS, SIZES), min_size=1, max_size=6),
    st.booleans(),
    st.lists(st.sampled_from([1, 2, 15, 16, 17, 100, 40_000, 1 << 20]), min_size=1, max_size=6),
)
def test_frames_in_pieces(sizes: list[tuple[int, int]], body_crc: bool, pieces: list[int]) -> None:
    sender, receiver = FrameSender(), FrameReceiver(MAX_HEADER, MAX_PAYLOAD)
    sender.body_crc = receiver.body_crc = body_crc
    sent = [
        (bytes([number]) * header, bytes([number ^ 0x55]) * payload) for number, (header, payload) in enumerate(sizes)
    ]
    data = b"".join(b"".join(sender.frame(*frame)) for frame in sent)
    turn = 0

    def amount() -> int:
        nonlocal turn
        turn += 1
        # Single bytes only for a while: 200,000 of them take long.
        return pieces[turn % len(pieces)] if turn < 2000 else 1 << 20

    frames = receive(receiver, data, amount)
    assert [(frame.header, bytes(frame.payload)) for frame in frames] == sent
    assert not receiver.within_frame
    receiver.received(0)


def test_what_the_reference_says() -> None:
    sender = FrameSender()
    sent = [(b"h1", b""), (b"h2", b"payload"), (b"h3", b"")]
    got = [b"".join(sender.frame(*frame)) for frame in sent]
    assert got == [
        reference.frame(header, payload, number, checksum=number == 0) for number, (header, payload) in enumerate(sent)
    ]


def test_the_payload_is_passed_on_and_not_copied() -> None:
    sender = FrameSender()
    payload = memoryview(bytearray(100_000))
    assert sender.frame(b"header", payload)[1] is payload


def test_a_big_payload_is_received_into_its_own_memory() -> None:
    data = b"".join(FrameSender().frame(b"header", b"p" * 500_000))
    receiver = FrameReceiver(MAX_HEADER, MAX_PAYLOAD)
    first = receiver.buffer()
    first[:100] = data[:100]
    receiver.received(100)
    assert receiver.next() is None
    rest = receiver.buffer()
    assert len(rest) == 500_000 - (100 - 16 - 6), "exactly what is missing of the payload"
    rest[:] = data[100 : 100 + len(rest)]
    receiver.received(len(rest))
    assert receiver.next() is None, "the checksum is missing"
    checksum = receiver.buffer()
    checksum[:4] = data[-4:]
    receiver.received(4)
    frame = receiver.next()
    assert frame is not None
    assert frame.payload.obj is rest.obj
    assert bytes(frame.payload) == b"p" * 500_000


def test_memory_of_a_frame_is_never_used_again() -> None:
    sender, receiver = FrameSender(), FrameReceiver(MAX_HEADER, MAX_PAYLOAD)
    kept = []
    for number in range(300):
        payload = bytes([number % 256]) * (1 + number * 7)
        kept += receive(receiver, b"".join(sender.frame(b"%d" % number, payload)), lambda: 1 << 20)
    for number, frame in enumerate(kept):
        assert frame.header == b"%d" % number
        assert bytes(frame.payload) == bytes([number % 256]) * (1 + number * 7)


def prefixed(header_len: int, payload_len: int, number: int) -> bytes:
    lengths = struct.pack("<III", header_len, payload_len, number)
    return lengths + struct.pack("<I", zlib.crc32(lengths))


@pytest.mark.parametrize(
    ("prefix", "says"),
    [
        (prefixed(0, 0, 0), "a header of 0 bytes, where 1 to 100 are allowed"),
        (prefixed(101, 0, 0), "a header of 101 bytes"),
        (prefixed(0xFFFF_FFFF, 0, 0), "a header of 4294967295 bytes"),
        (prefixed(1, 1001, 0), "a payload of 1001 bytes, where at most 1000 are allowed"),
        (prefixed(1, 0xFFFF_FFFF, 0), "a payload of 4294967295 bytes"),
        (prefixed(1, 0, 1), "frame 1 came where frame 0 was due"),
        (b"\1" + prefixed(1, 0, 0)[1:-1] + b"\0", "the checksum of a frame's prefix is wrong"),
    ],
)
def test_a_bad_prefix_is_refused_before_anything_follows(prefix: bytes, says: str) -> None:
    receiver = FrameReceiver(100, 1000)
    receiver.buffer()[:16] = prefix
    receiver.received(16)
    with pytest.raises(RemoteProtocolError, match=says):
        receiver.next()


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_every_wrong_bit_is_noticed(data: st.DataObject) -> None:
    sender = FrameSender()
    sender.body_crc = True
    good = b"".join(b"".join(sender.frame(b"header", b"payload" * number)) for number in range(3))
    bit = data.draw(st.integers(0, len(good) * 8 - 1))
    bad = bytearray(good)
    bad[bit // 8] ^= 1 << bit % 8
    receiver = FrameReceiver(MAX_HEADER, MAX_PAYLOAD)
    receiver.body_crc = True
    with pytest.raises(RemoteProtocolError):
        receive(receiver, bytes(bad), lambda: 1 << 20)


def test_a_frame_that_is_missing_is_noticed() -> None:
    sender = FrameSender()
    first, _, third = (b"".join(sender.frame(b"header")) for _ in range(3))
    with pytest.raises(RemoteProtocolError, match="frame 2 came where frame 1 was due: bytes were lost"):
        receive(FrameReceiver(MAX_HEADER, 0), first + third, lambda: 1 << 20)


def test_numbers_begin_again_after_2_to_the_32() -> None:
    sender, receiver = FrameSender(), FrameReceiver(MAX_HEADER, 0)
    receive(receiver, b"".join(sender.frame(b"first")), lambda: 1 << 20)
    sender.number = receiver.number = 0xFFFF_FFFF
    data = b"".join(b"".join(sender.frame(b"header")) for _ in range(3))
    assert [PREFIX.unpack_from(data, at)[2] for at in (0, 22, 44)] == [0xFFFF_FFFF, 0, 1]
    assert len(receive(receiver, data, lambda: 1 << 20)) == 3, "and only the very first has a checksum of its body"


@pytest.mark.parametrize("length", range(1, 30))
def test_an_end_in_the_middle_of_a_frame_is_an_error(length: int) -> None:
    frame = b"".join(FrameSender().frame(b"header", b"load"))
    assert len(frame) == 30
    receiver = FrameReceiver(MAX_HEADER, MAX_PAYLOAD)
    assert receive(receiver, frame[:length], lambda: 1 << 20) == []
    assert receiver.within_frame
    with pytest.raises(RemoteProtocolError, match="the stream ended in the middle of a frame"):
        receiver.received(0)


def test_read_prefix_takes_any_buffer() -> None:
    for kind in (bytes, bytearray, memoryview):
        assert read_prefix(kind(prefixed(5, 6, 7)), 7, 10, 10) == (5, 6)
