"""Slots: what runs, what is answered again, what is refused, and how much may be on its way."""

import threading
from typing import Any

import pytest

from fusepipe.wire import (
    ROWS,
    ErrorCode,
    Frame,
    Kept,
    ListClientStore,
    ListServerStore,
    LocalProtocolError,
    Message,
    Op,
    RemoteProtocolError,
    SlotKind,
    SlotLayout,
    SlotRecord,
    SlotState,
    Ticket,
    Verdict,
    arrive,
    decode_request,
    encode_errno,
    encode_reply,
    encode_request,
    finish,
)
from fusepipe.wire.client_session import Lost, Pong, Replied
from fusepipe.wire.messages import (
    CleanupReply,
    CleanupRequest,
    GetattrRequest,
    InterruptRequest,
    LookupRequest,
    ReadReply,
    ReadRequest,
    UnlinkReply,
    UnlinkRequest,
    WriteReply,
    WriteRequest,
)
from fusepipe.wire.server_session import Close, Interrupted

from . import reference
from .pair import OFFER, Pair

UNLINK, GETATTR = ROWS[Op.UNLINK], ROWS[Op.GETATTR]


# ---- the rules, on the bare store -----------------------------------------------------------------------------------


def test_layout() -> None:
    layout = SlotLayout(request=64, cleanup=4, lock=10)
    assert layout.total == 78
    assert [layout.range(kind) for kind in SlotKind] == [range(64), range(64, 68), range(68, 78)]
    assert layout.by_channel() == {"slot": range(64), "cleanup": range(64, 68), "lock": range(68, 78)}


def test_the_life_of_a_request() -> None:
    store = ListServerStore(2)
    assert len(store) == 2
    assert store.load(0) == (0, SlotState.FREE, 0)
    assert arrive(store, 0, 1, UNLINK) is Verdict.RUN
    assert store.load(0) == (1, SlotState.RUNNING, Op.UNLINK)
    assert arrive(store, 0, 1, UNLINK) is Verdict.RUNNING
    assert finish(store, 0, 1, b"header", b"payload")
    assert store.load(0) == (1, SlotState.DONE, Op.UNLINK)
    assert arrive(store, 0, 1, UNLINK) is Verdict.REPLAY
    assert store.reply(0) == Kept(b"header", b"payload")
    assert not finish(store, 0, 1, b"another", b""), "it is done"
    assert store.reply(0) == Kept(b"header", b"payload")
    assert arrive(store, 0, 2, GETATTR) is Verdict.RUN
    assert store.reply(0) is None, "the next seq says that the reply has arrived"
    assert not finish(store, 0, 1, b"late", b"")
    assert store.load(1) == SlotRecord(0, SlotState.FREE, 0)


def test_a_repeatable_request_keeps_no_reply_and_runs_again() -> None:
    store = ListServerStore(1)
    arrive(store, 0, 1, GETATTR)
    assert finish(store, 0, 1, b"header")
    assert store.reply(0) is None
    assert arrive(store, 0, 1, GETATTR) is Verdict.RUN
    assert arrive(store, 0, 1, GETATTR) is Verdict.RUNNING
    assert finish(store, 0, 1, b"header")


def test_a_store_that_outlived_its_process_may_ask_for_a_request_again() -> None:
    class Settled(ListServerStore):
        """Says that what was running is to run when it comes again; with plain numbers, as a C array has them."""

        def load(self, slot: int) -> Any:
            seq, state, op = super().load(slot)
            return SlotRecord(seq, 0 if state == SlotState.RUNNING else int(state), int(op))  # type: ignore[arg-type]  # as above

    store = Settled(1)
    arrive(store, 0, 1, UNLINK)
    assert arrive(store, 0, 1, UNLINK) is Verdict.RUN
    assert arrive(store, 0, 2, UNLINK) is Verdict.RUN, "its reply had arrived before"


@pytest.mark.parametrize(
    ("state", "slot", "seq", "row", "says"),
    [
        ("new", 0, 0, UNLINK, "slot 0: seq 0 came after 0"),
        ("new", 0, 2, UNLINK, "slot 0: seq 2 came after 0"),
        ("new", 1, 1, UNLINK, "slot 1 of 1"),
        ("running", 0, 4, UNLINK, "slot 0: seq 4 came after 5"),
        ("running", 0, 6, UNLINK, "slot 0: seq 6 came while 5 was running"),
        ("running", 0, 5, GETATTR, "slot 0: seq 5 came again as another operation"),
        ("done", 0, 4, UNLINK, "slot 0: seq 4 came after 5"),
        ("done", 0, 7, UNLINK, "slot 0: seq 7 came after 5"),
        ("done", 0, 5, GETATTR, "slot 0: seq 5 came again as another operation"),
    ],
)
def test_refused(state: str, slot: int, seq: int, row: Any, says: str) -> None:
    store = ListServerStore(1)
    if state != "new":
        store.run(0, 5, Op.UNLINK)
    if state == "done":
        store.done(0, Kept(b"header", b""))
    before = store.load(0)
    with pytest.raises(RemoteProtocolError) as caught:
        arrive(store, slot, seq, row)
    assert caught.value.text == says
    assert store.load(0) == before


