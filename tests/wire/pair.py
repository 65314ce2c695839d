"""One client and one server session in memory, whose connections deliver at once; for tests of single rules."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

from fusepipe.wire import (
    Buffer,
    ClientConnection,
    ClientSession,
    HelloRequest,
    ListServerStore,
    Message,
    ServerConnection,
    ServerLimits,
    ServerSession,
    SlotKind,
    Ticket,
    Verdict,
    client_session,
    encode_reply,
    server_session,
)

T = TypeVar("T", covariant=True)


class End(Protocol[T]):
    """What takes bytes: a connection of either side, or a FrameReceiver."""

    def buffer(self) -> memoryview: ...
    def received(self, count: int, /) -> T: ...


def pour(end: End[T], data: Buffer, amount: Callable[[], int] = lambda: 1 << 20) -> Iterator[T]:
    """Gives an end the bytes, at most `amount()` at once; what it returns each time."""
    view = memoryview(data)
    while view:
        buffer = end.buffer()
        assert len(buffer) > 0
        count = min(len(buffer), len(view), amount())
        buffer[:count] = view[:count]
        view = view[count:]
        yield end.received(count)


OFFER = HelloRequest(b"fusepipe", 1, 0, 0, (), b"v", 4, 1, 1, 2, 65536, 65536, 200_000, 255, "test")
LIMITS = ServerLimits(request_slots=4, cleanup_slots=1, lock_slots=1, connections=2)


class Tokens:
    """Random bytes that are not."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, size: int) -> bytes:
        self.count += 1
        return self.count.to_bytes(2, "big") * (size // 2)


class Pair:
    """Both ends of one session."""

    def __init__(self, offer: HelloRequest = OFFER, limits: ServerLimits = LIMITS, **options: Any) -> None:
        self.store = ListServerStore(limits.slots)
        self.client = ClientSession(offer, body_crc=options.pop("client_crc", False))
        self.server_crc = options.pop("server_crc", False)
        self.server = ServerSession(
            bytes(16), limits, self.store, token_bytes=Tokens(), read_only=False, software="server", **options
        )

    def connect(self) -> "Line":
        """A new connection, with nothing sent yet."""
        return Line(self.client.connection(), self.server.connection(body_crc=self.server_crc))

    def open(self) -> "Line":
        """A new connection, after its handshake."""
        line = self.connect()
        line.up(line.client.start())
        line.run()
        assert line.client.established
        return line

    def take(self, request: Message, payload: Buffer = b"", kind: SlotKind = SlotKind.REQUEST) -> Ticket:
        ticket = self.client.take(kind, request, payload)
        assert ticket is not None
        return ticket


class Line:
    """A connection: what each end got, in order, and what it wants to be sent."""

    def __init__(self, client: ClientConnection, server: ServerConnection) -> None:
        self.client = client
        self.server = server
        self.to_client: list[Buffer] = []
        self.to_server: list[Buffer] = []
        self.client_got: list[client_session.Event] = []
        self.server_got: list[server_session.Event] = []

    def up(self, buffers: list[Buffer]) -> list[server_session.Event]:
        """The client's bytes reach the server: the events, without the answers, which wait in `to_client`."""
        got = []
        for data in buffers:
            for _ in pour(self.server, data):
                got += self.events()
        return got

    def events(self) -> list[server_session.Event]:
        got: list[server_session.Event] = []
        while (event := self.server.next_event()) is not None:
            if isinstance(event, server_session.Answer):
                self.to_client += self.server.frame(event.header)
            else:
                got.append(event)
        self.server_got += got
        return got

    def down(self, buffers: list[Buffer]) -> list[client_session.Event]:
        """The server's bytes reach the client: the events, without what is to be sent, which waits in `to_server`."""
        got: list[client_session.Event] = []
        for data in buffers:
            for events in pour(self.client, data):
                for event in events:
                    if isinstance(event, client_session.Send):
                        self.to_server += event.buffers
                    else:
                        got.append(event)
        self.client_got += got
        return got

    def run(self) -> list[client_session.Event]:
        """Delivers what waits, both ways, until nothing does: what the client got."""
        before = len(self.client_got)
        while self.to_client or self.to_server:
            buffers, self.to_server = self.to_server, []
            self.up(buffers)
            buffers, self.to_client = self.to_client, []
            self.down(buffers)
        return self.client_got[before:]

    def arrived(self, ticket: Ticket) -> server_session.Arrived:
        """Sends a request: its event on the server."""
        (event,) = self.up(self.client.request(ticket))
        assert isinstance(event, server_session.Arrived)
        return event

    def arrive(self, ticket: Ticket) -> Verdict:
        """Sends a request and judges it."""
        return self.server.arrive(self.arrived(ticket))

    def answer(self, ticket: Ticket, reply: Message, payload: bytes = b"") -> list[client_session.Event]:
        """Answers a request that runs: what the client got."""
        header = encode_reply(ticket.slot, ticket.seq, ticket.op, reply)
        connection = self.server.session.finish(ticket.slot, ticket.seq, header, payload)
        assert connection is self.server
        return self.down(connection.frame(header, payload))
