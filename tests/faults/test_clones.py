"""Two clients with one state, as a machine's snapshot that is restored twice has them: exactly one goes on.

tests/wire/test_wire_exactly_once.py has the same for the protocol alone.  Here it is a real server that decides, with
each message of the two handshakes in turn; and a real mount that loses against a copy of itself.
"""

from __future__ import annotations

import itertools
import os
import select
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from fusepipe.wire import (
    PREFIX,
    Buffer,
    ClientConnection,
    ClientSession,
    ErrorCode,
    FrameReceiver,
    FrameSender,
    Op,
    SlotKind,
    encode_request,
    first_frame_size,
)
from fusepipe.wire import messages as m
from fusepipe.wire.client_session import Established, Event, Lost, Refused, Replied, Send
from fusepipe.wire.codec import read_error, read_reply, unpack
from tests.faults.statistics import sockets_of
from tests.mount import children
from tests.mount.blocking import wait_in
from tests.mount.children import sessions_below
from tests.mount.cutting import CuttingRelay
from tests.server.processes import dial
from tests.server.sessions import PATIENCE, offer
from tests.support import world
from tests.support.program import Program, Programs
from tests.wire.snapshots import snapshot

MESSAGES = 3
"""What a client does to resume: send RESUME; take the answer and send CONFIRM; take the answer."""

ORDERS = sorted(set(itertools.permutations("a" * MESSAGES + "b" * MESSAGES)))
"""Every interleaving of two that do."""


class Copy:
    """One client that resumes: its session's state, and a connection for as long as it has one."""

    def __init__(self, session: ClientSession, server: Path) -> None:
        self.session = session
        self.sock: socket.socket | None = None
        self.connection: ClientConnection | None = None
        self.said = ""
        """What the server refused it with."""
        self._server = server

    @property
    def over(self) -> bool:
        """Whether it goes on, or never will."""
        return self.session.ended or (self.connection is not None and self.connection.established)

    def step(self) -> None:
        """Take what the server has answered, then say what comes next, and wait until that is answered."""
        if self.over:
            return
        if self.sock is None or self.connection is None:
            self.sock, self.connection = dial(self._server), self.session.connection()
            self._send(self.connection.start())
            return
        for event in self._receive(self.sock, self.connection):
            if isinstance(event, Send):
                self._send(event.buffers)
            elif isinstance(event, Refused):
                self.said = event.text
            elif not isinstance(event, Established):
                assert isinstance(event, Lost), event
                self.drop()

    def drop(self) -> None:
        """Its connection dies."""
        if self.connection is not None:
            self.connection.lost()
        if self.sock is not None:
            self.sock.close()
        self.sock = self.connection = None

    def mkdir(self, name: str) -> None:
        """Send a request whose reply is not waited for."""
        request = m.MkdirRequest(1, name.encode(), 0o755, 0, os.geteuid(), os.getegid(), ())
        ticket = self.session.take(SlotKind.REQUEST, request)
        assert ticket is not None and self.sock is not None and self.connection is not None
        self.sock.sendall(b"".join(self.connection.request(ticket)))

    def send_again(self) -> None:
        """What waits for its reply, after a resumption."""
        assert self.sock is not None and self.connection is not None
        for ticket in self.session.unanswered():
            self.sock.sendall(b"".join(self.connection.request(ticket)))

    def hear(self) -> None:
        """Every reply that is due: each says that it was done."""
        assert self.sock is not None and self.connection is not None
        while self.session.unanswered():
            for event in self._receive(self.sock, self.connection):
                assert isinstance(event, Replied) and event.errno == 0, event

    def _send(self, buffers: list[Buffer]) -> None:
        assert self.sock is not None
        with suppress(BrokenPipeError, ConnectionResetError):
            self.sock.sendall(b"".join(buffers))
        assert select.select([self.sock], [], [], PATIENCE)[0], "the server does not answer"

    @staticmethod
    def _receive(sock: socket.socket, connection: ClientConnection) -> list[Event]:
        """What has come, once it is something whole."""
        events: list[Event] = []
        while not events:
            try:
                count = sock.recv_into(connection.buffer())
            except ConnectionResetError:
                count = 0
            events += connection.received(count)
        return events


