"""The golden and invalid vectors of protocol/vectors, through fusepipe.wire and through the reference, both ways."""

from collections.abc import Callable
from typing import Any

import pytest

from fusepipe.wire import (
    MAX_HEADER,
    ROWS,
    Attr,
    ClientConnection,
    ClientSession,
    DirectoryEntry,
    Entry,
    ErrorCode,
    FrameReceiver,
    FrameSender,
    HelloRequest,
    ListServerStore,
    Op,
    RemoteProtocolError,
    Secret,
    ServerConnection,
    ServerLimits,
    ServerSession,
    SlotKind,
    Verdict,
    client_session,
    decode_error,
    decode_reply,
    decode_request,
    encode_errno,
    encode_error,
    encode_reply,
    encode_request,
    opening,
    pack_entry,
    read_page,
    refusal,
    server_session,
)
from fusepipe.wire.slots import KIND_OF_CHANNEL

from . import reference
from .pair import pour

CHUNKS = [1, 7, 1 << 20]


def named(vectors: list[dict[str, Any]]) -> list[Any]:
    """One test per vector, with an id that finds it again."""
    keys = ("op", "kind", "name", "text", "why")
    return [
        pytest.param(vector, id=f"{index}-" + "-".join(str(vector[key]) for key in keys if key in vector)[:60])
        for index, vector in enumerate(vectors)
    ]


def message(kind: type[tuple[Any, ...]], values: tuple[Any, ...], types: list[str]) -> tuple[Any, ...]:
    """The message of these values, structs included."""
    made: dict[str, Callable[[Any], Any]] = {
        "attr": lambda value: Attr(*value),
        "entry": lambda value: Entry(value[0], Attr(*value[1])),
    }
    return kind(*(made[name](v) if name in made else v for name, v in zip(types, values, strict=True)))


# ---- messages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", named(reference.vectors("messages")))
def test_message(vector: dict[str, Any]) -> None:
    row = reference.OPS[vector["op"]]
    op = Op(row["number"])
    slot, seq, header = vector["slot"], vector["seq"], bytes.fromhex(vector["header"])
    if vector["kind"] == "error":
        assert encode_errno(slot, seq, vector["errno"]) == header
        assert decode_reply(op, header) == (slot, seq, vector["errno"], None)
        return
    fields = row[vector["kind"]]
    values = reference.fields_from_json(fields, vector["fields"])
    types = [field[1] for field in fields]
    if vector["kind"] == "request":
        made = message(ROWS[op].request, values, types)
        assert reference.request(vector["op"], slot, seq, values) == header
        assert encode_request(slot, seq, made) == header
        decoded = decode_request(header)
        assert decoded == (slot, seq, op, made)
    else:
        made = message(ROWS[op].reply, values, types)
        assert reference.reply(vector["op"], slot, seq, values) == header
        assert encode_reply(slot, seq, op, made) == header
        reply = decode_reply(op, header)
        assert reply == (slot, seq, 0, made)
        decoded = reply  # type: ignore[assignment]  # both have a message
    assert type(decoded.message) is type(made)
    assert [type(value) for value in decoded.message] == [
        Secret if name == "secret" else type(value) for name, value in zip(types, made, strict=True)
    ]


# ---- frames ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("vector", named(reference.vectors("frames")))
def test_frames(vector: dict[str, Any], chunk: int) -> None:
    frames = [(bytes.fromhex(frame["header"]), bytes.fromhex(frame["payload"])) for frame in vector["frames"]]
    data = bytes.fromhex(vector["bytes"])
    sender = FrameSender()
    sender.body_crc = vector["checksums"]
    assert b"".join(b"".join(sender.frame(*frame)) for frame in frames) == data
    receiver = FrameReceiver(MAX_HEADER, 1 << 20)
    receiver.body_crc = vector["checksums"]
    got = []
    for _ in pour(receiver, data, lambda: chunk):
        while (frame := receiver.next()) is not None:
            got.append((frame.header, bytes(frame.payload)))
    assert got == frames
    receiver.received(0)


# ---- error frames ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", named(reference.vectors("errors")))
def test_error_frame(vector: dict[str, Any]) -> None:
    header = bytes.fromhex(vector["header"])
    detail = tuple(
        bytes.fromhex(item[4:]) if isinstance(item, str) and item.startswith("hex:") else item
        for item in vector["detail"]
    )
    assert decode_error(header) == (ErrorCode(vector["code"]), vector["text"], detail)
    if vector["text"] != "a code of a later version":
        assert encode_error(ErrorCode(vector["code"]), vector["text"], *detail) == header
        assert refusal(ErrorCode(vector["code"]), vector["text"], *detail).hex() == vector["frame"]
    connection = ClientSession(offer_of_example(), body_crc=False).connection()
    connection.start()
    data = bytes.fromhex(vector["frame"])
    connection.buffer()[: len(data)] = data
    events = connection.received(len(data))
    assert events == [client_session.Refused(ErrorCode(vector["code"]), vector["text"], detail)]
    assert connection.dead


