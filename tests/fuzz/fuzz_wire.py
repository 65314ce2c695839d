"""Any bytes, to every part of the wire that takes bytes from a peer.

`one(data)` is the target: it returns, or raises RemoteProtocolError, and nothing else; its first byte chooses the part.
Run alone it mutates the golden and invalid vectors, the same way for the same seed:

    python tests/fuzz/fuzz_wire.py --seconds 60
    python tests/fuzz/fuzz_wire.py --runs 100000 --seed 7
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from fusepipe.wire import (
    ROWS,
    ClientConnection,
    ClientSession,
    FrameReceiver,
    FrameSender,
    HelloRequest,
    ListServerStore,
    Op,
    RemoteProtocolError,
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
    first_frame_size,
    opening,
    read_page,
    server_session,
)
from fusepipe.wire.messages import CleanupRequest, LookupRequest, ReadRequest, UnlinkRequest

VECTORS = Path(__file__).resolve().parents[2] / "protocol" / "vectors"
LIMITS = ServerLimits(
    request_slots=3, cleanup_slots=1, lock_slots=1, max_read=8192, max_write=8192, max_in_flight=20_000
)
OFFER = HelloRequest(b"fusepipe", 1, 0, 0, (), b"home", 3, 1, 1, 2, 8192, 8192, 20_000, 255, "fuzz")
OPS = sorted(ROWS)


# ---- the parts ------------------------------------------------------------------------------------------------------


def _frames(data: bytes) -> None:
    receiver = FrameReceiver(1000, 5000)
    receiver.body_crc = bool(data[:1] == b"\1")
    _give(receiver.buffer, receiver.received, data[1:], lambda: _take_all(receiver))
    receiver.received(0)


def _take_all(receiver: FrameReceiver) -> None:
    while receiver.next() is not None:
        pass


def _first_frame(data: bytes) -> None:
    if len(data) >= 16:
        first_frame_size(data[:16])
    opening(data)


def _request(data: bytes) -> None:
    decode_request(data)


def _reply(data: bytes) -> None:
    decode_reply(OPS[data[0] % len(OPS)] if data else Op.LOOKUP, data[1:])


def _error(data: bytes) -> None:
    decode_error(data)


def _page(data: bytes) -> None:
    for _ in read_page(data):
        pass


def _server_bytes(data: bytes) -> None:
    """A server that is new gets these bytes."""
    connection = _session().connection(body_crc=False)
    _serve(connection, data)


def _server_headers(data: bytes) -> None:
    """A server gets these headers in good frames, after a good HELLO."""
    session = _session()
    connection = session.connection(body_crc=False)
    client = ClientSession(OFFER, body_crc=False).connection()
    _serve(connection, b"".join(client.start()))
    sender = client._sender
    for header, payload in _split(data):
        _serve(connection, b"".join(sender.frame(header, payload)))


def _client_bytes(data: bytes) -> None:
    """A client that is new gets these bytes."""
    session = ClientSession(OFFER, body_crc=False)
    connection = session.connection()
    connection.start()
    _use(connection, data)


def _client_headers(data: bytes) -> None:
    """A client with requests under way gets these headers in good frames."""
    session = ClientSession(OFFER, body_crc=False)
    connection = session.connection()
    server = _session().connection(body_crc=False)
    server.feed(b"".join(connection.start()))
    answer = server.next_event()
    assert isinstance(answer, server_session.Answer)
    _use(connection, b"".join(server.frame(answer.header)))
    for request in (LookupRequest(1, b"x"), ReadRequest(1, 0, 100), UnlinkRequest(1, b"y")):
        ticket = session.take(SlotKind.REQUEST, request)
        assert ticket is not None
        connection.request(ticket)
    ticket = session.take(SlotKind.CLEANUP, CleanupRequest((), (), ()))
    assert ticket is not None
    connection.request(ticket)
    connection.ping()
    connection.bye()
    sender = FrameSender()
    sender.frame(b"the first")
    for header, payload in _split(data):
        _use(connection, b"".join(sender.frame(header, payload)))
    in_flight = sum(ticket.in_flight for ticket in session.unanswered())
    assert session.in_flight == in_flight


def _resumed_headers(data: bytes) -> None:
    """A client that resumes gets these headers in good frames."""
    session = ClientSession(OFFER, body_crc=False)
    connection = session.connection()
    server = _session().connection(body_crc=False)
    server.feed(b"".join(connection.start()))
    answer = server.next_event()
    assert isinstance(answer, server_session.Answer)
    _use(connection, b"".join(server.frame(answer.header)))
    connection.lost()
    again = session.connection()
    again.start()
    sender = FrameSender()
    for header, payload in _split(data):
        _use(again, b"".join(sender.frame(header, payload)))


PARTS: list[Callable[[bytes], None]] = [
    _frames,
    _first_frame,
    _request,
    _reply,
    _error,
    _page,
    _server_bytes,
    _server_headers,
    _client_bytes,
    _client_headers,
    _resumed_headers,
]


def one(data: bytes) -> None:
    """One input.  Raises nothing but RemoteProtocolError."""
    if data:
        PARTS[data[0] % len(PARTS)](data[1:])


# ---- their surroundings ---------------------------------------------------------------------------------------------


def _session() -> ServerSession:
    return ServerSession(
        bytes(16), LIMITS, ListServerStore(LIMITS.slots), token_bytes=lambda size: bytes(size), read_only=False
    )


def _split(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Headers and payloads: two bytes with the length of a header, one with that of a payload, and both."""
    while len(data) > 3:
        header, payload = int.from_bytes(data[:2], "big"), data[2]
        yield data[3 : 3 + header] or b"\0", data[3 + header : 3 + header + payload]
        data = data[3 + header + payload :]