def decided(*copies: Copy) -> tuple[Copy, Copy]:
    """Let both come to their end: who goes on, and who does not."""
    while not all(one.over for one in copies):
        for one in copies:
            one.step()
    (loser,) = (one for one in copies if one.session.ended)
    (winner,) = (one for one in copies if one is not loser)
    assert "elsewhere" in loser.said or "from the past" in loser.said, loser.said
    loser.drop()
    return winner, loser


class Place:
    """A server and its volume."""

    def __init__(self, program: Programs, folder: Path, native: str) -> None:
        self.program = program
        self.native = native
        self.folder = folder
        self.volume, self.mnt, self.socket = folder / "volume", folder / "mnt", folder / "s"
        self.volume.mkdir(mode=0o700)
        self.mnt.mkdir()
        self.server: Program = program(
            "serve", "--native", native, "--session-grace", "2m", "--listen", f"unix:{self.socket}",
            "--volume", f"data={self.volume}",
        )  # fmt: skip
        self.server.expect_log("a client was refused|a client broke the protocol")
        self.server.ready()
        self.made = 0

    def begin(self) -> Copy:
        """A client with a new session."""
        one = Copy(ClientSession(offer(b"data", slots=4), body_crc=False), self.socket)
        while not one.over:
            one.step()
        return one

    def name(self) -> str:
        """Of a directory that is to be made once."""
        self.made += 1
        return f"made{self.made}"


@pytest.fixture
def place(program: Programs, open_path: Path, native: str) -> Place:
    return Place(program, open_path, native)


def restored_twice(place: Place, source: Copy, order: tuple[str, ...], cut: int | None, *, stays: bool) -> str:
    """Two copies resume in this order; before step `cut` the connection of whose turn it is dies.

    Who of them goes on, which is then the next source.
    """
    source.mkdir(place.name())
    copies = {name: Copy(snapshot(source.session), place.socket) for name in "ab"}
    left = source.sock
    assert left is not None
    if not stays:
        source.drop()
    for number, name in enumerate(order):
        if number == cut:
            copies[name].drop()
        copies[name].step()
    winner, _ = decided(*copies.values())
    winner.send_again()
    winner.hear()
    winner.mkdir(place.name())
    winner.hear()
    if stays:
        with closing(left):  # the server ends it, after the reply that it had for it
            while left.recv(1000):
                pass
    source.session, source.sock, source.connection = winner.session, winner.sock, winner.connection
    return "a" if winner is copies["a"] else "b"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("stays", [False, True], ids=["gone", "stays"])
def test_restored_twice(place: Place, stays: bool) -> None:
    """Every interleaving of the messages, and each with one cut at each of them.

    `stays`: the original's connection is still there, as where a machine is copied while it runs.
    """
    source = place.begin()
    (session,) = sessions_below(place.server.pid)
    before = sockets_of(session)
    winners: Counter[str] = Counter()
    try:
        for order in ORDERS:
            for cut in (None, *range(2 * MESSAGES)):
                winners[restored_twice(place, source, order, cut, stays=stays)] += 1
        assert world.wait_until(lambda: sockets_of(session) == before, PATIENCE)
        assert sessions_below(place.server.pid) == [session]
    finally:
        source.drop()
    assert min(winners["a"], winners["b"]) > len(ORDERS)
    assert len(os.listdir(place.volume)) == place.made


def test_set_back(place: Place) -> None:
    """A client in an earlier state: its secret is void, or where it is not, its slots tell."""
    with ExitStack() as stack:
        one = place.begin()
        stack.callback(one.drop)
        before_a_request = snapshot(one.session)
        one.mkdir(place.name())
        one.hear()
        before_a_resumption = snapshot(one.session)
        for past in (before_a_request, before_a_resumption):
            late = Copy(past, place.socket)
            if past is before_a_resumption:
                one.drop()
                while not one.over:
                    one.step()
            while not late.over:
                late.step()
            assert late.session.ended
            assert ("from the past" if past is before_a_request else "elsewhere") in late.said
            late.drop()
            one.mkdir(place.name())
            one.hear()
        # Between CONFIRM and its answer: the newer secret is good, so only what was done since tells.
        one.drop()
        one.step()
        one.step()
        half = snapshot(one.session)
        while not one.over:
            one.step()
        one.mkdir(place.name())
        one.hear()
        late = Copy(half, place.socket)
        while not late.over:
            late.step()
        assert late.session.ended
        late.drop()
        one.mkdir(place.name())
        one.hear()
    assert len(os.listdir(place.volume)) == place.made


