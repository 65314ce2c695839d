"""The server's end of a session and of its connections, without any I/O.  SPEC.md, sections "Sessions" and "Slots".

Threads: each connection has a receive lock and a send lock, each slot a lock; they are the caller's.

  receive lock: `buffer`, `received`, `next_event`, `feed`, `fail`
  send lock:    `frame`, until its buffers are handed to the socket
  slot lock:    `arrive` and `finish` of that slot, and every call of the store for it
What belongs to the whole session is guarded by locks of its own, in here.

Lock order: receive lock, the session's lock, slot locks in ascending order, the session's counters, send lock.  So a
thread that holds a slot lock calls neither `next_event`, `fail` nor `lost`, and takes no other slot's lock.
"""

import hmac
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from enum import Enum, auto
from threading import Lock
from typing import Final, NamedTuple, Protocol, TypeAlias

from .codec import (
    ID_SIZE,
    SECRET_SIZE,
    Message,
    Request,
    decode_reply,
    decode_request,
    encode_error,
    encode_reply,
    unpack,
)
from .errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from .frames import (
    MAX_FIRST_HEADER,
    MAX_HEADER,
    PREFIX,
    Buffer,
    Frame,
    FrameReceiver,
    FrameSender,
    FrameSink,
    FrameSource,
    read_prefix,
)
from .limits import (
    BODY_CRC,
    MAGIC,
    MINOR_MIN,
    NAME_FIELDS,
    SERVER_FEATURES,
    ServerLimits,
    grant,
    reply_size,
    version_refused,
)
from .messages import (
    MAJOR,
    MINOR,
    ROWS,
    AttachReply,
    AttachRequest,
    ByeReply,
    ConfirmReply,
    ConfirmRequest,
    HelloReply,
    HelloRequest,
    InterruptReply,
    InterruptRequest,
    Op,
    PingReply,
    ResumeReply,
    ResumeRequest,
    Secret,
)
from .slots import BEGINS, ServerSlotStore, SlotLayout, SlotState, Verdict, finish, judge

MAX_WAITING: Final = 16
"""How many connections may wait for their CONFIRM; one more takes the place of the oldest."""

Opening: TypeAlias = HelloRequest | AttachRequest | ResumeRequest

# ---- the first frame ------------------------------------------------------------------------------------------------


def first_frame_size(prefix: Buffer) -> int:
    """How many bytes of the first frame follow its 16 bytes of prefix.  Raises RemoteProtocolError.

    So a listener can read exactly the first frame and hand the connection on.
    """
    header_len, payload_len = read_prefix(prefix, 0, MAX_FIRST_HEADER, 0)
    return header_len + payload_len + 4


def opening(frame: Buffer) -> Opening:
    """The message of a whole first frame, prefix included.  Raises RemoteProtocolError, also for another version."""
    if len(frame) < PREFIX.size or len(frame) != PREFIX.size + first_frame_size(frame[: PREFIX.size]):
        raise RemoteProtocolError("this is not exactly one frame")
    receiver = FrameReceiver(MAX_FIRST_HEADER, 0)
    _feed(receiver, frame)
    received = receiver.next()
    if received is None:
        raise RemoteProtocolError("the first frame is not whole")
    return _read_opening(received.header).message  # type: ignore[return-value]  # checked there by its op


def refusal(code: ErrorCode, text: str, *detail: int | str | bytes | None) -> bytes:
    """The bytes of an error frame as the first and only frame that a connection gets."""
    return b"".join(FrameSender().frame(encode_error(code, text, *detail)))


def _feed(receiver: FrameSource, data: Buffer) -> None:
    view = memoryview(data)
    while view:
        buffer = receiver.buffer()
        count = min(len(buffer), len(view))
        buffer[:count] = view[:count]
        receiver.received(count)
        view = view[count:]
        if view:
            # The rest may belong into memory that the receiver makes once it knows the lengths.
            raise LocalProtocolError("more bytes than the receiver's buffer holds")