# ---- directory pages ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", named(reference.vectors("directory")))
def test_directory_page(vector: dict[str, Any]) -> None:
    entries = [
        DirectoryEntry(
            int(entry["node"]),
            int(entry["ino"]),
            int(entry["offset"]),
            entry["type"],
            bytes.fromhex(entry["name"]),
            Attr(*reference.from_json("attr", entry["attr"])) if entry["attr"] else None,
        )
        for entry in vector["entries"]
    ]
    page = bytes.fromhex(vector["page"])
    assert list(read_page(page)) == entries
    assert list(read_page(memoryview(page))) == entries
    assert b"".join(map(pack_entry, entries)) == page


# ---- conversations --------------------------------------------------------------------------------------------------


def offer_of_example() -> HelloRequest:
    return HelloRequest(b"fusepipe", 1, 0, 0, (), b"home", 2, 1, 0, 2, 65536, 65536, 1048576, 255, "example")


class Replay:
    """Both ends of one conversation, which must send exactly the frames of its steps."""

    def __init__(self, checksums: bool) -> None:
        secrets = iter((bytes(range(32, 64)), bytes(range(64, 96))))
        self.client = ClientSession(offer_of_example(), body_crc=checksums)
        self.server = ServerSession(
            bytes(range(16)),
            ServerLimits(),
            ListServerStore(ServerLimits().slots),
            token_bytes=lambda count: next(secrets),
            read_only=False,
            software="example",
        )
        self.clients: dict[int, ClientConnection] = {}
        self.servers: dict[int, ServerConnection] = {}
        self.to_send: dict[int, bytes] = {}
        """What the client's events want to be sent next, by connection."""
        self.answers: dict[int, list[bytes]] = {}
        self.kept: dict[int, tuple[bytes, bytes]] = {}

    def client_sends(self, number: int, header: bytes, payload: bytes) -> bytes:
        """What the client sends for a step that has this header."""
        if number in self.to_send:
            return self.to_send.pop(number)
        slot, seq, op, request = decode_request(header)
        if op in (Op.HELLO, Op.ATTACH, Op.RESUME):
            if op is Op.RESUME:
                for connection in self.clients.values():
                    connection.lost()
            connection = self.clients[number] = self.client.connection()
            assert connection.opening is op
            return b"".join(connection.start())
        connection = self.clients[number]
        if op is Op.PING:
            return b"".join(connection.ping())
        if op is Op.BYE:
            return b"".join(connection.bye())
        waiting = {ticket.slot: ticket for ticket in self.client.unanswered()}
        if op is Op.INTERRUPT:
            return b"".join(connection.interrupt(waiting[request[0]].slot, waiting[request[0]].seq))
        assert slot is not None
        ticket = waiting.get(slot)
        if ticket is None:
            ticket = self.client.take(KIND_OF_CHANNEL[ROWS[op].channel], request, payload)
        assert ticket is not None
        assert (ticket.slot, ticket.seq, ticket.request) == (slot, seq, request)
        return b"".join(connection.request(ticket))

    def server_takes(self, number: int, data: bytes) -> None:
        connection = self.servers.setdefault(number, self.server.connection(body_crc=False))
        connection.feed(data)
        while (event := connection.next_event()) is not None:
            if isinstance(event, server_session.Answer):
                self.answers.setdefault(number, []).append(event.header)
            elif isinstance(event, server_session.Arrived):
                verdict = connection.arrive(event)
                if verdict is Verdict.REPLAY:
                    kept = self.server.store.reply(event.slot)
                    assert kept is not None
                    self.kept[number] = (kept.header, bytes(kept.payload))
                else:
                    assert verdict is Verdict.RUN
            elif isinstance(event, server_session.Close):
                assert event.error is not None or self.server.ended

    def server_sends(self, number: int, header: bytes, payload: bytes) -> bytes:
        """What the server sends for a step that has this header."""
        connection = self.servers[number]
        if self.answers.get(number):
            return b"".join(connection.frame(self.answers[number].pop(0)))
        if number in self.kept:
            return b"".join(connection.frame(*self.kept.pop(number)))
        slot, seq, errno = reference_start(header)
        op = Op(self.server.store.load(slot).op)
        reply = decode_reply(op, header).message
        made = encode_errno(slot, seq, errno) if reply is None else encode_reply(slot, seq, op, reply)
        assert self.server.finish(slot, seq, made, payload) is connection
        return b"".join(connection.frame(made, payload))

    def client_takes(self, number: int, data: bytes) -> list[client_session.Event]:
        connection = self.clients[number]
        connection.buffer()[: len(data)] = data
        events = connection.received(len(data))
        for event in events:
            if isinstance(event, client_session.Send):
                self.to_send[number] = b"".join(event.buffers)
        return events