def test_client_store() -> None:
    layout = SlotLayout(2, 1, 0)
    store = ListClientStore(layout)
    assert len(store) == 3
    requests, cleanup = layout.range(SlotKind.REQUEST), layout.range(SlotKind.CLEANUP)

    def ticket(slot: int, seq: int) -> Ticket:
        request = UnlinkRequest(1, b"x")
        return Ticket(slot, seq, Op.UNLINK, request, encode_request(slot, seq, request), b"", 0)

    with pytest.raises(LocalProtocolError, match="slot 1 was not taken"):
        store.put(ticket(1, 1))
    assert store.take(requests) == 0
    first, second = ticket(0, 1), ticket(1, 1)
    store.put(first)
    assert store.take(requests) == 1
    store.give_back(1)
    assert store.take(requests) == 1
    store.put(second)
    assert store.take(requests) is None
    assert store.take(cleanup) == 2
    assert store.take(layout.range(SlotKind.LOCK)) is None
    assert store.ticket(0) is first
    assert (store.seq(0), store.seq(2)) == (1, 0)
    assert store.reserve(first.in_flight, 1) and store.in_flight == first.in_flight
    assert not store.reserve(1, 1) and store.in_flight == first.in_flight
    store.clear(0)
    assert store.ticket(0) is None and store.in_flight == 0
    assert store.seq(0) == 1
    with pytest.raises(LocalProtocolError, match="slot 0 carries no ticket"):
        store.clear(0)
    assert store.abandon(1) and not store.abandon(1)
    store.abandoned_came()
    assert store.abandoned == 0
    assert store.reserve(second.in_flight, 1)
    store.clear(1)
    assert store.take(requests) == 1, "the one that was freed last"


# ---- slots of a session ---------------------------------------------------------------------------------------------


def test_slots_are_taken_and_freed() -> None:
    pair = Pair()
    line = pair.open()
    tickets = [pair.take(UnlinkRequest(1, b"%d" % number)) for number in range(4)]
    assert [(ticket.slot, ticket.seq) for ticket in tickets] == [(0, 1), (1, 1), (2, 1), (3, 1)]
    assert pair.client.take(SlotKind.REQUEST, UnlinkRequest(1, b"x")) is None
    cleanup = pair.take(CleanupRequest((), (), ()), kind=SlotKind.CLEANUP)
    assert cleanup.slot == 4
    assert pair.client.take(SlotKind.CLEANUP, CleanupRequest((), (), ())) is None
    assert pair.client.unanswered() == [*tickets, cleanup]
    tickets[2].user = "mine"
    assert line.arrive(tickets[2]) is Verdict.RUN
    (replied,) = line.answer(tickets[2], UnlinkReply())
    assert isinstance(replied, Replied)
    assert replied.ticket is tickets[2]
    assert replied.ticket.user == "mine"
    assert (replied.errno, replied.reply, bytes(replied.payload)) == (0, UnlinkReply(), b"")
    again = pair.take(UnlinkRequest(1, b"x"))
    assert (again.slot, again.seq) == (2, 2)
    assert line.arrive(cleanup) is Verdict.RUN
    assert len(line.answer(cleanup, CleanupReply())) == 1


def test_a_ticket_keeps_its_header_for_the_repetition() -> None:
    pair = Pair()
    first = pair.open()
    ticket = pair.take(WriteRequest(4, 0, 0), b"data")
    frame = b"".join(first.client.request(ticket))
    first.client.lost()
    second = pair.open()
    assert b"".join(second.client.request(ticket))[16:] == frame[16:]
    assert repr(ticket) == "<Ticket WRITE slot 0 seq 1>"


def test_the_reply_goes_to_the_newer_connection() -> None:
    pair = Pair()
    first = pair.open()
    ticket = pair.take(UnlinkRequest(1, b"x"))
    event = first.arrived(ticket)
    assert first.server.arrive(event) is Verdict.RUN
    first.client.lost()
    second = pair.open()
    assert first.server.arrive(event) is Verdict.DROP
    assert second.arrive(ticket) is Verdict.RUNNING
    assert len(second.answer(ticket, UnlinkReply())) == 1


