"""Slots: why every request runs once and every reply reaches its request.  SPEC.md, section "Slots".

The rules stand here as functions over a store that is passed in; the model is NFSv4.1's session (RFC 8881, section
2.10.6).  A store keeps no lock: the server calls everything that concerns one slot under that slot's lock, the client
from one thread.
"""

import builtins
from enum import Enum, IntEnum
from typing import Any, Final, NamedTuple, Protocol

from .codec import Message
from .errors import LocalProtocolError, RemoteProtocolError
from .frames import Buffer
from .messages import ROWS, Channel, Op, Row


class SlotKind(Enum):
    """What a slot is for.  Request slots are numbered from 0, cleanup slots follow, then lock slots."""

    REQUEST = "request"
    CLEANUP = "cleanup"
    LOCK = "lock"


KIND_OF_CHANNEL: Final[dict[Channel, SlotKind]] = {
    "slot": SlotKind.REQUEST,
    "cleanup": SlotKind.CLEANUP,
    "lock": SlotKind.LOCK,
}


class SlotLayout(NamedTuple):
    """How many slots of each kind a session has."""

    request: int
    cleanup: int
    lock: int

    @property
    def total(self) -> int:
        return self.request + self.cleanup + self.lock

    def range(self, kind: SlotKind) -> range:
        """The numbers of the slots of one kind."""
        if kind is SlotKind.REQUEST:
            return range(self.request)
        if kind is SlotKind.CLEANUP:
            return range(self.request, self.request + self.cleanup)
        return range(self.request + self.cleanup, self.total)

    def by_channel(self) -> "dict[Channel, builtins.range]":
        """The slots that the operations of each channel of the table of operations take."""
        return {channel: self.range(kind) for channel, kind in KIND_OF_CHANNEL.items()}


# ---- server ---------------------------------------------------------------------------------------------------------


class SlotState(IntEnum):
    """What became of the request that a slot carries."""

    FREE = 0
    """There was none, or it is to run when it comes again: to this process, or to the next one."""
    RUNNING = 1
    DONE = 2
    BROKEN = 3
    """It was running when the process of the store died, and has not come again since."""


# Python 3.11 calls a function for each look-up of an enum's member, and these are looked up for every request.
_FREE: Final = SlotState.FREE
_RUNNING: Final = SlotState.RUNNING
_DONE: Final = SlotState.DONE
_BROKEN: Final = SlotState.BROKEN


class SlotRecord(NamedTuple):
    """The last request of a slot; `seq` and `op` are 0 while there was none.  `state` may be a plain int."""

    seq: int
    state: SlotState
    op: int


class Kept(NamedTuple):
    """A reply that is kept until the slot's next request says that it arrived: header and payload of its frame."""

    header: bytes
    payload: Buffer


class ServerSlotStore(Protocol):
    """One record per slot.  Every call is made under that slot's lock."""

    def __len__(self) -> int:
        """How many slots there are."""

    def load(self, slot: int) -> SlotRecord:
        """The last request of the slot."""

    def run(self, slot: int, seq: int, op: int) -> None:
        """The request is about to run: state RUNNING; a reply that was kept is dropped."""

    def done(self, slot: int, kept: Kept | None) -> None:
        """The request has run: state DONE.  `kept` is its reply, None for a repeatable operation."""

    def undone(self, slot: int) -> None:
        """The request has not run after all: state FREE, so that it runs when it comes again."""

    def reply(self, slot: int) -> Kept | None:
        """The reply that `done` was given; not None where the state is DONE and the operation is not repeatable."""


class Verdict(Enum):
    """What is to be done with a request that arrived."""

    RUN = "run"
    RUNNING = "running"
    """It runs already; its reply goes to the connection on which it came last."""
    REPLAY = "replay"
    """It has run: send the kept reply."""
    SETTLE = "settle"
    """A process died while it ran: what is left to do is to be found out, in place of running it."""
    DROP = "drop"
    """It came on a connection that has been superseded: somebody else has sent it again, or will."""