def _read_opening(header: bytes) -> Request:
    """The opening request of a header.  A HELLO of another major version is known by its first fields alone."""
    values = unpack(header)
    if values[2] == Op.HELLO and values[0] is None:
        _check_version(values[3:])
    request = decode_request(header)
    if request.op not in (Op.HELLO, Op.ATTACH, Op.RESUME):
        raise RemoteProtocolError(f"a connection cannot begin with {request.op.name}")
    if request.seq != 1:
        raise RemoteProtocolError(f"the first message of a connection has the seq {request.seq}")
    return request


def _check_version(fields: list[object]) -> None:
    """Magic and versions stand at the beginning of HELLO in every version of the protocol."""
    if len(fields) < 4 or fields[0] != MAGIC:
        raise RemoteProtocolError("this is not a fusepipe client: the magic is missing")
    major, low, high = fields[1:4]
    if type(major) is int and type(low) is int and type(high) is int and major != MAJOR:
        raise version_refused(
            f"the client speaks version {major}.{low} to {major}.{high}, "
            f"this server {MAJOR}.{MINOR_MIN} to {MAJOR}.{MINOR}"
        )


# ---- events ---------------------------------------------------------------------------------------------------------


class Opened(NamedTuple):
    """HELLO, ATTACH, RESUME or CONFIRM was accepted.  Answer its `Answer` event, then close the `superseded`."""

    op: Op
    superseded: "tuple[ServerConnection, ...]"


class Arrived(NamedTuple):
    """A request: under its slot's lock, `ServerConnection.arrive` says what to do with it."""

    slot: int
    seq: int
    op: Op
    request: Message
    payload: memoryview
    received_bytes: int
    in_flight: int
    """The received bytes and those of the payload that the reply may have."""


class Interrupted(NamedTuple):
    """The request with this slot and seq is to end early.

    Compare the seq under the slot's lock: the request may be over, or not have arrived yet (then remember it).
    """

    slot: int
    seq: int


class Answer(NamedTuple):
    """Send this header in a frame (`ServerConnection.frame`), before the next event is taken."""

    header: bytes

    def __repr__(self) -> str:
        return f"<Answer of {len(self.header)} bytes>"  # it may contain a secret


class ByeReceived(NamedTuple):
    """The client has ended the session.  Send the Answer, then close everything."""


class Close(NamedTuple):
    """The last event: close this connection.  `error` says what the client did wrong, where it did."""

    reason: str
    error: RemoteProtocolError | None


Event: TypeAlias = Opened | Arrived | Interrupted | Answer | ByeReceived | Close


# ---- traffic --------------------------------------------------------------------------------------------------------


class Traffic(Protocol):
    """What runs at this moment, per slot: its bytes in flight and where its reply goes.

    Every call that names a slot is made under that slot's lock.
    """

    @property
    def in_flight(self) -> int:
        """Bytes of all requests that run and of the replies that they may bring."""

    def charge(self, slot: int, size: int, limit: int) -> bool:
        """Counts the bytes of a request that is about to run; False where there would be more than `limit`."""

    def discharge(self, slot: int) -> None:
        """The slot's request has run."""

    def set_route(self, slot: int, connection: "ServerConnection") -> None:
        """The reply goes to this connection."""

    def route(self, slot: int) -> "ServerConnection | None":
        """Where the reply goes; None where that connection is gone."""


class ListTraffic:
    """A Traffic in Python lists."""

    def __init__(self, slots: int) -> None:
        self.in_flight = 0
        self._charges = [0] * slots
        self._routes: list[ServerConnection | None] = [None] * slots
        self._lock = Lock()  # guards the sum; a leaf

    def charge(self, slot: int, size: int, limit: int) -> bool:
        with self._lock:
            if self.in_flight and self.in_flight + size > limit:
                return False
            self.in_flight += size
        self._charges[slot] = size
        return True

    def discharge(self, slot: int) -> None:
        with self._lock:
            self.in_flight -= self._charges[slot]
        self._charges[slot] = 0

    def set_route(self, slot: int, connection: "ServerConnection") -> None:
        self._routes[slot] = connection

    def route(self, slot: int) -> "ServerConnection | None":
        return self._routes[slot]


# ---- memory ---------------------------------------------------------------------------------------------------------