def test_the_reply_of_nobody_is_kept() -> None:
    pair = Pair()
    first = pair.open()
    ticket = pair.take(UnlinkRequest(1, b"x"))
    first.arrive(ticket)
    first.client.lost()
    second = pair.open()
    header = encode_reply(0, 1, Op.UNLINK, UnlinkReply())
    assert pair.server.finish(0, 1, header) is None
    assert pair.server.in_flight == 0
    assert second.arrive(ticket) is Verdict.REPLAY
    kept = pair.store.reply(0)
    assert kept == Kept(header, b"")
    assert [type(event) for event in second.down(second.server.frame(*kept))] == [Replied]
    assert pair.server.finish(0, 1, header) is None, "a second time"


def test_an_old_connection_takes_no_reply_away() -> None:
    """Its frames may be read after the request was sent again: they must not run, nor become the reply's way."""
    pair = Pair()
    first = pair.open()
    ticket = pair.take(GetattrRequest(1, 0))
    stale = first.arrived(ticket)
    first.client.lost()
    second = pair.open()
    assert second.arrive(ticket) is Verdict.RUN
    assert first.server.arrive(stale) is Verdict.DROP
    assert pair.server.finish(0, 1, encode_errno(0, 1, 5)) is second.server


def test_replies_on_an_old_connection_are_not_taken() -> None:
    pair = Pair()
    first = pair.open()
    ticket = pair.take(UnlinkRequest(1, b"x"))
    first.arrive(ticket)
    late = first.server.frame(encode_errno(0, 1, 5))
    pair.client.lost = True
    pair.open()
    assert first.down(late) == []
    assert pair.client.unanswered() == [ticket]


def test_replies_that_are_late_or_wrong() -> None:
    pair = Pair()
    line = pair.open()
    ticket = pair.take(UnlinkRequest(1, b"x"))
    line.arrive(ticket)
    line.answer(ticket, UnlinkReply())
    assert line.down(line.server.frame(encode_errno(0, 1, 5))) == [], "answered already"
    pair.take(UnlinkRequest(1, b"y"))
    assert line.down(line.server.frame(encode_errno(0, 1, 5))) == [], "of the request before"
    (lost,) = line.down(line.server.frame(encode_errno(0, 3, 5)))
    assert isinstance(lost, Lost)
    assert lost.reason == "a reply to a request that was never sent: slot 0, seq 3"


@pytest.mark.parametrize(
    ("request_", "errno", "payload", "says"),
    [
        (ReadRequest(1, 0, 10), 0, b"x" * 11, "the reply to READ has a payload of 11 bytes"),
        (ReadRequest(1, 0, 10), 5, b"x", "the reply to READ has a payload of 1 bytes"),
        (UnlinkRequest(1, b"x"), 0, b"x", "the reply to UNLINK has a payload of 1 bytes"),
    ],
)
def test_replies_with_too_much_payload(request_: Message, errno: int, payload: bytes, says: str) -> None:
    pair = Pair()
    line = pair.open()
    line.arrive(pair.take(request_))
    (lost,) = line.down(line.server.frame(reference.pack([0, 1, errno]), payload))
    assert isinstance(lost, Lost)
    assert lost.reason == says
    assert len(pair.client.unanswered()) == 1


def test_a_reply_that_does_not_fit_its_request() -> None:
    pair = Pair()
    line = pair.open()
    line.arrive(pair.take(LookupRequest(1, b"x")))
    (lost,) = line.down(line.server.frame(reference.pack([0, 1, 0])))
    assert isinstance(lost, Lost)
    assert lost.reason == "the reply to LOOKUP: there are 0 fields; at least 1 are needed"


def test_a_short_read_and_a_reply_with_data() -> None:
    pair = Pair()
    line = pair.open()
    ticket = pair.take(ReadRequest(1, 0, 60_000))
    line.arrive(ticket)
    (replied,) = line.answer(ticket, ReadReply(), b"abc")
    assert isinstance(replied, Replied)
    assert bytes(replied.payload) == b"abc"