_RUN: Final = Verdict.RUN  # for the same reason as above
BEGINS: Final = (Verdict.RUN, Verdict.SETTLE)
"""With these the request runs from now on."""


def judge(store: ServerSlotStore, slot: int, seq: int, row: Row) -> Verdict:
    """What is to be done with a request; changes nothing.

    Raises RemoteProtocolError where the seq is neither the slot's last nor the next one, where the last one still runs,
    and where the same seq comes with another operation.
    """
    if slot >= len(store):
        raise RemoteProtocolError(f"slot {slot} of {len(store)}")
    record = store.load(slot)
    if seq == record.seq + 1:
        if record.state in (_RUNNING, _BROKEN):
            raise RemoteProtocolError(f"slot {slot}: seq {seq} came while {record.seq} was running")
        return _RUN
    if seq != record.seq or seq == 0:
        raise RemoteProtocolError(f"slot {slot}: seq {seq} came after {record.seq}")
    if record.op != row.op:
        raise RemoteProtocolError(f"slot {slot}: seq {seq} came again as another operation")
    if record.state == _RUNNING:
        return Verdict.RUNNING
    if record.state == _BROKEN:
        return Verdict.SETTLE
    if record.state == _FREE:
        return Verdict.RUN
    return Verdict.RUN if row.repeatable else Verdict.REPLAY


def arrive(store: ServerSlotStore, slot: int, seq: int, row: Row) -> Verdict:
    """Judges a request and, where it is to run, notes that it runs.  Raises as `judge` does."""
    verdict = judge(store, slot, seq, row)
    if verdict in BEGINS:
        store.run(slot, seq, row.op)
    return verdict


def finish(store: ServerSlotStore, slot: int, seq: int, header: bytes, payload: Buffer = b"") -> bool:
    """Notes that a request has run, and keeps its reply unless it is repeatable.

    False where the slot does not wait for this reply any more: drop it.
    """
    record = store.load(slot)
    if record.seq != seq or record.state != _RUNNING:
        return False
    store.done(slot, None if ROWS[Op(record.op)].repeatable else Kept(header, payload))
    return True


class ListServerStore:
    """A ServerSlotStore in a Python list: for tests, and for sessions that need not outlive their process."""

    def __init__(self, slots: int) -> None:
        self._records = [SlotRecord(0, SlotState.FREE, 0)] * slots
        self._kept: list[Kept | None] = [None] * slots

    def __len__(self) -> int:
        return len(self._records)

    def load(self, slot: int) -> SlotRecord:
        return self._records[slot]

    def run(self, slot: int, seq: int, op: int) -> None:
        self._kept[slot] = None
        self._records[slot] = SlotRecord(seq, _RUNNING, op)

    def done(self, slot: int, kept: Kept | None) -> None:
        self._kept[slot] = kept
        seq, _, op = self._records[slot]
        self._records[slot] = SlotRecord(seq, _DONE, op)

    def undone(self, slot: int) -> None:
        seq, _, op = self._records[slot]
        self._records[slot] = SlotRecord(seq, _FREE, op)

    def reply(self, slot: int) -> Kept | None:
        return self._kept[slot]


# ---- client ---------------------------------------------------------------------------------------------------------


class Ticket:
    """A request that has a slot, from `take` until its reply; opaque but for `user` and what it was made from."""

    __slots__ = (
        "abandoned", "header", "in_flight", "op", "payload", "reply_size", "request", "sent", "seq", "slot", "user",
    )  # fmt: skip

    def __init__(
        self, slot: int, seq: int, op: Op, request: Message, header: bytes, payload: Buffer, reply_size: int
    ) -> None:
        self.slot = slot
        self.seq = seq
        self.op = op
        self.request = request
        self.header = header
        self.payload = payload
        self.reply_size = reply_size
        self.in_flight = len(header) + len(payload) + reply_size
        self.sent = False
        """Whether it was ever given to a connection: what RESUME reports as the slot's last."""
        self.abandoned = False
        self.user: Any = None

    def __repr__(self) -> str:
        return f"<Ticket {self.op.name} slot {self.slot} seq {self.seq}{' abandoned' if self.abandoned else ''}>"


