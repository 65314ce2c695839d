"""Clients, a server and the connections between them, in memory and one step at a time.

Every choice comes from one random generator, so a seed names a run.  Connections deliver bytes in pieces of any size,
die at any byte, and each end learns of it when it has read what was left; the server's workers take a request from the
receiver and judge it later, so that a request of a dead connection can come after its repetition on a new one.  The
model server says what was run how often; each request carries a token that its reply must bring back.
"""

import copy
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from fusepipe.wire import (
    Attr,
    Buffer,
    ClientConnection,
    ClientSession,
    Entry,
    ErrorCode,
    HelloRequest,
    ListServerStore,
    Message,
    Op,
    ServerConnection,
    ServerLimits,
    ServerSession,
    SlotKind,
    Ticket,
    Verdict,
    client_session,
    encode_errno,
    encode_reply,
    server_session,
)
from fusepipe.wire.messages import (
    CleanupReply,
    CleanupRequest,
    GetattrReply,
    GetattrRequest,
    LookupReply,
    LookupRequest,
    ReadReply,
    ReadRequest,
    UnlinkReply,
    UnlinkRequest,
    WriteReply,
    WriteRequest,
)

from .snapshots import snapshot

LIMITS = ServerLimits(
    request_slots=6,
    cleanup_slots=2,
    lock_slots=1,
    connections=3,
    max_read=200_000,
    max_write=200_000,
    max_in_flight=400_000,
)
OFFER = HelloRequest(b"fusepipe", 1, 0, 0, (), b"v", 6, 2, 1, 3, 200_000, 200_000, 400_000, 255, "simulation")