def reference_start(header: bytes) -> tuple[int, int, int]:
    """Slot, seq and errno of a reply that is no control message's."""
    reply = decode_reply(Op.UNLINK, header)
    assert reply.slot is not None
    return reply.slot, reply.seq, reply.errno


@pytest.mark.parametrize("vector", named(reference.vectors("conversations")))
def test_conversation(vector: dict[str, Any]) -> None:
    replay = Replay(checksums="checksums" in vector["name"])
    numbers: dict[tuple[int, str], int] = {}
    for step in vector["steps"]:
        header, payload, frame = (bytes.fromhex(step[key]) for key in ("header", "payload", "frame"))
        number, what = step["connection"], step["what"]
        count = numbers[number, step["from"]] = numbers.get((number, step["from"]), -1) + 1
        checksum = count == 0 or "checksums" in vector["name"]
        assert reference.frame(header, payload, count, checksum=checksum) == frame, what
        if step["from"] == "client":
            if "version 2" not in what:
                assert replay.client_sends(number, header, payload) == frame, what
            if "lost" not in what:
                replay.server_takes(number, frame)
        else:
            assert replay.server_sends(number, header, payload) == frame, what
            if "lost" not in what and number in replay.clients:
                assert replay.client_takes(number, frame) or "INTERRUPT" in what
    assert not replay.to_send
    assert not replay.kept
    assert not any(replay.answers.values())
    assert replay.client.unanswered() == []


# ---- invalid bytes --------------------------------------------------------------------------------------------------


def refuse_stream(data: bytes) -> RemoteProtocolError:
    """What a server that is new says to a client that sends this on a new connection, and then closes it."""
    session = ServerSession(
        bytes(16), ServerLimits(), ListServerStore(132), token_bytes=lambda count: bytes(count), read_only=False
    )
    connection = session.connection(body_crc=False)
    answers = []
    receiver = memoryview(data)
    while True:
        while (event := connection.next_event()) is not None:
            if isinstance(event, server_session.Answer):
                answers.append(event.header)
            elif isinstance(event, server_session.Arrived):
                try:
                    connection.arrive(event)
                except RemoteProtocolError as error:
                    answer, event = connection.fail(error)
                    answers.append(answer.header)
            if isinstance(event, server_session.Close):
                assert event.error is not None, event.reason
                assert decode_error(answers[-1]) == (event.error.code, event.error.text, event.error.detail)
                assert session.open_connections() == ()
                assert connection.next_event() is None
                return event.error
        buffer = connection.buffer()
        count = min(len(buffer), len(receiver))
        buffer[:count] = receiver[:count]
        connection.received(count)
        receiver = receiver[count:]


@pytest.mark.parametrize("vector", named(reference.vectors("invalid")))
def test_invalid(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["bytes"])
    if vector["kind"] in ("first", "stream"):
        error = refuse_stream(data)
    else:
        with pytest.raises(RemoteProtocolError) as caught:
            if vector["kind"] == "request":
                decode_request(data)
            elif vector["kind"] == "reply":
                decode_reply(Op(reference.OPS[vector["op"]]["number"]), data)
            elif vector["kind"] == "error":
                decode_error(data)
            else:
                assert vector["kind"] == "page"
                list(read_page(data))
        error = caught.value
    assert vector["why"] in error.text
    assert error.code == vector["code"]
    assert str(error) == error.text


@pytest.mark.parametrize("vector", named([v for v in reference.vectors("invalid") if v["kind"] == "first"]))
def test_invalid_first_frame_is_refused_before_it_reaches_a_session(vector: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        opening(bytes.fromhex(vector["bytes"]))
    assert vector["why"] in caught.value.text
    assert caught.value.code == vector["code"]


def test_every_slot_kind_of_the_table_is_known() -> None:
    assert {row.channel for row in ROWS.values()} - {"control"} == set(KIND_OF_CHANNEL)
    assert set(KIND_OF_CHANNEL.values()) <= set(SlotKind)