class Remembered(NamedTuple):
    """What a SessionMemory was told: the answer to HELLO without the secret, and so on."""

    opening: bytes
    secret: Secret
    known: bool
    ended: bool

    def __repr__(self) -> str:
        return "<Remembered>"  # it contains a secret


class SessionMemory(Protocol):
    """Where a session's state is kept for a process that may come after this one; called under the session's lock.

    What a call was given is kept when it returns: only then is the client told of it.
    """

    def opened(self, opening: bytes, secret: bytes) -> None:
        """HELLO is about to be answered."""

    def confirmed(self, secret: bytes) -> None:
        """The session has another secret."""

    def known(self) -> None:
        """The client has shown that it knows the session."""

    def ended(self) -> None:
        """BYE has come."""


# ---- session --------------------------------------------------------------------------------------------------------


class ServerSession:
    """What a session's connections share: secrets, limits, slots."""

    def __init__(
        self,
        session_id: bytes,
        limits: ServerLimits,
        store: ServerSlotStore,
        *,
        token_bytes: Callable[[int], bytes],
        read_only: bool,
        software: str = "",
        slot_locks: Sequence[AbstractContextManager[object]] = (),
        traffic: "Traffic | None" = None,
        memory: SessionMemory | None = None,
        remembered: Remembered | None = None,
    ) -> None:
        """`store` has at least as many slots as `limits` grant; `token_bytes` gives random bytes (secrets.token_bytes).

        `slot_locks` are the locks of the slots, in order; without them the session is for one thread.  `traffic` is
        where native code sees it, too; None: only here.  `memory` is told what another process would need to go on,
        which gets it as `remembered`.
        """
        if len(session_id) != ID_SIZE:
            raise LocalProtocolError(f"a session's id has {ID_SIZE} bytes")
        if limits.slots > len(store):
            raise LocalProtocolError(f"{limits.slots} slots granted at most, and the store has {len(store)}")
        if slot_locks and len(slot_locks) != len(store):
            raise LocalProtocolError(f"{len(slot_locks)} locks for {len(store)} slots")
        self.session_id = session_id
        self.limits = limits
        self.store = store
        self.agreed: HelloReply | None = None
        """What HELLO granted."""
        self.ended = False
        """Whether BYE has arrived."""
        self._known = False
        self.layout = SlotLayout(0, 0, 0)
        self.traffic: Final = traffic or ListTraffic(len(store))
        self._token_bytes = token_bytes
        self._read_only = read_only
        self._software = software
        self._slot_locks = slot_locks
        self._ranges = self.layout.by_channel()
        self._lock: Final = Lock()
        self._secret: Secret | None = None
        self._connections: list[ServerConnection] = []
        self._memory = memory
        if remembered is not None:
            self._remember(remembered)

    def _remember(self, remembered: Remembered) -> None:
        reply = decode_reply(Op.HELLO, remembered.opening).message
        assert isinstance(reply, HelloReply)
        self._secret = remembered.secret
        self._known, self.ended = remembered.known, remembered.ended
        self._agree(reply._replace(secret=remembered.secret))

    def _agree(self, reply: HelloReply) -> None:
        self.agreed = reply
        self.layout = SlotLayout(reply.request_slots, reply.cleanup_slots, reply.lock_slots)
        self._ranges = self.layout.by_channel()

    @property
    def in_flight(self) -> int:
        """Bytes of the requests that run and of the replies that they may bring."""
        return self.traffic.in_flight

    @property
    def known(self) -> bool:
        """Whether the client has shown that it knows the session: the answer to its HELLO may have been lost.

        To be called with no slot's lock held.
        """
        with self._lock:
            if not self._known and self.agreed is not None:
                with self._all_slots():
                    known = any(self.store.load(slot).seq for slot in range(self.layout.total))
                if known:
                    self._note_known()
            return self._known

    def connection(
        self,
        *,
        body_crc: bool,
        source: FrameSource | None = None,
        sink: FrameSink | None = None,
        on_current: Callable[[bool], None] | None = None,
    ) -> "ServerConnection":
        """A connection that was accepted; `body_crc` asks for a checksum of every frame.

        `source` and `sink` are where frames come from and go to when that is not in here; `on_current` is told each
        time when `current` changes, under whatever lock guards that.
        """
        return ServerConnection(
            self,
            body_crc=body_crc,
            source=source or FrameReceiver(MAX_FIRST_HEADER, 0),
            sink=sink or FrameSender(),
            on_current=on_current,
        )

    def _is_known(self) -> None:
        with self._lock:
            self._note_known()

    def _note_known(self) -> None:
        """Under the session's lock."""
        if not self._known:
            self._known = True
            if self._memory is not None:
                self._memory.known()

    def open_connections(self) -> "tuple[ServerConnection, ...]":
        """The connections that were opened and are not closed, those that wait for CONFIRM included."""
        with self._lock:
            return tuple(self._connections)

    def supports(self, feature: str) -> bool:
        """Whether a feature of the session was agreed."""
        return self.agreed is not None and feature in self.agreed.features

    def finish(self, slot: int, seq: int, header: bytes, payload: Buffer = b"") -> "ServerConnection | None":
        """A request has run, and this is its reply.  To be called under the slot's lock.

        The connection to send the reply on (release the slot's lock, take the send lock, `frame`); None where nobody
        waits for it now: it is dropped, or kept until the client asks again.
        """
        if not finish(self.store, slot, seq, header, payload):
            return None
        self.traffic.discharge(slot)
        route = self.traffic.route(slot)
        return route if route is not None and route.current else None

    def undo(self, slot: int, seq: int) -> None:
        """A request that began has had no effect and is not answered: it is to come again.  Under the slot's lock."""
        record = self.store.load(slot)
        if record.seq == seq and record.state == SlotState.RUNNING:
            self.store.undone(slot)
            self.traffic.discharge(slot)

    @property
    def busy(self) -> bool:
        """Whether a request runs.  To be called with no slot's lock held."""
        with self._all_slots():
            return any(self.store.load(slot).state == SlotState.RUNNING for slot in range(self.layout.total))

    # -- for ServerConnection

    def _charge(self, slot: int, size: int) -> None:
        """Counts a request that is about to run.  Raises RemoteProtocolError where too much is in flight."""
        assert self.agreed is not None
        if not self.traffic.charge(slot, size, self.agreed.max_in_flight):
            raise RemoteProtocolError(
                f"{self.in_flight + size} bytes in flight, where {self.agreed.max_in_flight} are agreed",
                ErrorCode.LIMIT,
            )

    def _open(self, connection: "ServerConnection", request: Opening) -> tuple[Message, "tuple[ServerConnection, ...]"]:
        """Accepts an opening: its reply, and the connections that it supersedes.  Raises RemoteProtocolError."""
        with self._lock:
            if self.ended:
                raise _stale("the session has ended")
            if isinstance(request, HelloRequest):
                return self._hello(connection, request), ()
            if self.agreed is None or request.session != self.session_id:
                raise _stale("the server does not know this session")
            if isinstance(request, AttachRequest):
                return self._attach(connection, request), ()
            return self._resume(connection, request)

    def _hello(self, connection: "ServerConnection", offer: HelloRequest) -> HelloReply:
        if self.agreed is not None:
            raise RemoteProtocolError("the session has been opened already")
        granted = grant(offer, self.limits)
        features = tuple(name for name in offer.features if name in SERVER_FEATURES)
        self._secret = Secret(self._token_bytes(SECRET_SIZE))
        reply = HelloReply(
            major=MAJOR,
            features=features + connection._connection_features(offer.features),
            session=self.session_id,
            secret=self._secret,
            read_only=self._read_only,
            software=self._software,
            **granted,
        )
        self._agree(reply)
        if self._memory is not None:
            opening = encode_reply(None, 1, Op.HELLO, reply._replace(secret=Secret(bytes(SECRET_SIZE))))
            self._memory.opened(opening, self._secret)
        connection._set_current(True)
        self._connections.append(connection)
        return reply

    def _attach(self, connection: "ServerConnection", request: AttachRequest) -> AttachReply:
        assert self.agreed is not None
        current = [other for other in self._connections if other.current]
        if not current or not self._is_secret(request.secret):
            raise _stale("the session goes on elsewhere, or has to be resumed")
        if len(current) >= self.agreed.connections:
            raise RemoteProtocolError(f"{self.agreed.connections} connections are agreed", ErrorCode.LIMIT)
        self._note_known()
        connection._set_current(True)
        self._connections.append(connection)
        return AttachReply(connection._connection_features(request.features))

    def _resume(
        self, connection: "ServerConnection", request: ResumeRequest
    ) -> tuple[ResumeReply, "tuple[ServerConnection, ...]"]:
        if len(request.seqs) != self.layout.total:
            raise RemoteProtocolError(f"{len(request.seqs)} seqs for {self.layout.total} slots")
        pending = any(_same(other.pending, request.secret) for other in self._connections)
        if not pending and not self._is_secret(request.secret):
            raise _stale("the session goes on elsewhere")
        self._note_known()
        connection.seqs = request.seqs
        superseded: list[ServerConnection] = []
        with self._all_slots():
            self._check_seqs(request.seqs)
            if pending:
                # Its client got this secret and was cut off before CONFIRM was answered: this confirms it.
                self._confirmed(Secret(request.secret))
                superseded += self._supersede(connection)
        waiting = [other for other in self._connections if other.pending is not None]
        if len(waiting) >= MAX_WAITING:
            waiting[0]._superseded()
            self._connections.remove(waiting[0])
            superseded.append(waiting[0])
        connection.pending = Secret(self._token_bytes(SECRET_SIZE))
        self._connections.append(connection)
        return ResumeReply(connection.pending, connection._connection_features(request.features)), tuple(superseded)

    def _confirm(self, connection: "ServerConnection", secret: bytes) -> "tuple[ServerConnection, ...]":
        """Makes a connection's new secret the session's only one.  Raises RemoteProtocolError."""
        with self._lock:
            if self.ended:
                raise _stale("the session has ended")
            if connection.pending is None:
                raise _stale("the session goes on elsewhere")
            if not _same(connection.pending, secret):
                raise RemoteProtocolError("CONFIRM with another secret than the one of the RESUME reply")
            with self._all_slots():
                # A copy that was slower than its original may have fallen behind since its RESUME.
                self._check_seqs(connection.seqs)
                superseded = self._supersede(connection)
                self._confirmed(connection.pending)
                connection.pending = None
                connection._set_current(True)
            self._connections.append(connection)
            return superseded

    def _bye(self, connection: "ServerConnection") -> None:
        with self._lock:
            if not connection.current:
                raise _stale("the session goes on elsewhere")
            self.ended = True
            if self._memory is not None:
                self._memory.ended()
            with self._all_slots():
                self._supersede(connection)
                connection._set_current(False)

    def _confirmed(self, secret: Secret) -> None:
        self._secret = secret
        if self._memory is not None:
            self._memory.confirmed(secret)

    def _supersede(self, connection: "ServerConnection") -> "tuple[ServerConnection, ...]":
        """Ends every connection of the session but this one, which is not in the list afterwards either."""
        others = tuple(other for other in self._connections if other is not connection)
        for other in others:
            other._superseded()
        self._connections.clear()
        return others

    def _closed(self, connection: "ServerConnection") -> None:
        with self._lock:
            connection._superseded()
            if connection in self._connections:
                self._connections.remove(connection)

    def _all_slots(self) -> ExitStack:
        """Holds every slot's lock, so that no request is being judged meanwhile."""
        with ExitStack() as stack:
            for lock in self._slot_locks:
                stack.enter_context(lock)
            return stack.pop_all()

    def _check_seqs(self, seqs: Sequence[int]) -> None:
        for slot, seq in enumerate(seqs):
            last = self.store.load(slot).seq
            if seq < last:
                raise _stale(f"slot {slot} is at {last} and the client at {seq}: it is a copy from the past")
            if seq > last + 1:
                raise RemoteProtocolError(f"slot {slot} is at {last} and the client at {seq}")

    def _is_secret(self, secret: bytes) -> bool:
        return _same(self._secret, secret)