class Pipe:
    """One direction of a connection: bytes on their way, and whether the stream ends after them."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.closed = False
        self.finished = False
        """Whether the receiver has been told of the end."""

    def write(self, buffers: list[Buffer]) -> None:
        """What is written into a closed pipe is lost, as with a socket whose peer is gone."""
        if not self.closed:
            for buffer in buffers:
                self.data += buffer

    def cut(self, keep: int) -> None:
        """The stream ends after `keep` more bytes."""
        if not self.closed:
            del self.data[keep:]
            self.closed = True

    @property
    def busy(self) -> bool:
        return bool(self.data) or (self.closed and not self.finished)


class Link:
    """A connection with both of its ends."""

    def __init__(self, owner: "Client", client: ClientConnection, server: ServerConnection) -> None:
        self.owner = owner
        self.client = client
        self.server = server
        self.up = Pipe()
        self.down = Pipe()
        self.established = False
        self.in_hand: list[server_session.Arrived] = []
        """Requests that a worker has taken and not judged yet."""


@dataclass
class Asked:
    """A request, what its reply must be, and how often it came."""

    token: int
    op: Op
    errno: int
    answers: int = 0


@dataclass
class Running:
    """A request that the model server works on."""

    event: server_session.Arrived


class Client:
    """One client, with as many connections as it may have."""

    def __init__(self, world: "World", session: ClientSession) -> None:
        self.world = world
        self.session = session
        self.links: list[Link] = []
        self.asked: list[Asked] = []
        self.stale = False
        self.problems: list[str] = []

    # -- what it does on its own

    def connect(self) -> bool:
        """Opens a connection if one is missing.  False where nothing is to be done."""
        session, live = self.session, [link for link in self.links if not link.client.dead]
        if self.stale or session.ended:
            return False
        if session.agreed is None or session.lost:
            if live:
                return False
        elif len(live) >= session.agreed.connections or any(not link.client.established for link in live):
            return False
        connection = session.connection()
        if connection.opening is Op.HELLO:
            self.world.new_session()
        link = Link(self, connection, self.world.server.connection(body_crc=self.world.random.random() < 0.2))
        self.links.append(link)
        self.world.links.append(link)
        link.up.write(connection.start())
        return True

    def ask(self) -> bool:
        """Makes one more request, if there is a slot; sends it if there is a connection."""
        if self.stale or self.session.agreed is None:
            return False
        return self.ask_for(*self.world.invent())

    def ask_unlink(self) -> bool:
        """Makes a request that may run only once."""
        self.world.tokens += 1
        request = UnlinkRequest(1, b"%d" % self.world.tokens)
        return self.ask_for(SlotKind.REQUEST, request, b"")

    def ask_for(self, kind: SlotKind, request: Message, payload: bytes) -> bool:
        ticket = self.session.take(kind, request, payload)
        if ticket is None:
            return False
        ticket.user = Asked(self.world.tokens, ticket.op, errno_of(self.world.tokens))
        self.asked.append(ticket.user)
        self.send(ticket)
        return True

    def send(self, ticket: Ticket) -> None:
        open_links = [link for link in self.links if link.client.established]
        if open_links:
            link = self.world.random.choice(open_links)
            link.up.write(link.client.request(ticket))

    def bother(self) -> None:
        """PING, INTERRUPT or an abandoned request, which must disturb nothing."""
        random = self.world.random
        for link in self.links:
            if link.client.established:
                waiting = self.session.unanswered()
                if waiting and random.random() < 0.7:
                    ticket = random.choice(waiting)
                    if ticket.sent and random.random() < 0.5:
                        link.up.write(link.client.interrupt(ticket.slot, ticket.seq))
                    else:
                        self.session.abandon(ticket)
                else:
                    link.up.write(link.client.ping())

    def drop(self, all_but: float = 0.0) -> None:
        """Closes every connection, as after a loss; what was sent may arrive all the same.

        This share of those that were established is left to itself, as where a thread has not noticed yet: such a one
        may still bring replies, and must not bring wrong ones.
        """
        for link in self.links:
            if link.established and self.world.random.random() < all_but:
                continue
            link.client.lost()
            link.up.closed = True
            link.down.closed = link.down.finished = True
            link.down.data.clear()
        self.links.clear()

    # -- what happens to it

    def handle(self, link: Link, events: list[client_session.Event]) -> None:
        for event in events:
            if isinstance(event, client_session.Send):
                link.up.write(event.buffers)
            elif isinstance(event, client_session.Established):
                link.established = True
                for ticket in event.resend:
                    self.send(ticket)
            elif isinstance(event, client_session.Replied):
                self.check(event)
            elif isinstance(event, client_session.Lost):
                if event.error is not None and "in the middle of a frame" not in event.reason:
                    self.problems.append(event.reason)
                if link in self.links:
                    self.drop(all_but=self.world.random.choice((0.0, 0.7)))
            elif isinstance(event, client_session.Refused):
                if event.code is not ErrorCode.STALE:
                    self.problems.append(event.text)
                self.stale = True
                self.drop()

    def check(self, event: client_session.Replied) -> None:
        asked: Asked = event.ticket.user
        asked.answers += 1
        token, reply = asked.token, event.reply
        assert event.errno == asked.errno, (event, asked)
        if event.errno:
            assert reply is None
        elif isinstance(reply, LookupReply):
            assert reply.entry.node == token
        elif isinstance(reply, GetattrReply):
            assert reply.attr.ino == token
        elif isinstance(reply, ReadReply):
            assert bytes(event.payload) == pattern(token, event.ticket.request[2])
        elif isinstance(reply, WriteReply):
            assert reply.size == zlib.crc32(event.ticket.payload)
        else:
            assert isinstance(reply, UnlinkReply | CleanupReply)

    def clone(self) -> "Client":
        """A copy of the client as it is, without its connections, as a VM's snapshot gives it."""
        session = snapshot(self.session)
        other = Client(self.world, session)
        other.stale = self.stale
        for ticket in session.unanswered():
            ticket.user = copy.copy(ticket.user)
            other.asked.append(ticket.user)
        return other


def errno_of(token: int) -> int:
    """What the model server answers: an error to every fifth request."""
    return 0 if token % 5 else token % 130 + 1


