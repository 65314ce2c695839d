"""The client's end of a session and of its connections, without any I/O.  SPEC.md, sections "Sessions" and "Slots".

All of one session is used from one thread at a time: its slots, its secrets and its connections belong together.
"""

from collections.abc import Callable
from enum import Enum, auto
from typing import Final, NamedTuple, TypeAlias

from .codec import (
    Message,
    Reply,
    encode_request,
    op_of,
    read_error,
    read_reply,
    unpack,
)
from .errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from .frames import MAX_FIRST_HEADER, MAX_HEADER, Buffer, Frame, FrameReceiver, FrameSender
from .limits import BODY_CRC, NAME_FIELDS, check_agreed, reply_size
from .messages import (
    NOTIFICATION_MIN,
    ROWS,
    AttachReply,
    AttachRequest,
    ByeRequest,
    ConfirmRequest,
    HelloReply,
    HelloRequest,
    InterruptRequest,
    Op,
    PingRequest,
    ResumeReply,
    ResumeRequest,
    Secret,
)
from .slots import KIND_OF_CHANNEL, ClientSlotStore, ListClientStore, SlotKind, SlotLayout, Ticket

# ---- events ---------------------------------------------------------------------------------------------------------


class Established(NamedTuple):
    """The connection can carry requests.

    `reply` is the answer to HELLO, None for further connections.  `resend` holds the requests that wait for a reply and
    must be sent again, with `request`, on any connection of the session: all of them after a resumption, else none.
    """

    reply: HelloReply | None
    resend: list[Ticket]


class Send(NamedTuple):
    """These buffers must be sent on this connection, before anything else."""

    buffers: list[Buffer]

    def __repr__(self) -> str:
        return f"<Send of {len(self.buffers)} buffers>"  # they may contain a secret


class Replied(NamedTuple):
    """A request has its reply, and its slot is free.  `reply` is None where `errno` is not 0."""

    ticket: Ticket
    errno: int
    reply: Message | None
    payload: memoryview


class Pong(NamedTuple):
    """PING was answered."""


class Ended(NamedTuple):
    """BYE was answered: the session is over, and the server closes every connection."""


class Refused(NamedTuple):
    """The server refused this connection; trying again without a change makes no sense.

    With the code STALE the session is over for this client.  On a connection that was to be a further one (ATTACH) the
    others go on.
    """

    code: ErrorCode
    text: str
    detail: tuple[int | str | bytes | None, ...]


class Lost(NamedTuple):
    """The connection is dead; close it and all others of the session, and go on with `ClientSession.connection`.

    `error` says what the server did wrong, where it did.
    """

    reason: str
    error: RemoteProtocolError | None


Event: TypeAlias = Established | Send | Replied | Pong | Ended | Refused | Lost


# ---- session --------------------------------------------------------------------------------------------------------


