"""The rules of slots in C and in Python: whatever a client sends, both answer the same and do the same.

Each example goes to two sessions, one of which runs natively: requests in any slot, new ones, ones that are sent again,
and ones that break the rules, on two connections.
"""

import os
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from fusepipe.wire import FrameReceiver, FrameSender, Message, decode_reply, encode_request
from fusepipe.wire import messages as m
from fusepipe.wire.codec import unpack
from fusepipe.wire.frames import MAX_HEADER
from tests.server.served import Served, serving
from tests.server.sessions import PATIENCE, offer

REQUESTS: tuple[Message, ...] = (
    m.MkdirRequest(1, b"d", 0o755, 0, 0, 0, ()),
    m.RmdirRequest(1, b"d"),
    m.MkdirRequest(1, b"e", 0o755, 0, 0, 0, ()),
    m.RenameRequest(1, b"d", 1, b"e", 0),
    m.GetattrRequest(1, 0),
    m.LookupRequest(1, b"missing"),
    m.StatfsRequest(1),
)
"""Ones whose answers tell how often they were run, ones that may be repeated, and one that Python runs in any case."""


@dataclass(frozen=True)
class Step:
    """A request in a slot, `ahead` of the last seq that was sent there: 1 is a new one, 0 the last one again."""

    slot: int
    ahead: int
    request: int
    connection: int
    other: bool
    """Whether a request that is sent again may be another one."""


steps = st.builds(
    Step,
    slot=st.sampled_from([0, 0, 1, 2]),
    ahead=st.sampled_from([1, 1, 1, 1, 1, 0, 0, 0, 2, -1]),
    request=st.integers(0, len(REQUESTS) - 1),
    connection=st.integers(0, 1),
    other=st.sampled_from([False, False, False, True]),
)


class Raw:
    """One connection of a client that keeps to no rules."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sock.settimeout(PATIENCE)
        self._sender = FrameSender()
        self._receiver = FrameReceiver(MAX_HEADER, 1 << 20)
        self._counter = 0

    def close(self) -> None:
        self._sock.close()

    def send(self, header: bytes) -> None:
        """A frame; without effect where the server has closed the connection."""
        try:
            self._sock.sendall(b"".join(self._sender.frame(header)))
        except (BrokenPipeError, ConnectionResetError):
            return

    def ask(self, request: Message) -> None:
        """A request outside the slots."""
        self._counter += 1
        self.send(encode_request(None, self._counter, request))

    def receive(self) -> bytes | None:
        """The header of the next frame; None at the end."""
        while (frame := self._receiver.next()) is None:
            try:
                count = self._sock.recv_into(self._receiver.buffer())
            except ConnectionResetError:
                count = 0
            if not count:
                return None
            self._receiver.received(count)
        return bytes(frame.header)


def transcript(served: Served, wanted: list[Step]) -> list[object]:
    """What becomes of each step, until the server closes the connection."""
    seen: list[object] = []
    seqs = [0, 0, 0]
    sent: dict[tuple[int, int], Message] = {}
    replies: dict[tuple[int, int], bytes] = {}
    connections = [Raw(served.connect())]
    try:
        connections[0].ask(offer())
        opened = connections[0].receive()
        assert opened is not None
        hello = decode_reply(m.Op.HELLO, opened).message
        assert isinstance(hello, m.HelloReply)
        connections.append(Raw(served.connect()))
        connections[1].ask(m.AttachRequest(hello.session, hello.secret, ()))
        assert connections[1].receive() is not None
        for step in wanted:
            place = step.slot, max(0, seqs[step.slot] + step.ahead)
            request = sent.setdefault(place, REQUESTS[step.request])
            if step.other:
                request = REQUESTS[step.request]
            on = connections[step.connection]
            on.send(encode_request(*place, request))
            header = on.receive()
            if header is None or (values := unpack(header))[0] is None:
                seen.append("closed")
                break
            seen.append((type(request).__name__, *values[:3]))  # the rest has times and numbers of this disk
            again = replies.setdefault(place, header)
            if isinstance(request, m.MkdirRequest | m.RmdirRequest | m.RenameRequest):
                assert header == again, "what was done is answered as it was"
            seqs[step.slot] = place[1]
        return seen
    finally:
        for connection in connections:
            connection.close()


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, max_size=25))
def test_both_go_by_the_same_rules(wanted: list[Step]) -> None:
    found = []
    for native in (True, False):
        with tempfile.TemporaryDirectory() as place:
            with serving(Path(place), native=native) as served:
                seen = transcript(served, wanted)
            found.append((seen, sorted(os.listdir(place))))
    assert found[0] == found[1]