# ---- requests that are not allowed ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "request_", "payload", "says"),
    [
        (SlotKind.CLEANUP, UnlinkRequest(1, b"x"), b"", "UNLINK does not take a cleanup slot"),
        (SlotKind.LOCK, UnlinkRequest(1, b"x"), b"", "UNLINK does not take a lock slot"),
        (SlotKind.REQUEST, CleanupRequest((), (), ()), b"", "CLEANUP does not take a request slot"),
        (SlotKind.REQUEST, InterruptRequest(0, 1), b"", "INTERRUPT does not take a request slot"),
        (SlotKind.REQUEST, UnlinkRequest(1, b"n" * 256), b"", "UNLINK with a name of 256 bytes"),
        (SlotKind.REQUEST, ReadRequest(1, 0, 65_537), b"", "READ of 65537 bytes, where at most 65536 are agreed"),
        (SlotKind.REQUEST, WriteRequest(1, 0, 0), bytes(65_537), "WRITE with a payload of 65537 bytes"),
        (SlotKind.REQUEST, UnlinkRequest(1, b"x"), b"data", "UNLINK with a payload of 4 bytes"),
        (SlotKind.REQUEST, UnlinkRequest(1, b""), b"", "UNLINK: name is empty"),
        (SlotKind.REQUEST, UnlinkReply(), b"", "UnlinkReply is not a request"),
    ],
)
def test_what_cannot_be_asked(kind: SlotKind, request_: Any, payload: bytes, says: str) -> None:
    pair = Pair()
    pair.open()
    with pytest.raises(LocalProtocolError, match=says):
        pair.client.take(kind, request_, payload)
    assert pair.client.unanswered() == []
    assert pair.client.in_flight == 0


# ---- bytes in flight ------------------------------------------------------------------------------------------------


def test_bytes_in_flight_are_counted_alike_on_both_ends() -> None:
    pair = Pair()
    line = pair.open()
    write, read = pair.take(WriteRequest(1, 0, 0), bytes(5000)), pair.take(ReadRequest(1, 0, 3000))
    for ticket in (write, read):
        event = line.arrived(ticket)
        assert event.in_flight == ticket.in_flight
        assert line.server.arrive(event) is Verdict.RUN
    sizes = len(encode_request(0, 1, write.request)) + 5000 + len(encode_request(1, 1, read.request)) + 3000
    assert pair.client.in_flight == pair.server.in_flight == sizes
    line.answer(write, WriteReply(5000))
    line.answer(read, ReadReply(), b"")
    assert pair.client.in_flight == pair.server.in_flight == 0


def test_the_client_waits_before_it_sends_too_much() -> None:
    pair = Pair()
    line = pair.open()
    tickets = [pair.take(ReadRequest(1, 0, 65_536)) for _ in range(3)]
    assert pair.client.take(SlotKind.REQUEST, ReadRequest(1, 0, 65_536)) is None
    small = pair.client.take(SlotKind.REQUEST, ReadRequest(1, 0, 1000))
    assert small is not None
    line.arrive(tickets[0])
    line.answer(tickets[0], ReadReply())
    assert pair.client.take(SlotKind.REQUEST, ReadRequest(1, 0, 65_536)) is not None


def test_a_request_alone_is_always_allowed() -> None:
    pair = Pair(OFFER._replace(max_in_flight=4096))
    line = pair.open()
    big = pair.take(WriteRequest(1, 0, 0), bytes(65_536))
    assert pair.client.take(SlotKind.REQUEST, UnlinkRequest(1, b"x")) is None
    assert line.arrive(big) is Verdict.RUN
    line.answer(big, WriteReply(1))
    assert pair.client.take(SlotKind.REQUEST, UnlinkRequest(1, b"x")) is not None


def test_the_server_refuses_too_much() -> None:
    pair = Pair(OFFER._replace(max_in_flight=4096))
    line = pair.open()
    first = pair.take(WriteRequest(1, 0, 0), bytes(5000))
    assert line.arrive(first) is Verdict.RUN
    assert isinstance(pair.client._store, ListClientStore)
    pair.client._store.in_flight = 0  # a client that has lost count
    second = pair.take(UnlinkRequest(1, b"x"))
    event = line.arrived(second)
    with pytest.raises(RemoteProtocolError, match="bytes in flight, where 4096 are agreed") as caught:
        line.server.arrive(event)
    assert caught.value.code is ErrorCode.LIMIT
    assert pair.store.load(second.slot) == (0, SlotState.FREE, 0)
    answer, close = line.server.fail(caught.value)
    (lost,) = line.down(line.server.frame(answer.header))
    assert isinstance(lost, Lost)
    assert "bytes in flight" in lost.reason
    assert close == Close(caught.value.text, caught.value)
    assert pair.server.open_connections() == ()