class ClientSession:
    """Slots, secrets and limits of one session, from the HELLO to the BYE."""

    def __init__(
        self,
        offer: HelloRequest,
        *,
        body_crc: bool,
        store: Callable[[SlotLayout], ClientSlotStore] = ListClientStore,
    ) -> None:
        """`offer` is what HELLO asks for; `body_crc` asks for a checksum of every frame on every connection.

        `store` makes the slots once the server has granted their number.
        """
        self.offer = offer
        self.agreed: HelloReply | None = None
        """What the server granted; None until HELLO was answered."""
        self.ended = False
        """Whether the session is over: BYE was answered, or the server said that it is stale."""
        self.epoch = 0
        """Counts the HELLO and every CONFIRM that was answered.  Connections of an earlier one are dead."""
        self._body_crc = body_crc
        self._make_store = store
        self._layout = SlotLayout(0, 0, 0)
        self._ranges = self._layout.by_channel()
        self._store: ClientSlotStore = ListClientStore(self._layout)
        self._secret: Secret | None = None
        self._newer: Secret | None = None
        self.lost = False
        """Whether a connection was lost since the HELLO or the last CONFIRM, so that the session must be resumed."""
        self._opening: ClientConnection | None = None

    @property
    def in_flight(self) -> int:
        """Bytes of the unanswered requests and of the replies that they may bring."""
        return self._store.in_flight

    @property
    def abandoned(self) -> int:
        """How many request slots are abandoned."""
        return self._store.abandoned

    def share(self, store: Callable[[SlotLayout, ClientSlotStore], ClientSlotStore]) -> None:
        """Goes on with another store, made of the layout and the present one; to be called before the first request."""
        self._store = store(self._layout, self._store)

    def waiting(self, requests: int) -> None:
        """So many requests wait for a slot that `take` did not give: others that share the slots leave some to them."""
        self._store.waiting(requests)

    def supports(self, feature: str) -> bool:
        """Whether the server agreed to a feature of the session."""
        return self.agreed is not None and feature in self.agreed.features

    def connection(self) -> "ClientConnection":
        """A new connection with the right opening: HELLO at first, ATTACH for further ones, RESUME after a loss.

        Raises LocalProtocolError once the session is over, and while another HELLO or RESUME is not answered.
        """
        if self.ended:
            raise LocalProtocolError("the session is over")
        if self.agreed is not None and not self.lost:
            return ClientConnection(self, Op.ATTACH)
        if self._opening is not None:
            raise LocalProtocolError("a connection that opens the session is under way already")
        self._opening = ClientConnection(self, Op.HELLO if self.agreed is None else Op.RESUME)
        return self._opening

    def has_free(self, kind: SlotKind) -> bool:
        """Whether a slot of this kind carries no request."""
        return self._store.has_free(self._layout.range(kind))

    def take(self, kind: SlotKind, request: Message, payload: Buffer = b"") -> Ticket | None:
        """A slot for a request, which may then be sent on any connection.

        None where no slot of that kind is free, or where too many bytes are in flight: wait for a reply.
        Raises LocalProtocolError for a request that is not allowed at all: fields that do not fit, a payload, size or
        name beyond the agreed limits.
        """
        if self.agreed is None:
            raise LocalProtocolError("there is no session yet")
        op = op_of(request)
        row = ROWS[op]
        if KIND_OF_CHANNEL.get(row.channel) is not kind:
            raise LocalProtocolError(f"{op.name} does not take a {kind.value} slot")
        size = reply_size(row, request)
        self._check(op, request, len(payload), size)
        slot = self._store.take(self._ranges[row.channel])
        if slot is None:
            return None
        try:
            seq = self._store.seq(slot) + 1
            ticket = Ticket(slot, seq, op, request, encode_request(slot, seq, request), payload, size)
        except BaseException:
            self._store.give_back(slot)
            raise
        if not self._store.reserve(ticket.in_flight, self.agreed.max_in_flight):
            self._store.give_back(slot)
            return None
        self._store.put(ticket)
        return ticket

    def _check(self, op: Op, request: Message, payload: int, size: int) -> None:
        agreed = self.agreed
        assert agreed is not None
        if payload and (ROWS[op].payload != "request" or payload > agreed.max_write):
            raise LocalProtocolError(f"{op.name} with a payload of {payload} bytes")
        if size > agreed.max_read:
            raise LocalProtocolError(f"{op.name} of {size} bytes, where at most {agreed.max_read} are agreed")
        for index in NAME_FIELDS[op]:
            if len(request[index]) > agreed.max_name:
                raise LocalProtocolError(f"{op.name} with a name of {len(request[index])} bytes")

    def unanswered(self) -> list[Ticket]:
        """The requests that wait for a reply, in slot order."""
        tickets = (self._store.ticket(slot) for slot in range(len(self._store)))
        return [ticket for ticket in tickets if ticket is not None]

    def abandon(self, ticket: Ticket, *, all_may_be: bool = False) -> bool:
        """Notes that nobody waits for this reply any more; its slot stays taken until the reply comes.

        False, and nothing changes, where half of the request slots are abandoned already; with `all_may_be` that is no
        reason, as where there is no connection over which others could be used.
        """
        if self._store.ticket(ticket.slot) is not ticket:
            raise LocalProtocolError(f"{ticket!r} has its reply")
        if ticket.abandoned:
            return True
        most = self._layout.request if all_may_be else self._layout.request // 2
        if ticket.slot in self._ranges["slot"] and not self._store.abandon(most):
            return False
        ticket.abandoned = True
        return True

    # -- for ClientConnection

    def _features(self) -> tuple[str, ...]:
        return (BODY_CRC,) if self._body_crc else ()

    def _first_request(self, op: Op) -> Message:
        if op is Op.HELLO:
            others = tuple(name for name in self.offer.features if name != BODY_CRC)
            return self.offer._replace(features=others + self._features())
        assert self.agreed is not None
        assert self._secret is not None
        if op is Op.ATTACH:
            return AttachRequest(self.agreed.session, self._secret, self._features())
        # A request that was never sent must not count: where a copy of this client has sent another one with the same
        # seq, the server would answer ours with that one's reply.
        seqs = tuple(self._store.last_sent(slot) for slot in range(len(self._store)))
        return ResumeRequest(self.agreed.session, self._newer or self._secret, seqs, self._features())

    def _hello_answered(self, reply: HelloReply) -> None:
        check_agreed(self.offer, reply)
        self.agreed = reply
        self._secret = reply.secret
        self._layout = SlotLayout(reply.request_slots, reply.cleanup_slots, reply.lock_slots)
        self._ranges = self._layout.by_channel()
        self._store = self._make_store(self._layout)
        self.epoch += 1
        self._opening = None

    def _resume_answered(self, used: Secret, reply: ResumeReply) -> None:
        # The server has accepted `used`, so whatever is older is void.
        self._secret, self._newer = used, reply.secret

    def _confirm_answered(self) -> None:
        self._secret, self._newer = self._newer, None
        self.lost = False
        self.epoch += 1
        self._opening = None

    def _secret_refused(self, used: Secret) -> bool:
        """A secret turned out to be void; whether there is no other left to try."""
        if used == self._newer:
            self._newer = None
            return False
        self.ended = True
        return True

    def _connection_lost(self, connection: "ClientConnection") -> None:
        if self._opening is connection:
            self._opening = None
        elif connection.epoch == self.epoch:
            self.lost = True

    def _replied(self, values: list[object], payload: memoryview) -> Replied | None:
        slot, seq = values[0], values[1]
        assert type(slot) is int
        if slot >= len(self._store) or type(seq) is not int or seq > self._store.seq(slot):
            raise RemoteProtocolError(f"a reply to a request that was never sent: slot {slot}, seq {seq}")
        ticket = self._store.ticket(slot)
        if ticket is None or ticket.seq != seq:
            return None
        reply = read_reply(ticket.op, values)
        if len(payload) > (0 if reply.errno else ticket.reply_size):
            raise RemoteProtocolError(f"the reply to {ticket.op.name} has a payload of {len(payload)} bytes")
        self._store.clear(slot)
        if ticket.abandoned and slot in self._ranges["slot"]:
            self._store.abandoned_came()
        return Replied(ticket, reply.errno, reply.message, payload)


