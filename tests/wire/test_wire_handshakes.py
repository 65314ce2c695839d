"""HELLO, ATTACH, RESUME, CONFIRM and BYE: what is granted, what is refused, and what each end makes of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fusepipe.wire import (
    ErrorCode,
    LocalProtocolError,
    Op,
    RemoteProtocolError,
    Secret,
    ServerLimits,
    ServerSession,
    Verdict,
    client_session,
    encode_error,
    encode_reply,
    encode_request,
    first_frame_size,
    opening,
    refusal,
    server_session,
)
from fusepipe.wire.client_session import Ended, Established, Lost, Pong, Refused
from fusepipe.wire.messages import (
    AttachRequest,
    ConfirmRequest,
    HelloReply,
    LookupRequest,
    PingReply,
    ResumeRequest,
    UnlinkReply,
    UnlinkRequest,
)
from fusepipe.wire.server_session import MAX_WAITING, ByeReceived, Close, Opened
from fusepipe.wire.slots import ListServerStore, SlotRecord

from . import reference
from .pair import LIMITS, OFFER, Line, Pair, Tokens


def refused(line: Line) -> tuple[ErrorCode, str]:
    """Delivers what waits; the client must have been refused, and the server have closed the connection."""
    (event,) = line.run()
    assert isinstance(event, Refused), event
    assert line.client.dead
    assert isinstance(line.server_got[-1], Close)
    error = line.server_got[-1].error
    assert error is not None
    assert (error.code, error.text, error.detail) == (event.code, event.text, event.detail)
    return event.code, event.text


# ---- HELLO ----------------------------------------------------------------------------------------------------------


def test_hello_grants_the_lower_of_both() -> None:
    offer = OFFER._replace(request_slots=100, connections=1, max_read=8192, max_name=1000, features=("unheard-of",))
    pair = Pair(offer)
    line = pair.open()
    agreed = pair.client.agreed
    assert agreed == pair.server.agreed
    assert agreed is not None
    assert agreed._replace(secret=Secret(32)) == HelloReply(
        1, 0, (), bytes(16), Secret(32), 4, 1, 1, 1, 8192, 65536, 200_000, 255, False, "server"
    )
    assert line.client_got == [Established(agreed, [])]
    assert line.server_got == [Opened(Op.HELLO, ())]
    assert not pair.client.supports("unheard-of")
    assert not pair.server.supports("unheard-of")
    assert pair.server.open_connections() == (line.server,)


@pytest.mark.parametrize("server_crc", [False, True])
@pytest.mark.parametrize("client_crc", [False, True])
def test_either_end_asks_for_checksums(client_crc: bool, server_crc: bool) -> None:
    pair = Pair(client_crc=client_crc, server_crc=server_crc)
    line = pair.open()
    wanted = client_crc or server_crc
    assert pair.client.supports("body-crc") is wanted
    for connection in (line, pair.open()):
        frame = b"".join(connection.client.ping())
        assert len(frame) == 16 + len(encode_reply(None, 2, Op.PING, PingReply())) + (4 if wanted else 0)
        assert connection.up([frame]) == []
        answer = b"".join(connection.to_client)
        assert len(answer) == len(frame)
        assert connection.run() == [Pong()]
        damaged = bytearray(b"".join(connection.client.ping()))
        damaged[16] ^= 1
        (close,) = connection.up([damaged])
        assert isinstance(close, Close)
        if wanted:
            assert close.reason == "the checksum of a frame's header and payload is wrong"


def test_checksums_are_agreed_for_each_connection() -> None:
    pair = Pair(client_crc=False)
    plain = pair.open()
    pair.server_crc = True
    checked = pair.open()
    assert len(b"".join(plain.client.ping())) + 4 == len(b"".join(checked.client.ping()))
    assert not pair.client.supports("body-crc"), "that was HELLO's connection"


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"major": 2}, ErrorCode.VERSION, "the client speaks version 2.0 to 2.0, this server 1.0 to 1.0"),
        ({"minor_min": 4, "minor_max": 9}, ErrorCode.VERSION, "the client speaks 1.4 to 1.9, this server 1.0 to 1.0"),
        ({"minor_min": 4}, ErrorCode.PROTOCOL, "minor versions from 4 to 0"),
        ({"request_slots": 0}, ErrorCode.LIMIT, "request_slots is 0; the least is 1"),
        ({"cleanup_slots": 0}, ErrorCode.LIMIT, "cleanup_slots is 0; the least is 1"),
        ({"connections": 0}, ErrorCode.LIMIT, "connections is 0; the least is 1"),
        ({"max_write": 4095}, ErrorCode.LIMIT, "max_write is 4095; the least is 4096"),
        ({"max_in_flight": 1}, ErrorCode.LIMIT, "max_in_flight is 1; the least is 4096"),
        ({"max_name": 0}, ErrorCode.LIMIT, "max_name is 0; the least is 1"),
        ({"magic": b"http/1.1"}, ErrorCode.PROTOCOL, "this is not a fusepipe client: the magic is missing"),
    ],
)
def test_hello_refused(changes: dict[str, Any], code: ErrorCode, says: str) -> None:
    pair = Pair(OFFER._replace(**changes))
    line = pair.connect()
    first = line.client.start()
    line.up(first)
    if code is ErrorCode.VERSION:
        (error,) = (event.error for event in line.server_got if isinstance(event, Close))
        assert error is not None
        assert error.detail == (1, 0, 0)
    assert refused(line) == (code, says)
    assert pair.server.agreed is None
    assert pair.server.open_connections() == ()
    pair.client.connection()


def test_a_second_hello_is_refused() -> None:
    pair = Pair()
    pair.open()
    late = Line(Pair().client.connection(), pair.server.connection(body_crc=False))
    late.up(late.client.start())
    assert refused(late) == (ErrorCode.PROTOCOL, "the session has been opened already")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"major": 2}, "the server answered with version 2.0"),
        ({"minor": 1}, "the server answered with version 1.1"),
        ({"request_slots": 5}, "the server granted 5 as request_slots"),
        ({"request_slots": 0}, "the server granted 0 as request_slots"),
        ({"max_in_flight": 200_001}, "the server granted 200001 as max_in_flight"),
        ({"max_read": 100}, "the server granted 100 as max_read"),
        ({"features": ("body-crc", "other")}, "the server agreed to features that were not offered: ['other']"),
    ],
)
def test_a_server_that_grants_what_was_not_offered(changes: dict[str, Any], says: str) -> None:
    pair = Pair()
    line = pair.connect()
    good = HelloReply(1, 0, (), bytes(16), Secret(32), 4, 1, 1, 2, 65536, 65536, 200_000, 255, False, "")
    line.client.start()
    (lost,) = line.down(line.server.frame(encode_reply(None, 1, Op.HELLO, good._replace(**changes))))
    assert isinstance(lost, Lost)
    assert lost.reason == says
    assert lost.error is not None
    assert pair.client.agreed is None


def test_a_server_that_grants_too_many_slots() -> None:
    pair = Pair(OFFER._replace(request_slots=2**20))
    line = pair.connect()
    good = HelloReply(1, 0, (), bytes(16), Secret(32), 2047, 1, 1, 2, 65536, 65536, 200_000, 255, False, "")
    line.client.start()
    (lost,) = line.down(line.server.frame(encode_reply(None, 1, Op.HELLO, good)))
    assert isinstance(lost, Lost)
    assert lost.reason == "the server granted 2049 slots; the most is 2048"


def test_a_hello_that_was_cut_is_said_again() -> None:
    pair = Pair()
    line = pair.connect()
    line.client.start()
    assert line.client.received(0) == [Lost("the server closed the connection", None)]
    again = pair.connect()
    assert again.client.opening is Op.HELLO


def test_limits_of_a_server_that_make_no_sense() -> None:
    with pytest.raises(LocalProtocolError, match="request_slots is 0; the least is 1"):
        ServerLimits(request_slots=0)
    with pytest.raises(LocalProtocolError, match="2049 slots; the most is 2048"):
        ServerLimits(request_slots=2000, cleanup_slots=9, lock_slots=40)
    with pytest.raises(LocalProtocolError, match="a session's id has 16 bytes"):
        ServerSession(b"short", LIMITS, ListServerStore(6), token_bytes=Tokens(), read_only=False)
    with pytest.raises(LocalProtocolError, match="1 locks for 6 slots"):
        Pair(slot_locks=[nothing()])
    with pytest.raises(LocalProtocolError, match="6 slots granted at most, and the store has 5"):
        ServerSession(bytes(16), LIMITS, ListServerStore(5), token_bytes=Tokens(), read_only=False)


@contextmanager
def nothing() -> Iterator[None]:
    yield


# ---- the first frame, in the listener -------------------------------------------------------------------------------


def test_the_listener_reads_exactly_the_first_frame() -> None:
    pair = Pair()
    line = pair.connect()
    first = b"".join(line.client.start())
    stream = first + b"what follows"
    size = first_frame_size(stream[:16])
    assert 16 + size == len(first)
    assert opening(stream[: 16 + size]) == OFFER
    line.server.feed(first)
    assert line.events() == [Opened(Op.HELLO, ())]
    for wrong in (first[:-1], first + b"x", first[:15], b""):
        with pytest.raises(RemoteProtocolError, match="this is not exactly one frame"):
            opening(wrong)


def test_the_listener_refuses() -> None:
    pair = Pair()
    line = pair.connect()
    line.client.start()
    events = line.down([refusal(ErrorCode.NO_SUCH_VOLUME, "there is no volume v")])
    assert events == [Refused(ErrorCode.NO_SUCH_VOLUME, "there is no volume v", ())]
    assert not pair.client.ended


def test_openings_of_every_kind_are_told_apart() -> None:
    pair = Pair()
    pair.open()
    second = pair.connect()
    attach = opening(b"".join(second.client.start()))
    assert isinstance(attach, AttachRequest)
    second.client.lost()
    third = pair.connect()
    resume = opening(b"".join(third.client.start()))
    assert isinstance(resume, ResumeRequest)
    assert resume.session == attach.session == bytes(16)
    assert resume.seqs == (0,) * 6


# ---- ATTACH ---------------------------------------------------------------------------------------------------------


def test_attach() -> None:
    pair = Pair()
    first, second = pair.open(), pair.open()
    assert second.client.opening is Op.ATTACH
    assert second.client_got == [Established(None, [])]
    assert second.server_got == [Opened(Op.ATTACH, ())]
    assert pair.server.open_connections() == (first.server, second.server)
    ticket = pair.take(UnlinkRequest(1, b"x"))
    assert second.arrive(ticket) is Verdict.RUN
    assert len(second.answer(ticket, UnlinkReply())) == 1


def test_more_connections_than_agreed() -> None:
    pair = Pair()
    first, _ = pair.open(), pair.open()
    third = pair.connect()
    third.up(third.client.start())
    assert refused(third) == (ErrorCode.LIMIT, "2 connections are agreed")
    assert first.client.established, "the others go on"
    assert not pair.client.lost


def test_attach_needs_the_secret() -> None:
    pair = Pair()
    first = pair.open()
    line = Line(pair.client.connection(), pair.server.connection(body_crc=False))
    line.client.start()
    forged = encode_request(None, 1, AttachRequest(bytes(16), Secret(32), ()))
    line.up([reference.frame(forged, checksum=True)])
    (lost,) = line.run()
    assert lost == Lost("the server closed the connection: the session goes on elsewhere, or has to be resumed", None)
    assert pair.client.lost
    assert first.server.current


def test_attach_needs_an_open_connection() -> None:
    """As where a copy of the client holds the secret and the server has seen its connections die."""
    pair = Pair()
    first = pair.open()
    second = pair.connect()
    data = second.client.start()
    first.server.received(0)
    assert isinstance(first.events()[0], Close)
    second.up(data)
    (lost,) = second.run()
    assert isinstance(lost, Lost)
    assert pair.client.lost
    assert pair.connect().client.opening is Op.RESUME


def test_no_attach_after_a_loss() -> None:
    pair = Pair()
    first, second = pair.open(), pair.connect()
    first.client.lost()
    with pytest.raises(LocalProtocolError, match="a connection of the session was lost"):
        second.client.start()
    assert pair.connect().client.opening is Op.RESUME


# ---- RESUME and CONFIRM ---------------------------------------------------------------------------------------------


def test_resume_leaves_the_others_alone_until_confirm() -> None:
    pair = Pair()
    first = pair.open()
    old = pair.client._secret
    first.client.lost()
    second = pair.connect()
    assert second.client.opening is Op.RESUME
    assert second.up(second.client.start()) == [Opened(Op.RESUME, ())]
    assert first.server.current
    assert second.down(second.to_client) == []
    second.to_client.clear()
    assert first.server.current
    assert second.up(second.to_server) == [Opened(Op.CONFIRM, (first.server,))]
    second.to_server.clear()
    assert [line.server.current for line in (first, second)] == [False, True]
    assert second.run() == [Established(None, [])]
    assert pair.client._secret == pair.server._secret != old
    assert pair.client.epoch == 2
    assert first.events() == [Close("the session goes on with newer connections", None)]


def resume_with(pair: Pair, **changes: Any) -> tuple[ErrorCode, str]:
    """A client that sends a changed RESUME: how it is refused."""
    assert pair.client.agreed is not None
    assert pair.client._secret is not None
    request = ResumeRequest(bytes(16), pair.client._secret, (0,) * 6, ())._replace(**changes)
    line = Line(pair.client.connection(), pair.server.connection(body_crc=False))
    line.up([reference.frame(encode_request(None, 1, request), checksum=True)])
    close = line.server_got[-1]
    assert isinstance(close, Close)
    assert close.error is not None
    return close.error.code, close.error.text


def test_resume_refused() -> None:
    pair = Pair()
    line = pair.open()
    ticket = pair.take(UnlinkRequest(1, b"x"))
    line.arrive(ticket)
    line.answer(ticket, UnlinkReply())
    stale = ErrorCode.STALE
    assert resume_with(pair, secret=Secret(32)) == (stale, "the session goes on elsewhere")
    assert resume_with(pair, session=b"another session!") == (stale, "the server does not know this session")
    past = "slot 0 is at 1 and the client at 0: it is a copy from the past"
    assert resume_with(pair) == (stale, past)
    assert resume_with(pair, seqs=(1, 0)) == (ErrorCode.PROTOCOL, "2 seqs for 6 slots")
    future = "slot 0 is at 1 and the client at 3"
    assert resume_with(pair, seqs=(3, 0, 0, 0, 0, 0)) == (ErrorCode.PROTOCOL, future)
    assert line.server.current, "none of them touched the session"
    assert len(pair.server.open_connections()) == 1


def test_resume_reports_what_was_sent() -> None:
    pair = Pair()
    line = pair.open()
    sent, unsent = pair.take(UnlinkRequest(1, b"sent")), pair.take(UnlinkRequest(1, b"unsent"))
    line.client.request(sent)
    line.client.lost()
    resume = opening(b"".join(pair.connect().client.start()))
    assert isinstance(resume, ResumeRequest)
    assert resume.seqs == (1, 0, 0, 0, 0, 0)
    assert pair.client.unanswered() == [sent, unsent]


def test_confirm_refused() -> None:
    pair = Pair()
    pair.open().client.lost()
    line = pair.connect()
    line.up(line.client.start())
    confirm = encode_request(None, 2, ConfirmRequest(Secret(32)))
    (close,) = line.up([reference.frame(confirm, number=1, checksum=False)])
    assert isinstance(close, Close)
    assert close.reason == "CONFIRM with another secret than the one of the RESUME reply"
    assert pair.server.open_connections() != ()


def test_nothing_but_confirm_after_resume() -> None:
    for header in (encode_request(0, 1, UnlinkRequest(1, b"x")), reference.request("ping", None, 2, ())):
        pair = Pair()
        pair.open().client.lost()
        line = pair.connect()
        line.up(line.client.start())
        (close,) = line.up([reference.frame(header, number=1, checksum=False)])
        assert isinstance(close, Close)
        assert close.reason in ("UNLINK before CONFIRM", "PING before CONFIRM")


def test_the_newer_secret_is_tried_first_and_then_the_older() -> None:
    """Cut after the RESUME reply: CONFIRM never arrived, and the server has noticed the loss or has not."""
    for noticed in (False, True):
        pair = Pair()
        pair.open().client.lost()
        cut = pair.connect()
        cut.up(cut.client.start())
        cut.down(cut.to_client)
        assert cut.to_server, "CONFIRM, which is lost"
        cut.client.lost()
        if noticed:
            cut.server.received(0)
            cut.events()
        newer = pair.connect()
        newer.up(newer.client.start())
        if noticed:
            (lost,) = newer.run()
            assert lost == Lost("the server closed the connection: the session goes on elsewhere", None)
            newer = pair.open()
            assert newer.client.opening is Op.RESUME
        else:
            newer.run()
        assert newer.client.established
        assert pair.server.open_connections() == (newer.server,)


def test_a_late_confirm_does_not_undo_a_newer_resumption() -> None:
    pair = Pair()
    pair.open().client.lost()
    late = pair.connect()
    late.up(late.client.start())
    late.down(late.to_client)
    confirm = late.to_server
    late.client.lost()
    newer = pair.connect()
    newer.up(newer.client.start())
    closed = [event for event in newer.server_got if isinstance(event, Opened)]
    assert late.server in closed[0].superseded
    (close,) = late.up(confirm)
    assert isinstance(close, Close)
    assert close.reason == "the session goes on elsewhere"
    newer.run()
    assert newer.client.established
    assert newer.server.current


def test_a_stale_client_gives_up() -> None:
    pair = Pair()
    pair.open()
    pair.client.lost = True
    pair.server._secret = Secret(32)
    line = pair.connect()
    line.up(line.client.start())
    assert refused(line) == (ErrorCode.STALE, "the session goes on elsewhere")
    assert pair.client.ended
    with pytest.raises(LocalProtocolError, match="the session is over"):
        pair.client.connection()


def test_other_refusals_of_a_resumption_are_not_the_end() -> None:
    pair = Pair()
    pair.open().client.lost()
    line = pair.connect()
    line.client.start()
    events = line.down([refusal(ErrorCode.FAILED, "the directory has vanished")])
    assert events == [Refused(ErrorCode.FAILED, "the directory has vanished", ())]
    assert not pair.client.ended
    assert pair.open().client.established


def test_resumptions_that_wait_are_few() -> None:
    pair = Pair()
    pair.open()
    lines = []
    for _ in range(MAX_WAITING + 3):
        pair.client.lost, pair.client._opening = True, None
        line = pair.connect()
        line.up(line.client.start())
        lines.append(line)
    assert len(pair.server.open_connections()) == MAX_WAITING + 1
    assert [len(line.server_got[0].superseded) for line in lines if isinstance(line.server_got[0], Opened)] == (
        [0] * MAX_WAITING + [1, 1, 1]
    )
    assert lines[MAX_WAITING].server_got == [Opened(Op.RESUME, (lines[0].server,))]
    last = lines[-1]
    last.run()
    assert last.client.established
    (close,) = lines[0].up(
        [reference.frame(reference.request("confirm", None, 2, (bytes(32),)), number=1, checksum=False)]
    )
    assert isinstance(close, Close)


def test_confirm_holds_every_slot() -> None:
    held: list[int] = []
    order: list[int] = []

    @contextmanager
    def lock(slot: int) -> Iterator[None]:
        order.append(slot)
        held.append(slot)
        yield
        held.remove(slot)

    class Locks(list[Any]):
        """A new context manager each time, as these can be used once."""

        def __iter__(self) -> Iterator[Any]:
            return iter([lock(slot) for slot in range(6)])

    pair = Pair(slot_locks=Locks(range(6)))
    pair.open()
    assert order == []
    pair.client.lost = True
    line = pair.connect()
    loads: list[list[int]] = []
    load = pair.store.load

    def watched(slot: int) -> SlotRecord:
        loads.append(list(held))
        return load(slot)

    pair.store.load = watched  # type: ignore[method-assign]  # to look on
    line.up(line.client.start())
    line.run()
    assert order == [*range(6)] * 2, "RESUME and CONFIRM, in ascending order"
    assert loads == [[*range(6)]] * 12, "while they look at the slots no request is being judged"
    assert held == []


# ---- BYE ------------------------------------------------------------------------------------------------------------


def test_bye() -> None:
    pair = Pair()
    first, second = pair.open(), pair.open()
    events = second.up(second.client.bye())
    assert events == [ByeReceived(), Close("the session has ended", None)]
    assert pair.server.ended
    assert second.run() == [Ended()]
    assert pair.client.ended
    assert first.events() == [Close("the session has ended", None)]
    assert second.client.received(0) == [Lost("the server closed the connection", None)]
    with pytest.raises(LocalProtocolError, match="the session is over"):
        pair.client.connection()
    assert pair.server.open_connections() == ()
    pair.client.ended, pair.client.lost = False, True
    assert resume_with(pair) == (ErrorCode.STALE, "the session has ended")


def test_bye_of_a_superseded_connection_ends_nothing() -> None:
    pair = Pair()
    old = pair.open()
    bye = old.client.bye()
    old.client.lost()
    pair.open()
    (close,) = old.up(bye)
    assert isinstance(close, Close)
    assert not pair.server.ended


# ---- misuse ---------------------------------------------------------------------------------------------------------


def test_misuse_of_a_client() -> None:
    pair = Pair()
    with pytest.raises(LocalProtocolError, match="there is no session yet"):
        pair.take(LookupRequest(1, b"x"))
    line = pair.connect()
    with pytest.raises(LocalProtocolError, match="under way already"):
        pair.connect()
    for early in (line.client.ping, line.client.bye):
        with pytest.raises(LocalProtocolError, match="not established"):
            early()
    line.up(line.client.start())
    with pytest.raises(LocalProtocolError, match="has been started"):
        line.client.start()
    line.run()
    line.client.lost()
    with pytest.raises(LocalProtocolError, match="not established"):
        line.client.ping()
    line.client.lost()
    assert line.client.received(5) == []


# ---- a server that breaks the protocol ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (reference.pack([None, 5, 4096, 1]), "a notification of the unknown kind 4096"),
        (reference.pack([None, 7, 0]), "an answer to 7, which was not asked or is answered already"),
        (reference.pack([None, 2, 5]), "PING was answered with the errno 5"),
        (reference.pack([0, 1, 0]), "a reply to a request that was never sent: slot 0, seq 1"),
        (reference.pack([6, 0, 0]), "a reply to a request that was never sent: slot 6, seq 0"),
        (reference.pack([0, None, 0]), "a reply to a request that was never sent: slot 0, seq None"),
        (b"\xc1", "a header is not valid msgpack"),
    ],
)
def test_a_server_that_breaks_the_protocol(header: bytes, says: str) -> None:
    pair = Pair()
    line = pair.open()
    line.client.ping()
    (lost,) = line.down(line.server.frame(header))
    assert isinstance(lost, Lost)
    assert lost.reason.startswith(says)
    assert lost.error is not None
    assert line.client.dead
    assert pair.client.lost


def test_an_error_frame_on_an_open_connection() -> None:
    pair = Pair()
    line = pair.open()
    (lost,) = line.down(line.server.frame(encode_error(ErrorCode.STALE, "the session goes on elsewhere")))
    assert lost == Lost("the server closed the connection: the session goes on elsewhere", None)
    assert not pair.client.ended, "a resumption will tell"


def test_payloads_where_none_belongs() -> None:
    for header in (reference.pack([None, 2, 0]), encode_error(ErrorCode.FAILED, "x")):
        pair = Pair()
        line = pair.open()
        line.client.ping()
        (lost,) = line.down(line.server.frame(header, b"data"))
        assert isinstance(lost, Lost)
        assert lost.reason == "an answer outside the slots has a payload"


def test_a_reply_before_the_connection_is_established() -> None:
    pair = Pair()
    line = pair.connect()
    line.client.start()
    (lost,) = line.down(line.server.frame(reference.pack([0, 1, 0])))
    assert isinstance(lost, Lost)
    assert lost.reason == "a reply came before the connection was established"


def test_the_end_in_the_middle_of_a_frame_is_told() -> None:
    pair = Pair()
    line = pair.open()
    line.client.buffer()[:3] = b"abc"
    assert line.client.received(3) == []
    (lost,) = line.client.received(0)
    assert isinstance(lost, Lost)
    assert lost.error is not None
    assert lost.reason == "the stream ended in the middle of a frame"
    line.server.feed(b"abc")
    assert line.server.next_event() is None
    line.server.received(0)
    assert isinstance(line.server.next_event(), server_session.Answer)
    close = line.server.next_event()
    assert isinstance(close, Close)
    assert close.error is not None
    assert close.reason == "the stream ended in the middle of a frame"


def test_events_before_the_damage_are_delivered() -> None:
    pair = Pair()
    line = pair.open()
    line.up(line.client.ping())
    good = b"".join(line.to_client)
    events = line.down([good + b"x" * 16])
    assert [type(event) for event in events] == [Pong, Lost]


def test_secrets_are_in_no_event() -> None:
    pair = Pair()
    line = pair.open()
    line.client.lost()
    line = pair.connect()
    line.server.feed(b"".join(line.client.start()))
    answer = line.server.next_event()
    assert isinstance(answer, server_session.Answer)
    shown = [repr(answer), repr(line.server.next_event()), repr(pair.client.agreed), str(pair.server.agreed)]
    frame = b"".join(line.server.frame(answer.header))
    line.client.buffer()[: len(frame)] = frame
    (send,) = line.client.received(len(frame))
    assert isinstance(send, client_session.Send)
    shown.append(repr(send))
    assert not [
        text for text in shown if "\\x02\\x00\\x02" in text or "\\x01\\x00\\x01" in text or "\\x00\\x02\\x00" in text
    ]
