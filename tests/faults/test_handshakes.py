"""Handshakes that are cut at any byte, with a real server: the client gets in all the same, and nothing of it stays.

tests/wire/test_wire_exactly_once.py has the same for the protocol alone.  Here are the listener, session processes and
sockets, and the client's own way to shake hands.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from fusepipe.client.errors import LinkLostError
from fusepipe.client.handshake import Offer, attach, open_link, resume
from fusepipe.client.link import Link
from fusepipe.transport import Stream, UnixAddress, connect
from fusepipe.wire import ClientConnection, SlotKind, Ticket
from fusepipe.wire import messages as m
from fusepipe.wire.client_session import Replied
from tests.faults.statistics import sockets_of
from tests.mount.children import sessions_below
from tests.mount.cutting import CuttingRelay, To
from tests.support import world
from tests.support.program import Programs

PATIENCE = 60.0
GRACE = 2
"""Seconds for which the server keeps a session."""

LOST = "the connection to the server is lost"
RESUMED = "the session goes on over a new connection"
DIRECTIONS: tuple[To, ...] = ("server", "client")


class Place:
    """A server, and a relay in front of it."""

    def __init__(self, program: Programs, folder: Path, native: str) -> None:
        self.native = native
        self.volume = folder / "volume"
        self.volume.mkdir(mode=0o700)
        self.server = program(
            "serve", "--native", native, "--session-grace", str(GRACE), "--listen", f"unix:{folder}/s",
            "--volume", f"data={self.volume}",
        )  # fmt: skip
        # The last: a client whose BYE was cut comes back while its session ends.
        self.server.expect_log("a client was refused|a client broke the protocol|process does not take a connection")
        self.server.ready()
        self.relay = CuttingRelay(folder / "r", folder / "s")
        self._direct, self._through = UnixAddress(f"{folder}/s"), UnixAddress(f"{folder}/r")
        self.target = f"unix:{folder}/r/data"

    async def dial(self, *, directly: bool = False) -> Stream:
        """A connection through the relay, or one that is never cut."""
        return await connect(self._direct if directly else self._through, deadline=PATIENCE)

    def held(self) -> dict[int, int]:
        """How many sockets the server and each of its session processes have open."""
        return {pid: sockets_of(pid) for pid in (self.server.pid, *sessions_below(self.server.pid))}

    def settles(self, before: dict[int, int]) -> None:
        """Wait until they hold what they held before."""
        assert world.wait_until(lambda: self.held() == before, PATIENCE), f"{self.held()} instead of {before}"


@pytest.fixture(params=["off", "auto"])
def place(program: Programs, open_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    """Served without and with native code."""
    made = Place(program, open_path, request.param)
    with made.relay:
        yield made


class Guest:
    """A session of one client, which makes a directory of another name each time that it is asked to."""

    def __init__(self, place: Place, link: Link, stream: Stream, connection: ClientConnection) -> None:
        self.place = place
        self.session = link.session
        self.made = 0
        self._stream = stream
        self._connection = connection

    @classmethod
    async def begin(cls, place: Place, *, directly: bool = False) -> Guest:
        link = await open_link(await place.dial(directly=directly), Offer("data", readers=4, connections=4))
        line = link._line
        assert line is not None
        return cls(place, link, line._stream, line.connection)

    def close(self) -> None:
        self._stream.close()

    async def sends(self) -> Ticket:
        """A request that may run only once."""
        self.made += 1
        request = m.MkdirRequest(1, b"made%d" % self.made, 0o755, 0, os.geteuid(), os.getegid(), ())
        ticket = self.session.take(SlotKind.REQUEST, request)
        assert ticket is not None
        await self._stream.send_all(self._connection.request(ticket))
        return ticket

    async def hears(self, ticket: Ticket) -> None:
        """Its reply: that it was done."""
        with trio.fail_after(PATIENCE):
            while True:
                count = await self._stream.receive_into(self._connection.buffer())
                for event in self._connection.received(count):
                    assert isinstance(event, Replied), event
                    assert (event.ticket.slot, event.ticket.seq, event.errno) == (ticket.slot, ticket.seq, 0)
                    return

    def loses(self) -> None:
        """Its connection is gone."""
        self._connection.lost()
        self._stream.close()

    async def comes_back(self) -> None:
        """Resumes, and sends again what waits.  Raises LinkLostError where that connection breaks, too."""
        stream = await self.place.dial()
        try:
            connection, again = await resume(self.session, stream)
        except BaseException:
            stream.close()
            raise
        self._stream, self._connection = stream, connection
        for ticket in again:
            with suppress(trio.BrokenResourceError):  # who waits for the reply will find out
                await stream.send_all(connection.request(ticket))

    async def attaches(self) -> None:
        """One more connection, which is closed again.  Raises LinkLostError where it breaks."""
        channel = await attach(self.session, await self.place.dial())
        channel.socket.close()
        assert self._connection.established

    async def leaves(self) -> None:
        """Ends the session."""
        await self._stream.send_all(self._connection.bye())
        with trio.fail_after(PATIENCE):
            while await self._stream.receive_into(self._connection.buffer()):
                pass
        self._stream.close()


async def lengths(relay: CuttingRelay, act: Callable[[], Awaitable[object]]) -> dict[To, int]:
    """How many bytes of an exchange that is not cut go to each side."""
    before = relay.passed.copy()
    await act()
    return {to: relay.passed[to] - before[to] for to in DIRECTIONS}


@pytest.mark.timeout(900)
def test_hello_cut_at_every_byte(place: Place) -> None:
    """The answer to PING belongs to it: before that the server does not keep a session for who may not know it."""

    async def hello() -> None:
        guest = await Guest.begin(place)
        guest.close()

    async def main() -> None:
        other = await Guest.begin(place, directly=True)
        before = place.held()
        totals = await lengths(place.relay, hello)
        assert min(totals.values()) > 60
        for to in DIRECTIONS:
            # Each byte to the client costs the start of a session process, and to that they are all the same.
            for at in range(0, totals[to] + 1, 1 if to == "server" else 6):
                place.relay.cut_next(at, to)
                stream = await place.dial()
                try:
                    link = await open_link(stream, Offer("data", readers=4, connections=4))
                except LinkLostError:
                    continue
                assert at == totals[to]
                link.lose("that was all")
            await hello()
            await other.hears(await other.sends())
        await trio.to_thread.run_sync(place.settles, before)
        await other.leaves()

    trio.run(main)
    assert world.wait_until(lambda: not sessions_below(place.server.pid), PATIENCE)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("opening", ["attach", "resume"])
def test_cut_at_every_byte(place: Place, opening: str) -> None:
    """A cut concerns that handshake alone; what was sent before it runs once."""

    async def main() -> None:
        guest = await Guest.begin(place)
        before = place.held()

        async def exchange() -> None:
            if opening == "attach":
                await guest.attaches()
            else:
                guest.loses()
                await guest.comes_back()

        await guest.hears(await guest.sends())
        totals = await lengths(place.relay, exchange)
        assert min(totals.values()) > 20
        for to in DIRECTIONS:
            for at in range(totals[to] + 1):
                ticket = await guest.sends()
                guest.loses()
                if opening == "attach":
                    await guest.comes_back()
                place.relay.cut_next(at, to)
                try:
                    await (guest.attaches() if opening == "attach" else guest.comes_back())
                except LinkLostError:
                    pass
                else:
                    assert at == totals[to]
                guest.loses()
                try:
                    await guest.comes_back()
                except LinkLostError:
                    # It did not know whether its CONFIRM was heard, and tried the newer secret before the older one.
                    assert opening == "resume"
                    await guest.comes_back()
                await guest.hears(ticket)
        assert len(os.listdir(place.volume)) == guest.made
        await trio.to_thread.run_sync(place.settles, before)
        await guest.leaves()

    trio.run(main)
    assert world.wait_until(lambda: not sessions_below(place.server.pid), PATIENCE)


def cuts(native: str, far: int) -> list[tuple[int, To, int]]:
    """Where to cut a mount's connections: after so many bytes, to whom, and how many of them are spared.

    `far` is about the end of the first one's handshake; what comes later cuts a mount that is at work.  With native
    threads others follow, which are attached.
    """
    first = [0, 16, *range(20, far, far // 4)]
    further = [0, 17, 60] if native == "auto" else []
    return [(at, to, skip) for skip, places in ((0, first), (1, further)) for to in DIRECTIONS for at in places]


@pytest.mark.timeout(900)
def test_a_mount_gets_in(fuse: None, program: Programs, place: Place, open_path: Path) -> None:
    """`fusepipe mount`, where one of its first connections is cut: it mounts all the same."""
    mnt = open_path / "mnt"
    mnt.mkdir()
    before = place.held()
    for at, to, skip in cuts(place.native, 160):
        place.relay.cut_next(at, to, skip=skip)
        client = program("mount", "--native", place.native, "--readers", "4", place.target, mnt)
        client.expect_log(f"{LOST}|{RESUMED}")
        client.ready(PATIENCE)
        (mnt / "folder").mkdir()
        (mnt / "folder").rmdir()
        assert client.stop(PATIENCE) == 0
    place.settles(before)


@pytest.mark.timeout(900)
def test_a_mount_comes_back(fuse: None, program: Programs, place: Place, open_path: Path) -> None:
    """`fusepipe mount` loses its connections, and those that are to replace them: it goes on, over the next ones."""
    mnt = open_path / "mnt"
    mnt.mkdir()
    client = program("mount", "--native", place.native, "--readers", "4", place.target, mnt)
    client.expect_log(f"{LOST}|{RESUMED}")
    client.ready(PATIENCE)
    before = place.held()
    for at, to, skip in cuts(place.native, 800):
        resumed = client.stderr.count(RESUMED)
        place.relay.cut_next(at, to, skip=skip)
        place.relay.cut()
        assert world.wait_until(lambda n=resumed: client.stderr.count(RESUMED) > n, PATIENCE), client.stderr  # type: ignore[misc]
        (mnt / "folder").mkdir()
        (mnt / "folder").rmdir()
    place.settles(before)
    assert client.stop(PATIENCE) == 0
