"""Requests of every kind, well formed and not, to a real session on a directory: dispatcher, handlers, tables.

`one(data)` is the target.  The bytes choose requests whose numbers are often those that the server gave.  Each request
must be answered once, or the connection closed by RemoteProtocolError; nothing else may be raised, nothing unforeseen
may be logged, and when everything was given back nothing may be left in the tables.

It works on a tmpfs of 16 MiB in a mount namespace of its own, on which no device can be opened, so it needs root.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, cast

from fusepipe import log, syscalls
from fusepipe.server.dispatcher import dispatcher
from fusepipe.server.handlers import HANDLERS
from fusepipe.server.tables import Tables, create_memfd
from fusepipe.wire import (
    KIND_OF_CHANNEL,
    ROWS,
    ClientSession,
    HelloRequest,
    Op,
    RemoteProtocolError,
    ServerLimits,
    ServerSession,
    Verdict,
    client_session,
    read_page,
    server_session,
)
from fusepipe.wire.messages import CleanupRequest

TOP = "/run"
"""Where the tmpfs is mounted, for this process alone."""
CLONE_NEWNS, MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE = 0x20000, 2, 4, 0x4000, 1 << 18
LIMITS = ServerLimits(
    request_slots=2, cleanup_slots=1, lock_slots=1, max_read=8192, max_write=8192, max_in_flight=1 << 20
)
OFFER = HelloRequest(b"fusepipe", 1, 0, 0, (), b"home", 2, 1, 1, 2, 8192, 8192, 1 << 20, 255, "fuzz")
OPS = sorted(HANDLERS)
NODES = {"node", "parent", "new_parent"}
HANDLES = {"handle", "to_handle"}
NAMES = [b"a", b"b", b"dir", b"link", b".", b"..", b"a/b", b"x" * 255, b"\xff"]
XATTRS = [b"user.x", b"user.y", b"security.capability", b"system.posix_acl_access", b"trusted.z", b"bad"]
NUMBERS = [
    0,
    1,
    2,
    3,
    4,
    0o100644,
    0o40755,
    0o20644,
    1 << 12,
    1 << 31,
    (1 << 32) - 1,
    1 << 62,
    (1 << 63) - 1,
    (1 << 64) - 1,
]
FLAGS = [os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_TRUNC, os.O_RDWR | os.O_EXCL | os.O_CREAT, os.O_PATH]
WAITING = {Op.SETLKW, Op.FLOCKW}
EXPECTED = {"the client gave back what it does not have"}


class Source:
    """Choices out of bytes; 0 where they have come to their end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, size: int) -> bytes:
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken

    def byte(self) -> int:
        return int.from_bytes(self.take(1), "big")

    def of(self, values: list[Any]) -> Any:
        return values[self.byte() % len(values)]

    def number(self, bits: int) -> int:
        how = self.byte()
        if how < 100:
            return how
        if how < 200:
            return NUMBERS[how % len(NUMBERS)] % (1 << bits)
        return int.from_bytes(self.take(8), "big") % (1 << bits)