def test_threads_count_right() -> None:
    pair = Pair(OFFER._replace(request_slots=4, max_in_flight=1 << 30))
    line = pair.open()
    pair.server.agreed = pair.server.agreed._replace(max_in_flight=1 << 30) if pair.server.agreed else None
    problems: list[object] = []

    def work(slot: int) -> None:
        try:
            for seq in range(1, 400):
                request = decode_request(encode_request(slot, seq, UnlinkRequest(1, b"x")))
                event = line.server._request(request, Frame(b"header", memoryview(b"")))
                assert line.server.arrive(event) is Verdict.RUN
                assert pair.server.finish(slot, seq, encode_errno(slot, seq, 2)) is line.server
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert problems == []
    assert pair.server.in_flight == 0


# ---- abandoned requests, INTERRUPT, PING ----------------------------------------------------------------------------


def test_half_of_the_slots_may_be_abandoned() -> None:
    pair = Pair()
    line = pair.open()
    tickets = [pair.take(UnlinkRequest(1, b"%d" % number)) for number in range(4)]
    cleanup = pair.take(CleanupRequest((), (), ()), kind=SlotKind.CLEANUP)
    assert pair.client.abandon(tickets[0])
    assert pair.client.abandon(tickets[0]), "it is already"
    assert pair.client.abandon(tickets[1])
    assert not pair.client.abandon(tickets[2])
    assert not tickets[2].abandoned
    assert pair.client.abandon(cleanup), "another kind of slot"
    assert pair.client.abandoned == 2
    assert repr(tickets[0]) == "<Ticket UNLINK slot 0 seq 1 abandoned>"
    assert pair.client.take(SlotKind.REQUEST, UnlinkRequest(1, b"x")) is None, "an abandoned slot is not free"
    line.arrive(tickets[0])
    (replied,) = line.answer(tickets[0], UnlinkReply())
    assert isinstance(replied, Replied)
    assert replied.ticket.abandoned
    assert pair.client.abandoned == 1
    assert pair.client.abandon(tickets[2])
    with pytest.raises(LocalProtocolError, match="has its reply"):
        pair.client.abandon(tickets[0])
    line.arrive(cleanup)
    line.answer(cleanup, CleanupReply())
    assert pair.client.abandoned == 2


def test_with_one_slot_nothing_is_abandoned() -> None:
    pair = Pair(OFFER._replace(request_slots=1))
    pair.open()
    assert not pair.client.abandon(pair.take(UnlinkRequest(1, b"x")))


def test_interrupt_may_come_before_its_request() -> None:
    pair = Pair()
    first, second = pair.open(), pair.open()
    ticket = pair.take(UnlinkRequest(1, b"x"))
    request = first.client.request(ticket)
    assert second.up(second.client.interrupt(ticket.slot, ticket.seq)) == [Interrupted(0, 1)]
    assert second.run() == [], "the answer says nothing"
    assert len(first.up(request)) == 1


def test_ping() -> None:
    pair = Pair()
    line = pair.open()
    for _ in range(3):
        assert line.up(line.client.ping()) == []
        assert line.run() == [Pong()]


@pytest.mark.parametrize(
    ("header", "payload", "says"),
    [
        (encode_request(4, 1, UnlinkRequest(1, b"x")), b"", "UNLINK in slot 4, which is none of its slots"),
        (encode_request(5, 1, UnlinkRequest(1, b"x")), b"", "UNLINK in slot 5, which is none of its slots"),
        (encode_request(0, 1, CleanupRequest((), (), ())), b"", "CLEANUP in slot 0, which is none of its slots"),
        (encode_request(0, 1, UnlinkRequest(1, b"x")), b"data", "UNLINK with a payload of 4 bytes"),
        (encode_request(0, 1, ReadRequest(1, 0, 65_537)), b"", "READ of 65537 bytes, where at most 65536 are agreed"),
        (encode_request(0, 1, UnlinkRequest(1, b"n" * 256)), b"", "UNLINK with a name of 256 bytes"),
        (encode_request(None, 2, InterruptRequest(6, 1)), b"", "INTERRUPT of slot 6 of 6"),
        (encode_request(None, 3, InterruptRequest(0, 1)), b"", "INTERRUPT has the seq 3 where 2 was due"),
        (encode_request(None, 2, InterruptRequest(0, 1)), b"data", "INTERRUPT with a payload"),
        (encode_request(None, 2, OFFER), b"", "HELLO on a connection that is open"),
    ],
)
def test_a_client_that_breaks_the_protocol(header: bytes, payload: bytes, says: str) -> None:
    pair = Pair()
    line = pair.open()
    other = pair.open()
    events = line.up([reference.frame(header, payload, 1, checksum=False)])
    (close,) = events
    assert isinstance(close, Close)
    assert close.reason == says
    (lost,) = line.run()
    assert lost == Lost(f"the server closed the connection: {says}", None)
    assert other.server.current, "the others go on"