class ClientSlotStore(Protocol):
    """One record per slot: its last seq, and the ticket that waits for its reply; and what counts for all of them."""

    def __len__(self) -> int:
        """How many slots there are."""

    @property
    def in_flight(self) -> int:
        """Bytes that are in flight."""

    @property
    def abandoned(self) -> int:
        """How many request slots are abandoned."""

    def take(self, slots: range) -> int | None:
        """One of these slots that carries no ticket, for `put` or `give_back`, or None."""

    def has_free(self, slots: range) -> bool:
        """Whether `take` would give one of these slots."""

    def give_back(self, slot: int) -> None:
        """The slot that was taken will not be used."""

    def reserve(self, size: int, limit: int) -> bool:
        """Counts so many bytes more as in flight, up to the limit; if nothing is in flight, whatever they are.

        False, and nothing changes, where there would be too many.
        """

    def seq(self, slot: int) -> int:
        """The seq of the slot's last ticket; 0 while there was none."""

    def last_sent(self, slot: int) -> int:
        """The seq of the slot's last request that was ever given to a connection; 0 while there was none."""

    def ticket(self, slot: int) -> Ticket | None:
        """The ticket that waits for its reply."""

    def put(self, ticket: Ticket) -> None:
        """The ticket gets the slot that was taken for it, whose seq becomes the ticket's."""

    def clear(self, slot: int) -> None:
        """The slot's ticket has its reply: the slot is free, and its bytes are not in flight any more."""

    def abandon(self, most: int) -> bool:
        """Counts one request slot more as abandoned; False where there are as many as may be."""

    def abandoned_came(self) -> None:
        """The reply for one of those has come."""

    def waiting(self, requests: int) -> None:
        """So many requests wait for a request slot: a store that others use, too, keeps some for them."""


class ListClientStore:
    """A ClientSlotStore in Python lists.  The slot that was freed last is used first."""

    def __init__(self, layout: SlotLayout) -> None:
        self.in_flight = 0
        self.abandoned = 0
        self._seqs = [0] * layout.total
        self._tickets: list[Ticket | None] = [None] * layout.total
        self._free = {slots: list(reversed(slots)) for slots in (layout.range(kind) for kind in SlotKind)}
        self._free_of = {slot: free for slots, free in self._free.items() for slot in slots}

    def __len__(self) -> int:
        return len(self._seqs)

    def take(self, slots: range) -> int | None:
        free = self._free[slots]
        return free.pop() if free else None

    def has_free(self, slots: range) -> bool:
        return bool(self._free[slots])

    def give_back(self, slot: int) -> None:
        self._free_of[slot].append(slot)

    def reserve(self, size: int, limit: int) -> bool:
        if self.in_flight and self.in_flight + size > limit:
            return False
        self.in_flight += size
        return True

    def seq(self, slot: int) -> int:
        return self._seqs[slot]

    def last_sent(self, slot: int) -> int:
        ticket = self._tickets[slot]
        return self._seqs[slot] - (ticket is not None and not ticket.sent)

    def ticket(self, slot: int) -> Ticket | None:
        return self._tickets[slot]

    def put(self, ticket: Ticket) -> None:
        if self._tickets[ticket.slot] is not None or ticket.slot in self._free_of[ticket.slot]:
            raise LocalProtocolError(f"slot {ticket.slot} was not taken")
        self._seqs[ticket.slot] = ticket.seq
        self._tickets[ticket.slot] = ticket

    def clear(self, slot: int) -> None:
        ticket = self._tickets[slot]
        if ticket is None:
            raise LocalProtocolError(f"slot {slot} carries no ticket")
        self.in_flight -= ticket.in_flight
        self._tickets[slot] = None
        self._free_of[slot].append(slot)

    def abandon(self, most: int) -> bool:
        if self.abandoned >= most:
            return False
        self.abandoned += 1
        return True

    def abandoned_came(self) -> None:
        self.abandoned -= 1

    def waiting(self, requests: int) -> None:
        pass  # nobody else takes slots