def _give(
    buffer: Callable[[], memoryview], received: Callable[[int], Any], data: bytes, after: Callable[[], Any]
) -> None:
    view = memoryview(data)
    while view:
        target = buffer()
        assert len(target) > 0
        # In pieces that depend on the data, so that the edges of the buffers are met.
        count = min(len(target), len(view), 1 + (len(view) * 7919) % 997)
        target[:count] = view[:count]
        received(count)
        view = view[count:]
        after()


def _serve(connection: ServerConnection, data: bytes) -> None:
    closed = connection.next_event() is not None
    refused: list[RemoteProtocolError] = []

    def events() -> None:
        while (event := connection.next_event()) is not None:
            if isinstance(event, server_session.Answer):
                connection.frame(event.header)
            elif isinstance(event, server_session.Arrived):
                try:
                    verdict = connection.arrive(event)
                except RemoteProtocolError as error:
                    connection.fail(error)
                    refused.append(error)
                    return
                if verdict is Verdict.RUN and event.op is not Op.FSYNC:
                    header = encode_errno(event.slot, event.seq, 5)
                    assert connection.session.finish(event.slot, event.seq, header) is connection
            elif isinstance(event, server_session.Close) and event.error is not None:
                refused.append(event.error)

    if not closed:
        _give(connection.buffer, connection.received, data, events)
    if refused:
        raise refused[0]


def _use(connection: ClientConnection, data: bytes) -> None:
    events: list[client_session.Event] = []
    _give(connection.buffer, lambda count: events.extend(connection.received(count)), data, lambda: None)
    for event in events:
        if isinstance(event, client_session.Lost) and event.error is not None:
            raise event.error


# ---- inputs ---------------------------------------------------------------------------------------------------------


def corpus() -> list[bytes]:
    """Good and bad inputs for every part, from the vectors."""

    def load(name: str) -> list[dict[str, Any]]:
        loaded: list[dict[str, Any]] = json.loads((VECTORS / f"{name}.json").read_text())["vectors"]
        return loaded

    made: list[tuple[Callable[[bytes], None], bytes]] = []
    for vector in load("messages"):
        header = bytes.fromhex(vector["header"])
        number = next(index for index, op in enumerate(OPS) if op.name.lower() == vector["op"])
        packed = len(header).to_bytes(2, "big") + b"\0" + header
        if vector["kind"] == "request":
            made += [(_request, header), (_server_headers, packed)]
        else:
            made += [(_reply, bytes([number]) + header), (_client_headers, packed), (_resumed_headers, packed)]
    for vector in load("frames"):
        made += [(_frames, b"\0" + bytes.fromhex(vector["bytes"])), (_frames, b"\1" + bytes.fromhex(vector["bytes"]))]
    for vector in load("errors"):
        made += [(_error, bytes.fromhex(vector["header"])), (_client_bytes, bytes.fromhex(vector["frame"]))]
    made += [(_page, bytes.fromhex(vector["page"])) for vector in load("directory")]
    for vector in load("conversations"):
        for number in {step["connection"] for step in vector["steps"]}:
            for end, part in (("client", _server_bytes), ("server", _client_bytes)):
                frames = [s["frame"] for s in vector["steps"] if (s["connection"], s["from"]) == (number, end)]
                made.append((part, bytes.fromhex("".join(frames))))
    parts = {"first": _first_frame, "stream": _server_bytes, "request": _request, "error": _error, "page": _page}
    made += [(parts[v["kind"]], bytes.fromhex(v["bytes"])) for v in load("invalid") if v["kind"] in parts]
    return [bytes([PARTS.index(part)]) + data for part, data in made]


