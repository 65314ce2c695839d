"""What the codec and the frames cost per message, without any socket."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench.memory import put
from fusepipe.wire import (
    MAX_HEADER,
    Attr,
    DirectoryEntry,
    Entry,
    FrameReceiver,
    FrameSender,
    Op,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
    messages,
    pack_entry,
    read_page,
)

Benchmark = Callable[..., Any]  # the fixture of pytest-benchmark has no public type

ATTR = Attr(*range(1, 1 + len(Attr._fields)))
REQUESTS = {
    "lookup": messages.LookupRequest(1, b"some-file-name.txt"),
    "getattr": messages.GetattrRequest(12345, 0),
    "read": messages.ReadRequest(17, 1 << 20, 131_072),
    "write": messages.WriteRequest(17, 1 << 20, 0),
}
REPLIES = {
    "lookup": (Op.LOOKUP, messages.LookupReply(Entry(12345, ATTR))),
    "getattr": (Op.GETATTR, messages.GetattrReply(ATTR)),
    "read": (Op.READ, messages.ReadReply()),
    "write": (Op.WRITE, messages.WriteReply(131_072)),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_encode_request(benchmark: Benchmark, name: str) -> None:
    assert benchmark(encode_request, 3, 1000, REQUESTS[name])


@pytest.mark.parametrize("name", REQUESTS)
def test_decode_request(benchmark: Benchmark, name: str) -> None:
    header = encode_request(3, 1000, REQUESTS[name])
    assert benchmark(decode_request, header).message == REQUESTS[name]


@pytest.mark.parametrize("name", REPLIES)
def test_encode_reply(benchmark: Benchmark, name: str) -> None:
    op, reply = REPLIES[name]
    assert benchmark(encode_reply, 3, 1000, op, reply)


@pytest.mark.parametrize("name", REPLIES)
def test_decode_reply(benchmark: Benchmark, name: str) -> None:
    op, reply = REPLIES[name]
    header = encode_reply(3, 1000, op, reply)
    assert benchmark(decode_reply, op, header).message == reply


@pytest.mark.parametrize("payload", [0, 4096, 131_072])
@pytest.mark.parametrize("checksum", [False, True], ids=["plain", "body-crc"])
def test_frame(benchmark: Benchmark, payload: int, checksum: bool) -> None:
    """One frame made, and taken apart again from the bytes of a receiver's buffer."""
    header, data = encode_request(3, 1000, REQUESTS["write"]), bytes(payload)
    sender, receiver = FrameSender(), FrameReceiver(MAX_HEADER, 1 << 20)

    def there_and_back() -> int:
        for _ in put(sender.frame(header, data), receiver.buffer, receiver.received):
            if (frame := receiver.next()) is not None:
                return len(frame.payload)
        raise AssertionError("no whole frame")

    there_and_back()  # the first frame of a connection always has a checksum
    sender.body_crc = receiver.body_crc = checksum
    assert benchmark(there_and_back) == payload


def test_directory_page(benchmark: Benchmark) -> None:
    """A page of 100 entries, packed and read."""
    entries = [DirectoryEntry(i, i, i, 8, b"file-name-%04d" % i, ATTR) for i in range(1, 101)]

    def there_and_back() -> int:
        return sum(1 for _ in read_page(b"".join(map(pack_entry, entries))))

    assert benchmark(there_and_back) == 100