def pattern(token: int, size: int) -> bytes:
    """Data of a READ that only this token has."""
    return (token.to_bytes(4, "little") * (size // 4 + 1))[:size]


class World:
    """One server session, its clients, and the scheduler."""

    def __init__(self, random: Random, *, body_crc: bool = False) -> None:
        self.random = random
        self.pace = random.choice((1.0, 0.1))
        """How often a worker that could end a request does so."""
        self.new_session()
        self.tokens = 0
        self.links: list[Link] = []
        self.clients = [Client(self, ClientSession(OFFER, body_crc=body_crc))]
        self.running: list[Running] = []
        self.runs: Counter[int] = Counter()
        self.problems: list[str] = []
        self.wins: list[Link] = []
        """The connections that were confirmed, in order."""

    def new_session(self) -> None:
        """What the listener does for a HELLO.  An earlier one's session is left alone: its client never knew it."""
        self.store = ListServerStore(LIMITS.slots)
        self.server = ServerSession(
            bytes(16), LIMITS, self.store, token_bytes=self.random.randbytes, read_only=False, software="model"
        )

    # -- the model of what is asked and what it does

    def invent(self) -> tuple[SlotKind, Message, bytes]:
        """A request with a token of its own."""
        self.tokens += 1
        token, random = self.tokens, self.random
        size = random.choice((1, 4, 5000, 60_000, 150_000))
        made: list[tuple[SlotKind, Message, bytes]] = [
            (SlotKind.REQUEST, LookupRequest(1, b"%d" % token), b""),
            (SlotKind.REQUEST, UnlinkRequest(1, b"%d" % token), b""),
            (SlotKind.REQUEST, GetattrRequest(token, 0), b""),
            (SlotKind.REQUEST, ReadRequest(token, 0, size), b""),
            (SlotKind.REQUEST, WriteRequest(token, 0, 0), pattern(token, size)),
            (SlotKind.CLEANUP, CleanupRequest((token, 1), (), ()), b""),
        ]
        return random.choice(made)

    def execute(self, event: server_session.Arrived) -> tuple[bytes, bytes]:
        """Runs a request of `invent`: header and payload of its reply."""
        request = event.request
        token = token_of(request)
        errno = errno_of(token)
        if errno:
            return encode_errno(event.slot, event.seq, errno), b""
        attr = Attr(token, 0o100644, 1, 0, 0, 0, 0, 4096, 0, 0, 0, 0, 0, 0, 0)
        payload = b""
        reply: Message = CleanupReply()
        if isinstance(request, LookupRequest):
            reply = LookupReply(Entry(token, attr))
        elif isinstance(request, UnlinkRequest):
            reply = UnlinkReply()
        elif isinstance(request, GetattrRequest):
            reply = GetattrReply(attr)
        elif isinstance(request, ReadRequest):
            reply, payload = ReadReply(), pattern(token, request.size)
        elif isinstance(request, WriteRequest):
            reply = WriteReply(zlib.crc32(event.payload))
        return encode_reply(event.slot, event.seq, event.op, reply), payload

    # -- steps

    def deliver_up(self, link: Link, count: int) -> None:
        """`count` bytes, or the end of the stream, reach the server."""
        if not link.up.data:
            link.up.finished = True
            link.server.received(0)
        move(link.up, count, link.server.buffer, link.server.received)
        while (event := link.server.next_event()) is not None:
            if isinstance(event, server_session.Answer):
                link.down.write(link.server.frame(event.header))
            elif isinstance(event, server_session.Arrived):
                link.in_hand.append(event)
            elif isinstance(event, server_session.Opened):
                if event.op is Op.CONFIRM:
                    self.wins.append(link)
                for other in self.links:
                    if other.server in event.superseded:
                        self.close(other)
            elif isinstance(event, server_session.Close):
                if (
                    event.error is not None
                    and event.error.code is not ErrorCode.STALE
                    and "in the middle of a frame" not in event.reason
                ):
                    self.problems.append(event.reason)
                self.close(link)

    def close(self, link: Link) -> None:
        """The server closes its end; what it has sent is still on its way."""
        link.server.lost()
        link.down.closed = True
        link.up.closed = link.up.finished = True
        link.up.data.clear()

    def deliver_down(self, link: Link, count: int) -> None:
        """`count` bytes, or the end of the stream, reach the client."""
        events: list[client_session.Event] = []
        if not link.down.data:
            link.down.finished = True
            events += link.client.received(0)

        def received(got: int) -> None:
            events.extend(link.client.received(got))

        move(link.down, count, link.client.buffer, received)
        link.owner.handle(link, events)

    def judge(self, link: Link) -> None:
        """A worker judges the request that it took first."""
        event = link.in_hand.pop(0)
        verdict = link.server.arrive(event)
        if verdict is Verdict.RUN:
            assert all(other.event.slot != event.slot for other in self.running), "two requests in one slot"
            self.runs[token_of(event.request)] += 1
            self.running.append(Running(event))
        elif verdict is Verdict.REPLAY:
            kept = self.store.reply(event.slot)
            assert kept is not None
            link.down.write(link.server.frame(*kept))

    def finish(self, index: int) -> None:
        """A running request ends, and its reply is sent to whom it concerns."""
        event = self.running.pop(index).event
        header, payload = self.execute(event)
        connection = self.server.finish(event.slot, event.seq, header, payload)
        for link in self.links:
            if link.server is connection:
                link.down.write(connection.frame(header, payload))

    def cut(self, link: Link) -> None:
        """The connection dies at any byte of either direction."""
        link.up.cut(self.random.randint(0, len(link.up.data)))
        link.down.cut(self.random.randint(0, len(link.down.data)))

    # -- the scheduler

    def steps(self) -> list[Callable[[], object]]:
        """What can happen next, without new requests and without new faults."""
        random = self.random
        possible: list[Callable[[], object]] = []
        for link in self.links:
            if link.up.busy:
                possible.append(lambda link=link: self.deliver_up(link, amount(random)))  # type: ignore[misc]  # as below
            if link.down.busy:
                possible.append(lambda link=link: self.deliver_down(link, amount(random)))  # type: ignore[misc]  # a default argument binds now
            if link.in_hand:
                possible.append(lambda link=link: self.judge(link))  # type: ignore[misc]  # as above
        if self.running and (random.random() < self.pace or not possible):
            possible.append(lambda: self.finish(random.randrange(len(self.running))))
        possible.extend(client.connect for client in self.clients)
        return possible

    def chaos(self, count: int, faults: float) -> None:
        """`count` steps with requests, and with a fault in this share of them."""
        for _ in range(count):
            choice = self.random.random()
            client = self.random.choice(self.clients)
            live = [link for link in self.links if not (link.up.closed and link.down.closed)]
            if choice < faults and live:
                self.cut(self.random.choice(live))
            elif choice < faults + 0.2:
                client.ask()
            elif choice < faults + 0.22:
                client.bother()
            else:
                self.random.choice(self.steps())()
            self.links = [
                link for link in self.links if link.up.busy or link.down.busy or link.in_hand or is_open(link)
            ]

    def settle(self) -> None:
        """Lets everything come to its end, in any order, without further faults."""
        for _ in range(200_000):
            possible = self.steps()
            working = [step for step in possible if getattr(step, "__func__", None) is not Client.connect]
            if working:
                self.random.choice(working)()
            elif sum(bool(step()) for step in possible) == 0:
                return
        raise AssertionError("it does not come to an end")


def is_open(link: Link) -> bool:
    return not (link.up.closed and link.down.closed)


def amount(random: Random) -> int:
    """How many bytes arrive at once: often few, sometimes all."""
    return random.choice((1, 2, 15, 16, 17, 40, 300, 5000, 1 << 20, 1 << 20))


def token_of(request: Message) -> int:
    if isinstance(request, LookupRequest | UnlinkRequest):
        return int(request.name)
    return int(request.forgets[0] if isinstance(request, CleanupRequest) else request[0])


def move(pipe: Pipe, count: int, buffer: Callable[[], memoryview], received: Callable[[int], Any]) -> None:
    """Moves up to `count` bytes from a pipe to a receiver, as one recv_into does."""
    if pipe.data:
        target = buffer()
        count = min(count, len(pipe.data), len(target))
        target[:count] = pipe.data[:count]
        del pipe.data[:count]
        received(count)


def check_one_client(world: World) -> None:
    """After `settle`: every request ran once and had its one reply, and nobody complained."""
    (client,) = world.clients
    assert client.problems == []
    assert world.problems == []
    assert not client.stale
    assert client.session.unanswered() == []
    assert client.session.in_flight == world.server.in_flight == 0
    assert client.session.abandoned == 0
    for asked in client.asked:
        assert asked.answers == 1, asked
        if asked.op in (Op.GETATTR, Op.READ):
            assert world.runs[asked.token] >= 1
        else:
            assert world.runs[asked.token] == 1, asked


def check_clones(world: World) -> Client:
    """After `settle`, where clients were cloned: one goes on, the others are stale; the one that goes on."""
    assert world.problems == []
    alive = [client for client in world.clients if not client.stale]
    assert len(alive) == 1, f"{len(alive)} of {len(world.clients)} go on"
    (winner,) = alive
    assert winner.session.unanswered() == []
    assert winner.session.in_flight == world.server.in_flight == 0
    for client in world.clients:
        assert client.problems == []
        for asked in client.asked:
            assert asked.answers == 1 if client is winner else asked.answers <= 1, asked
            if asked.op not in (Op.GETATTR, Op.READ):
                assert world.runs[asked.token] == 1 if asked.answers else world.runs[asked.token] <= 1, asked
    return winner
