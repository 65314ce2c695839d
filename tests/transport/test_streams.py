"""Streams: trio's own suite, and what they can beyond it."""

import socket
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import trio_test

from fusepipe.transport import Buffer, Stream, send_limit
from fusepipe.transport.sending import VSOCK_SEND_LIMIT, rest_of, send_now


async def pair() -> tuple[Stream, Stream]:
    left, right = socket.socketpair()
    return Stream(left), Stream(right)


async def clogged_pair() -> tuple[Stream, Stream]:
    """Streams whose sends must wait, in both directions."""
    left, right = await pair()
    for stream in (left, right):
        while not stream.send_now([bytes(65536)]):
            pass
    return left, right


@trio_test
async def test_trios_suite() -> None:
    await trio.testing.check_half_closeable_stream(pair, clogged_pair)


@trio_test
async def test_several_buffers_arrive_in_order() -> None:
    left, right = await pair()
    async with left, right:
        await left.send_all([b"one", bytearray(b"two"), memoryview(b"three"), b""])
        buffer = bytearray(100)
        got = b""
        while len(got) < 11:
            got += buffer[: await right.receive_into(memoryview(buffer))]
        assert got == b"onetwothree"


@trio_test
async def test_a_large_send_waits_for_the_reader() -> None:
    left, right = await pair()
    data = bytes(range(256)) * 8192
    got = bytearray()

    async def read() -> None:
        while chunk := await right.receive_some():
            got.extend(chunk)

    async with left, right, trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await left.send_all([data[:5], data[5:]])
        await left.send_eof()
    assert got == data


@trio_test
async def test_send_now_hands_back_what_did_not_fit() -> None:
    left, right = await pair()
    async with left, right:
        data = bytes(range(256)) * 16384
        rest = left.send_now([data[:100], data[100:]])
        assert rest
        left_over = b"".join(rest)
        assert data.endswith(left_over) and 0 < len(left_over) < len(data)
        assert left.send_now([b"x"]) == [b"x"]
        got = bytearray()
        while len(got) < len(data) - len(left_over):
            got += await right.receive_some()
        assert got == data[: len(got)]


@trio_test
async def test_the_end_and_a_broken_connection() -> None:
    left, right = await pair()
    async with left:
        await right.aclose()
        assert await left.receive_into(bytearray(1)) == 0
        with pytest.raises(trio.BrokenResourceError):
            left.send_now([b"x"])


@trio_test
async def test_one_sender_at_a_time() -> None:
    left, right = await clogged_pair()
    async with left, right, trio.open_nursery() as nursery:
        nursery.start_soon(left.send_all, b"x")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            left.send_now([b"y"])
        nursery.cancel_scope.cancel()


@trio_test
async def test_a_detached_socket_belongs_to_the_caller() -> None:
    left, right = await pair()
    async with right:
        with left.detach() as sock:
            sock.send(b"hello")
            assert await right.receive_some() == b"hello"
            with pytest.raises(trio.ClosedResourceError):
                left.send_now([b"x"])


@trio_test
async def test_an_empty_buffer_is_a_mistake() -> None:
    left, right = await pair()
    async with left, right:
        with pytest.raises(ValueError):
            await left.receive_into(bytearray())


@trio_test
async def test_the_peer_of_a_unix_socket() -> None:
    left, right = await pair()
    async with left, right:
        assert left.peer.pid is not None and left.peer.uid is not None
        assert "uid" in str(left.peer)


# ---- sending within a limit ----


class Recorder:
    """Stands for a non-blocking socket: takes `room` bytes in all, and records the size of each call."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.taken = b""
        self.calls: list[int] = []

    def sendmsg(self, buffers: Any, ancillary: object, flags: int) -> int:
        assert flags == socket.MSG_DONTWAIT
        if not self.room:
            raise BlockingIOError
        data = b"".join(buffers)
        self.calls.append(len(data))
        data = data[: self.room]
        self.room -= len(data)
        self.taken += data
        return len(data)


buffers_of_any_size = st.lists(st.binary(max_size=50), max_size=30)


@given(buffers_of_any_size, st.integers(0, 600), st.none() | st.integers(1, 60))
def test_nothing_is_lost_or_sent_twice(buffers: list[Buffer], room: int, limit: int | None) -> None:
    recorder = Recorder(room)
    rest = send_now(recorder, buffers, limit)  # type: ignore[arg-type]  # the stand-in has all that send_now uses
    assert recorder.taken + b"".join(rest) == b"".join(buffers)
    assert len(recorder.taken) == min(room, sum(map(len, buffers)))
    if limit is not None:
        assert max(recorder.calls, default=0) <= limit


@given(buffers_of_any_size, st.integers(0, 1500))
def test_rest_of(buffers: list[Buffer], sent: int) -> None:
    assert b"".join(rest_of(buffers, sent)) == b"".join(buffers)[sent:]


def test_more_buffers_than_one_call_takes() -> None:
    recorder = Recorder(10_000)
    assert send_now(recorder, [b"x"] * 3000, None) == []  # type: ignore[arg-type]  # as above
    assert recorder.taken == b"x" * 3000 and len(recorder.calls) == 6


def test_vsock_sends_are_cut() -> None:
    recorder = Recorder(1 << 20)
    data = bytes(range(250)) * 400
    assert send_now(recorder, [b"head", data], VSOCK_SEND_LIMIT) == []  # type: ignore[arg-type]  # as above
    assert recorder.taken == b"head" + data
    assert recorder.calls == [32_000, 32_000, 32_000, 4_004]


def test_only_vsock_has_a_limit() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        assert send_limit(sock) is None
    try:
        vsock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    except OSError:
        pytest.skip("this kernel does not know AF_VSOCK")
    with vsock:
        assert send_limit(vsock) == 32_000