# ---- a real mount ---------------------------------------------------------------------------------------------------


def exactly(sock: socket.socket, count: int) -> bytes:
    """So many bytes."""
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        assert more, "the stream has ended"
        data += more
    return data


def resume_of(path: Path) -> bytes:
    """Listen where a mount dials: the RESUME that it sends, which gets no answer."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(PATIENCE)
        listener.bind(str(path))
        listener.listen()
        sock, _ = listener.accept()
        with sock:
            sock.settimeout(PATIENCE)
            prefix = exactly(sock, PREFIX.size)
            return prefix + exactly(sock, first_frame_size(prefix))


class Twin:
    """A copy of a mount: it says what the mount says, on a connection of its own."""

    def __init__(self, server: Path, resume: bytes) -> None:
        self.sock = dial(server)
        self._sender, self._receiver = FrameSender(), FrameReceiver(1 << 16, 0)
        # The RESUME is the frame with number 0, as it came.
        list(self._sender.frame(b""))
        self.sock.sendall(resume)

    def hear(self) -> list[object]:
        """The next frame's header."""
        while (frame := self._receiver.next()) is None:
            count = self.sock.recv_into(self._receiver.buffer())
            assert count, "the server closed the connection"
            self._receiver.received(count)
        return unpack(frame.header)

    def says(self, seq: int, request: m.ConfirmRequest | m.PingRequest) -> list[object]:
        """Its answer."""
        self.sock.sendall(b"".join(self._sender.frame(encode_request(None, seq, request))))
        return self.hear()


@pytest.fixture
def mounted(fuse: None, place: Place) -> Iterator[tuple[Place, Program, bytes]]:
    """A mount, and the RESUME that it sends after a loss.  From then on a relay leads to the server again."""
    relay_path = place.folder / "r"
    with CuttingRelay(relay_path, place.socket):
        client = place.program("mount", "--native", place.native, f"unix:{relay_path}/data", place.mnt)
        client.expect_log("the connection to the server is lost|the session goes on over a new connection")
        client.ready()
        (place.mnt / place.name()).mkdir()
        relay_path.unlink()
    resume = resume_of(relay_path)
    relay_path.unlink()
    yield place, client, resume


def test_a_mount_whose_copy_was_quicker(mounted: tuple[Place, Program, bytes]) -> None:
    """Its programs get ESTALE; it logs one line and ends with exit code 9.  The copy goes on."""
    place, client, resume = mounted
    client.expect_log("the session is stale")
    twin = Twin(place.socket, resume)
    with twin.sock:
        reply = read_reply(Op.RESUME, twin.hear()).message
        assert isinstance(reply, m.ResumeReply)
        assert read_reply(Op.CONFIRM, twin.says(2, m.ConfirmRequest(reply.secret))).errno == 0
        waiter = wait_in("lookup", place.mnt / "name")
        with CuttingRelay(place.folder / "r", place.socket):
            assert children.finish(waiter, PATIENCE) in ("ESTALE\n", "ENOTCONN\n", "ECONNABORTED\n")
            assert client.wait(PATIENCE) == 9
        assert client.stderr.count("error") == client.stderr.count("the session is stale, and the mount ends") == 1
        assert read_reply(Op.PING, twin.says(3, m.PingRequest())).errno == 0
    assert place.program.run("umount", place.mnt).process.returncode == 0


def test_a_mount_that_was_quicker_than_its_copy(mounted: tuple[Place, Program, bytes]) -> None:
    """It goes on, and the copy is told that it does: also one whose RESUME was answered before."""
    place, client, resume = mounted
    early = Twin(place.socket, resume)
    with early.sock:
        reply = read_reply(Op.RESUME, early.hear()).message
        assert isinstance(reply, m.ResumeReply)
        with CuttingRelay(place.folder / "r", place.socket):
            (place.mnt / place.name()).mkdir()
            assert early.sock.recv(1) == b"", "it is closed"
            late = Twin(place.socket, resume)
            with late.sock:
                error = read_error(late.hear())
                assert error.code is ErrorCode.STALE and "elsewhere" in error.text
            (place.mnt / place.name()).mkdir()
            assert client.stop() == 0
    assert len(os.listdir(place.volume)) == place.made