class Guest:
    """A session over TOP, and the client that asks it."""

    def __init__(self) -> None:
        memfd = create_memfd(LIMITS.slots, inodes=1 << 12, handles=1 << 10)
        try:
            self.tables = Tables(memfd, TOP, fd_budget=32, privileged=True)
        finally:
            os.close(memfd)
        self._logged = Log()
        self._dispatch = dispatcher(self.tables, HANDLERS, self._logged)  # type: ignore[arg-type]
        wire = ServerSession(
            bytes(16), LIMITS, self.tables.slots, token_bytes=lambda size: bytes(size), read_only=False
        )
        self._server = wire.connection(body_crc=False)
        self._client_session = ClientSession(OFFER, body_crc=False)
        self._client = self._client_session.connection()
        self.nodes: dict[int, int] = {1: 0}
        self.handles: set[int] = set()
        self._serve(self._client.start())

    def ask(self, request: Any, payload: bytes = b"") -> None:
        op = next(op for op, row in ROWS.items() if row.request is type(request))
        kind = KIND_OF_CHANNEL[ROWS[op].channel]
        ticket = self._client_session.take(kind, request, payload)
        assert ticket is not None
        before = dict(self.nodes)
        (reply,) = self._serve(self._client.request(ticket))
        assert isinstance(reply, client_session.Replied) and reply.ticket is ticket
        if reply.errno == 0:
            self._note(op, reply)
        else:
            assert self.nodes == before

    def raw(self, header: bytes, payload: bytes) -> None:
        """A good frame with any header.  A reply to it is for nobody."""
        self._feed(b"".join(self._client._sender.frame(header, payload)))

    def close(self) -> None:
        self.tables.close()
        unforeseen = [line for line in self._logged.lines if line[0] not in EXPECTED]
        assert not unforeseen, unforeseen

    # ---- what comes and goes

    def _note(self, op: Op, reply: client_session.Replied) -> None:
        message = reply.reply
        if (entry := getattr(message, "entry", None)) is not None:
            self.nodes[entry.node] = self.nodes.get(entry.node, 0) + 1
        if op in (Op.OPEN, Op.CREATE, Op.TMPFILE, Op.OPENDIR):
            self.handles.add(cast(Any, message).handle)
        if op is Op.READDIR:
            for found in read_page(reply.payload):
                if found.node:
                    self.nodes[found.node] = self.nodes.get(found.node, 0) + 1

    def _serve(self, buffers: list[Any]) -> list[client_session.Event]:
        data = b"".join(buffers)
        events: list[client_session.Event] = []
        for answer in self._feed(data):
            view = memoryview(answer)
            while view:
                target = self._client.buffer()
                count = min(len(target), len(view))
                target[:count] = view[:count]
                view = view[count:]
                events += self._client.received(count)
        return events

    def _feed(self, data: bytes) -> list[bytes]:
        """What the server answers to these bytes.  Raises RemoteProtocolError where it closes the connection."""
        view, answers = memoryview(data), []
        while view:
            target = self._server.buffer()
            count = min(len(target), len(view))
            target[:count] = view[:count]
            view = view[count:]
            self._server.received(count)
            while (event := self._server.next_event()) is not None:
                if isinstance(event, server_session.Answer):
                    answers.append(b"".join(self._server.frame(event.header)))
                elif isinstance(event, server_session.Arrived):
                    if self._server.arrive(event) is Verdict.RUN:
                        answers.append(self._run(event))
                elif isinstance(event, server_session.Close):
                    raise event.error or RemoteProtocolError("the session is over")
        return answers

    def _run(self, event: server_session.Arrived) -> bytes:
        with INTERRUPTER.watching() if event.op in WAITING else contextlib.nullcontext():
            header, payload = self._dispatch(event)
        self._server.session.finish(event.slot, event.seq, header, payload)
        return b"".join(self._server.frame(header, payload))


class Log:
    """A logger that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def error(self, event: str, **values: Any) -> None:
        self.lines.append((event, values))

    warning = error


class Interrupter:
    """Ends a call that waits in the thread that made this, as INTERRUPT does."""

    def __init__(self) -> None:
        self._begun = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.get_ident()

    def start(self) -> None:
        syscalls.install_interrupt_handler(signal.SIGUSR1)
        threading.Thread(target=self._run, daemon=True).start()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        self._ended.clear()
        self._begun.set()
        try:
            yield
        finally:
            self._ended.set()

    def _run(self) -> None:
        while True:
            self._begun.wait()
            self._begun.clear()
            while not self._ended.wait(0.02):
                signal.pthread_kill(self._thread, signal.SIGUSR1)
                time.sleep(0)


INTERRUPTER = Interrupter()


def prepare() -> None:
    """The tmpfs, for this process alone.  Raises OSError where that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    for failed in (
        libc.unshare(CLONE_NEWNS),
        libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None),
        libc.mount(b"fuzz", TOP.encode(), b"tmpfs", MS_NOSUID | MS_NODEV, b"size=16m,nr_inodes=500,mode=755"),
    ):
        if failed:
            raise OSError(ctypes.get_errno(), "a mount of its own, which needs root")
    log.configure("error", "text", set())
    INTERRUPTER.start()


