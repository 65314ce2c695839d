"""What a listener keeps for its sessions, whoever speaks at the other end."""

import os
import socket
import struct
from collections.abc import Iterator

import pytest

from fusepipe.server.belongings import Pins, Room


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def room() -> Room:
    return Room()


@pytest.fixture
def pins(room: Room) -> Iterator[Pins]:
    made = Pins(room)
    yield made
    made.close()


def say(theirs: socket.socket, *nodes: int, fds: int = 0) -> None:
    """A packet with these numbers and so many descriptors."""
    opened = [os.open("/", os.O_PATH) for _ in range(fds)]
    socket.send_fds(theirs, [struct.pack(f"{len(nodes)}Q", *nodes)], opened) if opened else theirs.send(
        struct.pack(f"{len(nodes)}Q", *nodes)
    )
    for fd in opened:
        os.close(fd)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_kept_and_given_back(ends: tuple[socket.socket, socket.socket], pins: Pins, room: Room) -> None:
    ours, theirs = ends
    assert not pins.receive(ours)
    before, left = descriptors(), room.left
    for node in (7, 8, 9):
        say(theirs, node, fds=1)
        assert pins.receive(ours)
    assert descriptors() == before + 3
    assert room.left == left - 3
    ((nodes, fds),) = pins.parts()
    assert nodes == [7, 8, 9]
    assert all(os.path.samestat(os.fstat(fd), os.stat("/")) for fd in fds)
    say(theirs, 7, 9, 12345)
    assert pins.receive(ours)
    assert [nodes for nodes, _ in pins.parts()] == [[8]]
    pins.close()
    assert descriptors() == before
    assert room.left == left


def test_what_nobody_should_say(ends: tuple[socket.socket, socket.socket], pins: Pins) -> None:
    """Nothing stays open that is not kept."""
    ours, theirs = ends
    before = descriptors()
    say(theirs, 7, 8, fds=1)
    say(theirs, 9, fds=3)
    say(theirs, 9, fds=1)
    theirs.send(b"123")
    theirs.send(b"")
    socket.send_fds(theirs, [b"1"], [theirs.fileno()])
    for _ in range(6):
        pins.receive(ours)
    assert not pins.receive(ours)
    assert [nodes for nodes, _ in pins.parts()] == [[9]]
    assert descriptors() == before + 1


def test_the_oldest_goes(ends: tuple[socket.socket, socket.socket], pins: Pins, room: Room) -> None:
    ours, theirs = ends
    room.most_of_one = 2
    for node in (1, 2, 3):
        say(theirs, node, fds=1)
        pins.receive(ours)
    assert [nodes for nodes, _ in pins.parts()] == [[2, 3]]


def test_no_room_for_all_sessions_together(ends: tuple[socket.socket, socket.socket], pins: Pins, room: Room) -> None:
    ours, theirs = ends
    room.left = 1
    before = descriptors()
    for node in (1, 2):
        say(theirs, node, fds=1)
        assert pins.receive(ours)
    assert [nodes for nodes, _ in pins.parts()] == [[1]]
    assert descriptors() == before + 1