def _same(known: Secret | None, secret: bytes) -> bool:
    return known is not None and hmac.compare_digest(known, secret)


def _stale(text: str) -> RemoteProtocolError:
    return RemoteProtocolError(text, ErrorCode.STALE)


# ---- connection -----------------------------------------------------------------------------------------------------


class _State(Enum):
    NEW = auto()
    RESUMED = auto()
    OPEN = auto()
    CLOSED = auto()


# Python 3.11 calls a function for each look-up of an enum's member, and these are looked up for every request.
_NEW: Final = _State.NEW
_OPEN: Final = _State.OPEN
_CLOSED: Final = _State.CLOSED


class ServerConnection:
    """One connection: `buffer` and `received` for what comes, then `next_event` until it returns None."""

    def __init__(
        self,
        session: ServerSession,
        *,
        body_crc: bool,
        source: FrameSource,
        sink: FrameSink,
        on_current: Callable[[bool], None] | None,
    ) -> None:
        self.session = session
        self.current = False
        """Whether requests on it count: it is open, and nobody has resumed the session elsewhere."""
        self.opened = False
        """Whether requests on it ever counted."""
        self.pending: Secret | None = None
        """The secret that waits for CONFIRM on this connection.  Guarded by the session's lock."""
        self.seqs: Sequence[int] = ()
        """The seqs of its RESUME.  Guarded by the session's lock."""
        self._body_crc = body_crc
        self._state = _State.NEW
        self._sender = sink
        self._receiver = source
        self._on_current = on_current
        self._events: deque[Event] = deque()
        self._counter = 1
        self._ended = False

    # -- receiving

    def buffer(self) -> memoryview:
        """Where to put the bytes that arrive next; never empty.  Under the receive lock."""
        return self._receiver.buffer()

    def received(self, count: int) -> None:
        """`count` bytes were put into `buffer()`; 0 means that the stream has ended.  Under the receive lock."""
        if count:
            self._receiver.received(count)
        else:
            self._ended = True

    def feed(self, data: Buffer) -> None:
        """Takes bytes that were read elsewhere, such as the first frame.  Under the receive lock; at most 64 KiB."""
        _feed(self._receiver, data)

    def next_event(self) -> Event | None:
        """What has arrived next; None: receive more.  Under the receive lock.

        Nothing that the client sends raises an exception; bytes that break the protocol end in an Answer with an error
        frame, and Close.
        """
        if self._events:
            return self._events.popleft()
        if self._state is _CLOSED:
            return None
        if self._state is _OPEN and not self.current:
            self.lost()
            ended = self.session.ended
            return Close("the session has ended" if ended else "the session goes on with newer connections", None)
        try:
            frame = self._receiver.next()
            if frame is not None:
                return self._handle(frame)
            if self._ended:
                self._receiver.received(0)
                self.lost()
                return Close("the client closed the connection", None)
            return None
        except RemoteProtocolError as error:
            self._events.extend(self.fail(error))
            return self._events.popleft()

    def fail(self, error: RemoteProtocolError) -> tuple[Answer, Close]:
        """The client broke the protocol: what to do about it.  Under the receive lock, or when nobody receives."""
        self.lost()
        return Answer(encode_error(error.code, error.text, *error.detail)), Close(error.text, error)

    def lost(self) -> None:
        """The connection is dead.  What still runs for it is finished, and its replies are kept as for any other."""
        self._state = _State.CLOSED
        self.session._closed(self)

    def arrive(self, event: Arrived) -> Verdict:
        """What to do with a request; where it is RUN, it counts as running from now.  Under the slot's lock.

        Raises RemoteProtocolError, after which `fail` says how to close the connection.
        """
        if not self.current:
            return Verdict.DROP
        session, slot, row = self.session, event.slot, ROWS[event.op]
        verdict = judge(session.store, slot, event.seq, row)
        if verdict in BEGINS:
            session._charge(slot, event.in_flight)
            session.store.run(slot, event.seq, event.op)
        session.traffic.set_route(slot, self)
        return verdict

    # -- sending

    def frame(self, header: bytes, payload: Buffer = b"") -> list[Buffer]:
        """The buffers of a frame.  Under the send lock, until they are sent."""
        return self._sender.frame(header, payload)

    # -- inside

    def _set_current(self, current: bool) -> None:
        self.current = current
        self.opened = self.opened or current
        if self._on_current is not None:
            self._on_current(current)

    def _handle(self, frame: Frame) -> Event:
        if self._state is _NEW:
            return self._handle_opening(frame)
        request = decode_request(frame.header)
        if request.slot is None:
            return self._handle_control(request, frame)
        if self._state is not _OPEN:
            raise RemoteProtocolError(f"{request.op.name} before CONFIRM")
        return self._request(request, frame)

    def _request(self, request: Request, frame: Frame) -> Arrived:
        slot, seq, op, message = request
        assert slot is not None
        agreed = self.session.agreed
        assert agreed is not None
        row = ROWS[op]
        if slot not in self.session._ranges[row.channel]:
            raise RemoteProtocolError(f"{op.name} in slot {slot}, which is none of its slots")
        if frame.payload and row.payload != "request":
            raise RemoteProtocolError(f"{op.name} with a payload of {len(frame.payload)} bytes")
        size = reply_size(row, message)
        if size > agreed.max_read:
            raise RemoteProtocolError(f"{op.name} of {size} bytes, where at most {agreed.max_read} are agreed")
        for index in NAME_FIELDS[op]:
            if len(message[index]) > agreed.max_name:
                raise RemoteProtocolError(f"{op.name} with a name of {len(message[index])} bytes")
        received = len(frame.header) + len(frame.payload)
        return Arrived(slot, seq, op, message, frame.payload, received, received + size)

    def _handle_opening(self, frame: Frame) -> Event:
        request = _read_opening(frame.header)
        message: Opening = request.message  # type: ignore[assignment]  # one of the three, by its op
        reply, superseded = self.session._open(self, message)
        self._receiver.max_header = MAX_HEADER
        agreed = self.session.agreed
        assert agreed is not None
        self._receiver.max_payload = agreed.max_write
        self._state = _State.RESUMED if request.op is Op.RESUME else _State.OPEN
        self._events.append(Opened(request.op, superseded))
        return Answer(encode_reply(None, request.seq, request.op, reply))

    def _handle_control(self, request: Request, frame: Frame) -> Event:
        self._counter += 1
        op, message = request.op, request.message
        if request.seq != self._counter:
            raise RemoteProtocolError(f"{op.name} has the seq {request.seq} where {self._counter} was due")
        if frame.payload:
            raise RemoteProtocolError(f"{op.name} with a payload")
        self.session._is_known()
        reply: Message
        if isinstance(message, ConfirmRequest):
            if self._state is not _State.RESUMED:
                raise RemoteProtocolError("CONFIRM without RESUME")
            superseded = self.session._confirm(self, message.secret)
            self._state = _State.OPEN
            self._events.append(Opened(op, superseded))
            reply = ConfirmReply()
        elif self._state is not _OPEN:
            raise RemoteProtocolError(f"{op.name} before CONFIRM")
        elif isinstance(message, InterruptRequest):
            if message.slot >= self.session.layout.total:
                raise RemoteProtocolError(f"INTERRUPT of slot {message.slot} of {self.session.layout.total}")
            self._events.append(Interrupted(message.slot, message.request_seq))
            reply = InterruptReply()
        elif op is Op.BYE:
            self.session._bye(self)
            self._events.append(ByeReceived())
            reply = ByeReply()
        elif op is Op.PING:
            reply = PingReply()
        else:
            raise RemoteProtocolError(f"{op.name} on a connection that is open")
        return Answer(encode_reply(None, request.seq, op, reply))

    def _connection_features(self, asked: Sequence[str]) -> tuple[str, ...]:
        """The features of this connection; either end may ask for the checksum."""
        wanted = self._body_crc or BODY_CRC in asked
        self._sender.body_crc = self._receiver.body_crc = wanted
        return (BODY_CRC,) if wanted else ()

    def _superseded(self) -> None:
        """Nothing that comes from now on counts.  Under the session's lock."""
        self._set_current(False)
        self.pending = None
