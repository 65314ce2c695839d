"""What one request costs: through both ends of the protocol in memory, and through a real mount.

The mounts are made with `--cache none`, so that every call becomes requests; the same calls on a plain directory and
through bindfs stand beside them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.memory import put
from fusepipe.wire import (
    BODY_CRC,
    MAGIC,
    MAJOR,
    MINOR,
    MINOR_MIN,
    Attr,
    Buffer,
    ClientSession,
    HelloRequest,
    ListServerStore,
    ServerLimits,
    ServerSession,
    SlotKind,
    Verdict,
    client_session,
    encode_reply,
    first_frame_size,
    messages,
    server_session,
)
from tests.mount.harness import Mount

Benchmark = Callable[..., Any]  # the fixture of pytest-benchmark has no public type
ATTR = Attr(*range(1, 1 + len(Attr._fields)))


class Ends:
    """Both ends of one connection in one thread, joined by memory instead of a socket."""

    def __init__(self) -> None:
        offer = HelloRequest(
            MAGIC, MAJOR, MINOR_MIN, MINOR, (BODY_CRC,), b"volume", 8, 4, 8, 2, 1 << 20, 1 << 20, 1 << 24, 255, "bench"
        )
        limits = ServerLimits()
        self.client = ClientSession(offer, body_crc=False)
        self.server = ServerSession(
            bytes(16), limits, ListServerStore(limits.slots), token_bytes=os.urandom, read_only=False
        )
        self.near = self.client.connection()
        self.far = self.server.connection(body_crc=False)
        first = b"".join(bytes(part) for part in self.near.start())
        assert first_frame_size(first[:16]) == len(first) - 16
        self.far.feed(first)
        answers: list[Buffer] = []
        while (event := self.far.next_event()) is not None:
            if isinstance(event, server_session.Answer):
                answers += self.far.frame(event.header)
        events = self.deliver(answers)
        assert any(isinstance(event, client_session.Established) for event in events)

    def pump(self, parts: list[Buffer]) -> tuple[list[Buffer], int]:
        """Let the server end take these bytes; what it sends, and how many requests it answered."""
        answers: list[Buffer] = []
        served = 0
        for _ in put(parts, self.far.buffer, self.far.received):
            while (event := self.far.next_event()) is not None:
                if isinstance(event, server_session.Answer):
                    answers += self.far.frame(event.header)
                elif isinstance(event, server_session.Arrived):
                    assert self.far.arrive(event) is Verdict.RUN
                    header = encode_reply(event.slot, event.seq, event.op, messages.GetattrReply(ATTR))
                    assert self.server.finish(event.slot, event.seq, header) is self.far
                    answers += self.far.frame(header)
                    served += 1
        return answers, served

    def deliver(self, parts: list[Buffer]) -> list[client_session.Event]:
        """Let the client end take these bytes."""
        return [event for events in put(parts, self.near.buffer, self.near.received) for event in events]

    def getattr(self) -> int:
        """One GETATTR there and back."""
        ticket = self.client.take(SlotKind.REQUEST, messages.GetattrRequest(1, 0))
        assert ticket is not None
        answers, served = self.pump(self.near.request(ticket))
        (event,) = self.deliver(answers)
        assert isinstance(event, client_session.Replied)
        return served


def test_in_memory(benchmark: Benchmark) -> None:
    """Client session, slots, codec, frames, server session and back, without socket, thread or kernel."""
    ends = Ends()
    assert benchmark(ends.getattr) == 1


@pytest.fixture(scope="module", params=["plain", "bindfs", "bind", "serve"])
def directory(request: pytest.FixtureRequest) -> Iterator[Path]:
    if request.param == "bindfs" and shutil.which("bindfs") is None:
        pytest.skip("bindfs is not installed")
    options = ("--cache", "none") if request.param in ("bind", "serve") else ()
    with tempfile.TemporaryDirectory(prefix="round-trip-") as name:
        source = Path(name)
        (source / "file").write_bytes(bytes(1 << 20))
        with Mount(request.param, source, options=options) as mount:
            yield mount.path


def test_stat(benchmark: Benchmark, directory: Path) -> None:
    assert benchmark(os.stat, directory / "file").st_size == 1 << 20


def test_open_close(benchmark: Benchmark, directory: Path) -> None:
    path = directory / "file"
    benchmark(lambda: os.close(os.open(path, os.O_RDONLY)))


@pytest.mark.parametrize("size", [4096, 131_072])
def test_read(benchmark: Benchmark, directory: Path, size: int) -> None:
    fd = os.open(directory / "file", os.O_RDONLY)
    assert len(benchmark(os.pread, fd, size, 0)) == size
    os.close(fd)


@pytest.mark.parametrize("size", [4096, 131_072])
def test_write(benchmark: Benchmark, directory: Path, size: int) -> None:
    fd = os.open(directory / "file", os.O_WRONLY)
    assert benchmark(os.pwrite, fd, bytes(size), 0) == size
    os.close(fd)


def test_create_and_unlink(benchmark: Benchmark, directory: Path) -> None:
    path = directory / "new"

    def there_and_gone() -> None:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        os.unlink(path)

    benchmark(there_and_gone)


def test_list_a_hundred(benchmark: Benchmark, directory: Path) -> None:
    (directory / "hundred").mkdir(exist_ok=True)
    for i in range(100):
        (directory / "hundred" / f"file-{i}").touch()
    assert len(benchmark(os.listdir, directory / "hundred")) == 100