INTERESTING = [
    b"\xc0", b"\xc2", b"\xc3", b"\x00", b"\x7f", b"\xff", b"\xcc\xff", b"\xcf" + b"\xff" * 8, b"\xd3\x80" + bytes(7),
    b"\x90", b"\x9f", b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc4\x00", b"\xc4\xff", b"\xc6\x7f\xff\xff\xff",
    b"\xa0", b"\xa1\xff", b"\x80", b"\x81\x90\x01", b"\xd4\xff\x00", b"\xd6\xff\x00\x00\x00\x00", b"\xc7\x00\x05",
    b"\xca\x7f\xc0\x00\x00", b"\xcb" + bytes(8), b"fusepipe", b"\x91" * 40,
]  # fmt: skip


def mutate(data: bytes, others: list[bytes], random: Random) -> bytes:
    """The input with one to six changes."""
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
        at = random.randrange(len(out) + 1)
        choice = random.randrange(7)
        if choice == 0 and at < len(out):
            out[at] ^= 1 << random.randrange(8)
        elif choice == 1 and at < len(out):
            out[at] = random.randrange(256)
        elif choice == 2:
            out[at : at + random.choice((0, 1, 2, 4))] = random.choice(INTERESTING)
        elif choice == 3:
            del out[at : at + random.choice((1, 1, 2, 8, 1000))]
        elif choice == 4:
            other = random.choice(others)
            start = random.randrange(len(other) + 1)
            out[at:at] = other[start : start + random.choice((1, 4, 20, 1000))]
        elif choice == 5:
            piece = out[at : at + random.choice((1, 4, 20))]
            out[at:at] = piece * random.choice((1, 2, 50))
        else:
            out[at:at] = random.randbytes(random.choice((1, 2, 8)))
    return bytes(out[:20_000])


def loop(runs: int | None, seconds: float | None, seed: int) -> tuple[int, int]:
    """Mutates and runs, for so many runs or seconds: how many inputs there were, and how many were refused."""
    random = Random(seed)
    inputs = corpus()
    pool = list(inputs)
    end = time.monotonic() + seconds if seconds is not None else None
    count = refused = 0
    while (runs is None or count < runs) and (end is None or time.monotonic() < end):
        data = inputs[count] if count < len(inputs) else mutate(random.choice(pool), inputs, random)
        try:
            one(data)
        except RemoteProtocolError:
            refused += 1
        except BaseException:
            print(f"seed {seed}, run {count}: {data.hex()}", file=sys.stderr)
            raise
        else:
            if count >= len(inputs) and len(pool) < 5000:
                pool.append(data)
        count += 1
    return count, refused


def main() -> int:
    parser = argparse.ArgumentParser(description="Give the wire any bytes; only RemoteProtocolError may come out.")
    parser.add_argument("--seconds", type=float, help="how long (default: 10, if --runs is not given)")
    parser.add_argument("--runs", type=int, help="how many inputs")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same inputs (default: 0)")
    parser.add_argument("--input", help="one input, in hex, as a failure prints it")
    options = parser.parse_args()
    if options.input is not None:
        one(bytes.fromhex(options.input))
        return 0
    seconds = options.seconds if options.seconds is not None or options.runs is not None else 10.0
    count, refused = loop(options.runs, seconds, options.seed)
    print(f"{count} inputs, {refused} refused, none did anything else")
    return 0


if __name__ == "__main__":
    sys.exit(main())