# ---- connection -----------------------------------------------------------------------------------------------------


class _State(Enum):
    NEW = auto()
    OPENING = auto()
    CONFIRMING = auto()
    OPEN = auto()
    DEAD = auto()


# Python 3.11 calls a function for each look-up of an enum's member, and these are looked up for every reply.
_OPEN: Final = _State.OPEN
_DEAD: Final = _State.DEAD

_NO_PAYLOAD: Final = "an answer outside the slots has a payload"


class HandedOver(NamedTuple):
    """Where a connection has got to: the numbers of the next frames, and whether each frame has a checksum."""

    sent: int
    received: int
    body_crc: bool


class ClientConnection:
    """One connection of a session: `start`, then `buffer` and `received` for what comes, until it is lost."""

    def __init__(self, session: ClientSession, opening: Op) -> None:
        self.session = session
        self.opening = opening
        """HELLO, ATTACH or RESUME."""
        self.epoch = session.epoch
        self._state = _State.NEW
        self._sender = FrameSender()
        # Until the limits are known only the answer to the first frame may come, which has no payload.
        self._receiver = FrameReceiver(MAX_FIRST_HEADER, 0)
        self._counter = 0
        self._asked: dict[int, Op] = {}
        self._used: Secret | None = None

    @property
    def established(self) -> bool:
        """Whether the connection carries requests: it is open, and its session has lost none since it was opened."""
        return self._state is _OPEN and self.epoch == self.session.epoch and not self.session.lost

    @property
    def dead(self) -> bool:
        """Whether the connection was lost or refused."""
        return self._state is _DEAD

    def hand_over(self) -> HandedOver:
        """What somebody needs to know who goes on with the connection in the place of this, which is done with.

        To be called once it is established, while nothing else has been sent or received on it.
        """
        self._need_established()
        if self._receiver.within_frame or self._asked:
            raise LocalProtocolError("the connection is in use")
        self._state = _State.DEAD
        return HandedOver(self._sender.number, self._receiver.number, self._sender.body_crc)

    # -- sending: what each call returns must be sent whole, before the next call's

    def start(self) -> list[Buffer]:
        """The first frame.  To be called once, before anything else."""
        if self._state is not _State.NEW:
            raise LocalProtocolError("the connection has been started")
        if self.opening is Op.ATTACH and (self.session.lost or self.epoch != self.session.epoch):
            raise LocalProtocolError("a connection of the session was lost: this one cannot be attached any more")
        request = self.session._first_request(self.opening)
        if isinstance(request, AttachRequest | ResumeRequest):
            self._used = request.secret
        self._state = _State.OPENING
        return self._control(request)

    def request(self, ticket: Ticket) -> list[Buffer]:
        """A request that has a slot, or, after a resumption, the same request again."""
        self._need_established()
        ticket.sent = True
        return self._sender.frame(ticket.header, ticket.payload)

    def interrupt(self, slot: int, seq: int) -> list[Buffer]:
        """Asks the server to end a request early; its reply comes all the same."""
        self._need_established()
        return self._control(InterruptRequest(slot, seq))

    def ping(self) -> list[Buffer]:
        """Asks for a Pong."""
        self._need_established()
        return self._control(PingRequest())

    def bye(self) -> list[Buffer]:
        """Ends the session; Ended says that the server knows."""
        self._need_established()
        return self._control(ByeRequest())

    def _need_established(self) -> None:
        if not self.established:
            raise LocalProtocolError("the connection is not established")

    def _control(self, request: Message) -> list[Buffer]:
        self._counter += 1
        self._asked[self._counter] = op_of(request)
        return self._sender.frame(encode_request(None, self._counter, request))

    # -- receiving

    def buffer(self) -> memoryview:
        """Where to put the bytes that arrive next; never empty."""
        return self._receiver.buffer()

    def received(self, count: int) -> list[Event]:
        """`count` bytes were put into `buffer()`; 0 means that the stream has ended.  What that brings, in order.

        Nothing that the server sends raises an exception; bytes that break the protocol end in Lost.
        """
        events: list[Event] = []
        if self._state is _DEAD:
            return events
        try:
            self._receiver.received(count)
            if count == 0:
                self.lost()
                return [Lost("the server closed the connection", None)]
            while (frame := self._receiver.next()) is not None:
                self._handle(frame, events)
                if self.dead:
                    break
        except RemoteProtocolError as error:
            self.lost()
            events.append(Lost(error.text, error))
        return events

    def lost(self) -> None:
        """The connection is dead: an error of the socket, a PING without answer, a reason of the caller's."""
        if self._state not in (_State.NEW, _State.DEAD) or self.session._opening is self:
            self.session._connection_lost(self)
        self._state = _State.DEAD

    def _handle(self, frame: Frame, events: list[Event]) -> None:
        values = unpack(frame.header)
        slot, seq, third = values[:3]
        if slot is not None:
            if self._state is not _OPEN:
                raise RemoteProtocolError("a reply came before the connection was established")
            # On a connection from before the last resumption a reply is late: the request was sent again.
            if self.epoch == self.session.epoch:
                replied = self.session._replied(values, frame.payload)
                if replied is not None:
                    events.append(replied)
            return
        if frame.payload:
            raise RemoteProtocolError(_NO_PAYLOAD)
        if seq is None:
            self._refused(values, events)
        elif third >= NOTIFICATION_MIN:
            raise RemoteProtocolError(f"a notification of the unknown kind {third}")
        else:
            self._answered(seq, values, events)

    def _refused(self, values: list[object], events: list[Event]) -> None:
        error = read_error(values)
        refused = Refused(*error)
        opening = self._state in (_State.OPENING, _State.CONFIRMING)
        if opening and self.opening is Op.ATTACH and error.code is not ErrorCode.STALE:
            # Nothing was on this connection, and the others go on.
            self._state = _State.DEAD
            events.append(refused)
            return
        self.lost()
        if opening and self.opening is not Op.ATTACH and self._is_final(error.code):
            events.append(refused)
        else:
            events.append(Lost(f"the server closed the connection: {error.text}", None))

    def _is_final(self, code: ErrorCode) -> bool:
        """Whether the refusal of a HELLO or RESUME leaves nothing to be tried."""
        if code is not ErrorCode.STALE or self._used is None:
            return True
        return self.session._secret_refused(self._used)

    def _answered(self, counter: int, values: list[object], events: list[Event]) -> None:
        op = self._asked.pop(counter, None)
        if op is None:
            raise RemoteProtocolError(f"an answer to {counter}, which was not asked or is answered already")
        reply: Reply = read_reply(op, values)
        message = reply.message
        if message is None:
            raise RemoteProtocolError(f"{op.name} was answered with the errno {reply.errno}")
        if isinstance(message, HelloReply):
            self.session._hello_answered(message)
            self._open(message.features)
            events.append(Established(message, []))
        elif isinstance(message, AttachReply):
            if self.epoch != self.session.epoch:
                raise RemoteProtocolError("the session has been resumed since this connection was attached")
            self._open(message.features)
            events.append(Established(None, []))
        elif isinstance(message, ResumeReply):
            assert self._used is not None
            self.session._resume_answered(self._used, message)
            self._negotiated(message.features)
            self._used = message.secret
            self._state = _State.CONFIRMING
            events.append(Send(self._control(ConfirmRequest(message.secret))))
        elif op is Op.CONFIRM:
            self.session._confirm_answered()
            self._open(None)
            events.append(Established(None, self.session.unanswered()))
        elif op is Op.BYE:
            self.session.ended = True
            events.append(Ended())
        elif op is Op.PING:
            events.append(Pong())

    def _negotiated(self, features: object) -> None:
        assert isinstance(features, tuple)
        self._sender.body_crc = self._receiver.body_crc = BODY_CRC in features
        agreed = self.session.agreed
        assert agreed is not None
        self._receiver.max_header = MAX_HEADER
        self._receiver.max_payload = agreed.max_read

    def _open(self, features: object) -> None:
        if features is not None:
            self._negotiated(features)
        self.epoch = self.session.epoch
        self._state = _State.OPEN