def one(data: bytes) -> None:
    """One input.  Raises nothing but RemoteProtocolError."""
    for name in os.listdir(TOP):
        path = os.path.join(TOP, name)
        shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)
    source = Source(data)
    guest = Guest()
    try:
        wild = False
        for _ in range(40):
            if not source:
                break
            if (choice := source.byte()) < 0xF0:
                wild |= _ask(guest, source, OPS[choice % len(OPS)])
            else:
                wild = True
                guest.raw(source.take(source.byte()) or b"\0", source.take(source.byte()))
        if not wild:
            _give_back(guest)
    finally:
        guest.close()


def _ask(guest: Guest, source: Source, op: Op) -> bool:
    """One request; returns whether it may have given back what the guest did not have to give."""
    request = ROWS[op].request(*(_value(guest, source, field.name, field.type) for field in ROWS[op].request_fields))
    payload = source.take(source.byte()) * (1 + source.byte() % 30) if ROWS[op].payload == "request" else b""
    guest.ask(request, payload)
    if op is Op.RELEASE:
        guest.handles.discard(request.handle)  # type: ignore[attr-defined]
    return op is Op.CLEANUP


def _value(guest: Guest, source: Source, name: str, kind: str) -> Any:
    if name in NODES:
        return source.of(list(guest.nodes)) if source.byte() < 240 else source.number(64)
    if name in HANDLES:
        return source.of([*guest.handles, 0]) if source.byte() < 240 else source.number(64)
    if name == "flags":
        return source.of(FLAGS) if source.byte() < 128 else source.number(32)
    if name == "size" and kind == "u32":
        return source.number(13)
    if kind in ("name", "xattr", "path"):
        names = XATTRS if kind == "xattr" else NAMES
        return source.of(names) if source.byte() < 220 else source.take(1 + source.byte()).replace(b"\0", b"0") or b"n"
    if kind == "bin":
        return source.take(source.byte())
    if kind == "bool":
        return bool(source.byte() & 1)
    if kind == "[u32]":
        return tuple(source.number(32) for _ in range(source.byte() % 5))
    if kind == "[u64]":
        return tuple(_value(guest, source, "handle", "u64") for _ in range(source.byte() % 4))
    if kind == "[u64 u64]":
        pairs = [(_value(guest, source, "node", "u64"), source.number(64)) for _ in range(source.byte() % 4)]
        return tuple(number for pair in pairs for number in pair)
    if kind == "i64":
        return source.number(64) - (1 << 63) if source.byte() & 1 else source.number(63)
    return source.number(32 if kind == "u32" else 64)


def _give_back(guest: Guest) -> None:
    forgets = [number for node, count in guest.nodes.items() if count for number in (node, count)]
    guest.ask(CleanupRequest(tuple(forgets), tuple(guest.handles), ()))
    now = guest.tables.statistics()
    assert (now["inodes"], now["lookups"], now["handles"], now["overforgotten"]) == (1, 1, 0, 0), now


def corpus() -> list[bytes]:
    """An input for every operation, after a few that make what it may work on."""

    def begin(op: Op) -> int:
        return OPS.index(op)

    mkdir = bytes([begin(Op.MKDIR), 0, 0, 0, 2, 100, 0, 0, 0, 0])
    create = bytes([begin(Op.CREATE), 0, 0, 0, 0, 0, 1, 105, 0, 0, 0, 0, 0])
    opendir = bytes([begin(Op.OPENDIR), 0, 0])
    made = mkdir + create + opendir
    return [made + bytes([begin(op)]) + bytes(fill % 256 for fill in range(at, at + 24)) for op in OPS for at in (0, 1)]
