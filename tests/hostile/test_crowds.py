"""Crowds in front of a real server: what they ask for has an end, and somebody who is at work there does not notice."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from fusepipe.server.listener import MAX_WAITING
from fusepipe.wire import ErrorCode, FrameSender, Op, encode_request
from fusepipe.wire import messages as m
from tests.faults.statistics import sockets_of
from tests.hostile.conftest import ME
from tests.hostile.rogue import Rogue
from tests.mount.children import sessions_below
from tests.server.processes import dial, until
from tests.server.sessions import Client, offer
from tests.support import world
from tests.support.program import Programs

ROOT = 1
PATIENCE = 60.0
MAX_SESSIONS = 8
PER_PEER = 6
CYCLES = 20
"""How much the other one does meanwhile, at least."""


class Server:
    """`serve` with a volume, low limits, and no patience with sessions whose client is gone."""

    def __init__(self, program: Programs, folder: Path, native: str) -> None:
        self.socket = folder / "s"
        self.volume = folder / "volume"
        self.volume.mkdir(mode=0o700)
        self._program = program(
            "serve", "--native", native, "--session-grace", "0", "--max-sessions", str(MAX_SESSIONS),
            "--max-sessions-per-peer", str(PER_PEER), "--listen", f"unix:{self.socket}",
            "--volume", f"v={self.volume}",
        )  # fmt: skip
        self._program.expect_log("a client was refused|a client broke the protocol|gave back what it does not have")
        self._program.ready()

    @property
    def pid(self) -> int:
        return self._program.pid

    def sessions(self) -> int:
        """How many session processes there are."""
        return len(sessions_below(self.pid))

    def memory(self) -> int:
        """Bytes that the listener has used at most."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise AssertionError


class Other:
    """Somebody who works in a session of his own, in a thread, for as long as the test takes."""

    def __init__(self, server: Server) -> None:
        self._client = Client(dial(server.socket), offer())
        self._stop = threading.Event()
        self._failed: list[BaseException] = []
        self._done = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def go_on(self) -> None:
        """Wait until he has done a little more."""
        goal = self._done + CYCLES
        until(lambda: self._done >= goal or self._failed)
        assert not self._failed, self._failed

    def end(self) -> None:
        self._stop.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        with self._client as client:
            assert not self._failed, self._failed
            client.bye()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._cycle(f"work{self._done}".encode())
                self._done += 1
        except BaseException as error:
            self._failed.append(error)

    def _cycle(self, name: bytes) -> None:
        """Every answer is what it is when nobody else is there."""
        call = self._client.call
        code, made, _ = call(m.CreateRequest(ROOT, name, os.O_RDWR | os.O_EXCL, 0o600, 0, *ME[:2], (), False))
        assert code == 0
        handle, node = made.handle, made.entry.node
        assert call(m.WriteRequest(handle, 0, 0), name)[1].size == len(name)
        assert call(m.SetlkRequest(node, handle, 1, 1, 0, 0, 1))[0] == 0
        assert call(m.ReadRequest(handle, 0, 100))[2] == name
        assert call(m.UnlinkRequest(ROOT, name))[0] == 0
        assert call(m.CleanupRequest((node, 1), (handle,), ()))[0] == 0


@pytest.fixture(params=["off", "auto"])
def server(request: pytest.FixtureRequest, program: Programs, open_path: Path) -> Server:
    """Served without and with native code."""
    return Server(program, open_path, request.param)


@pytest.fixture
def other(server: Server) -> Iterator[Other]:
    made = Other(server)
    try:
        yield made
    finally:
        made.end()


@contextmanager
def threads(count: int, act: Callable[[int], None]) -> Iterator[None]:
    """act(number) in so many threads, which have ended without an error afterwards."""
    failed: list[BaseException] = []

    def run(number: int) -> None:
        try:
            act(number)
        except BaseException as error:
            failed.append(error)

    running = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        for thread in running:
            thread.join(2 * PATIENCE)
    assert not any(thread.is_alive() for thread in running)
    assert not failed, failed


def hello(volume: bytes = b"v") -> bytes:
    return b"".join(FrameSender().frame(encode_request(None, 1, offer(volume))))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("said", [b"", hello()[:40], b"GET / HTTP/1.0\r\n\r\n"], ids=["nothing", "half", "garbage"])
def test_connections(server: Server, other: Other, said: bytes) -> None:
    """Hundreds that stay, and as many again that come and go: the server holds few of them at once."""
    other.go_on()
    before, memory = sockets_of(server.pid), server.memory()
    with ExitStack() as stack:
        for _ in range(5 * MAX_WAITING):
            sock = stack.enter_context(dial(server.socket))
            send(sock, said)
        other.go_on()
        until(lambda: sockets_of(server.pid) <= before + MAX_WAITING + 1)

        def crowd(_: int) -> None:
            for _ in range(100):
                with dial(server.socket) as sock:
                    send(sock, said)

        with threads(3, crowd):
            other.go_on()
            with Client(dial(server.socket), offer()) as guest:  # who says what he wants comes in
                assert guest.call(m.GetattrRequest(ROOT, 0))[0] == 0
                guest.bye()
    until(lambda: sockets_of(server.pid) == before)
    assert server.memory() - memory < 32 << 20
    other.go_on()
    assert server.sessions() == 1


def send(sock: socket.socket, data: bytes) -> None:
    """Send what a server may have no patience for."""
    with suppress(BrokenPipeError, ConnectionResetError):
        sock.sendall(data)


@pytest.mark.timeout(300)
def test_sessions(server: Server, other: Other) -> None:
    """One user gets so many; the rest is refused, and there are as many again once he has ended some."""
    other.go_on()
    for _ in range(2):
        kept: list[Client] = []
        codes: list[ErrorCode] = []
        lock = threading.Lock()

        def crowd(_: int) -> None:
            for _ in range(10):
                client = Client(dial(server.socket), offer())
                with lock:  # noqa: B023 - as below
                    if client.refused is not None:
                        client.close()
                        codes.append(client.refused.code)  # noqa: B023 - it has ended before the next round
                    else:
                        kept.append(client)  # noqa: B023 - as above

        with threads(4, crowd):
            other.go_on()
        assert len(kept) == PER_PEER - 1
        assert codes == [ErrorCode.LIMIT] * (40 - len(kept))
        assert server.sessions() == PER_PEER
        other.go_on()
        for client in kept:
            assert client.call(m.GetattrRequest(ROOT, 0))[0] == 0
            client.close()
        assert world.wait_until(lambda: server.sessions() == 1, PATIENCE)


@contextmanager
def rogue(server: Server) -> Iterator[Rogue]:
    """Somebody with a session, who breaks the rules.  Where sessions before it have not ended yet, it waits for one."""
    found: list[Rogue] = []

    def admitted() -> bool:
        one = Rogue(dial(server.socket))
        if one.hello()[2] == 0:
            found.append(one)
        else:
            one.close()
        return bool(found)

    until(admitted)
    with found[0] as one:
        yield one


@pytest.mark.timeout(300)
def test_requests_beyond_the_slots(server: Server, other: Other) -> None:
    """More than one at a time in a slot, slots that there are not, thousands in one go: it is their end alone."""
    other.go_on()
    getattr_ = [int(Op.GETATTR), ROOT, 0]

    def crowd(number: int) -> None:
        for turn in range(4):
            with rogue(server) as one:
                for seq in range(1, 1000):
                    slot = [132 + seq, 64, seq % 64, 1 << 31][(number + turn) % 4]
                    one.values(slot, seq if slot < 132 else 1, *getattr_)
                one.sock.shutdown(socket.SHUT_WR)
                one.closed()

    with threads(3, crowd):
        other.go_on()
        other.go_on()
    assert world.wait_until(lambda: server.sessions() == 1, PATIENCE)


@pytest.mark.timeout(300)
def test_cleanup_batches(server: Server, other: Other) -> None:
    """As large as they may be, in all slots at once, for what was never given."""
    other.go_on()
    numbers = b"".join(number.to_bytes(8, "little") for number in range(1 << 40, (1 << 40) + 6000))

    def crowd(_: int) -> None:
        with rogue(server) as one:
            for _ in range(60):
                seqs = [one.request(Op.CLEANUP, numbers, numbers, b"", slot=slot) for slot in range(64, 68)]
                assert sorted(one.reply()[:3] for _ in seqs) == [[64 + n, seq, 0] for n, seq in enumerate(seqs)]

    with threads(3, crowd):
        other.go_on()
        other.go_on()


@pytest.mark.timeout(300)
def test_lock_waits(server: Server, other: Other) -> None:
    """Of one session there are as many as it has slots for; one who is gone waits no more."""
    (server.volume / "locked").touch()

    def locker(one: Rogue) -> tuple[int, int]:
        node = one.call(Op.LOOKUP, ROOT, b"locked")[1][0]
        return node, one.call(Op.OPEN, node, os.O_RDWR, False, 0, 0)[1]

    with rogue(server) as holder:
        node, handle = locker(holder)
        assert holder.call(Op.SETLK, node, handle, 1, 1, 0, (1 << 63) - 1, 1)[0] == 0

        def crowd(_: int) -> None:
            for _ in range(3):
                with rogue(server) as one:
                    node, handle = locker(one)
                    for slot in range(68, 132):
                        one.request(Op.SETLKW, node, handle, slot, 1, slot, slot, slot, slot=slot)
                    assert one.call(Op.GETATTR, ROOT, 0, slot=1)[0] == 0
                    one.request(Op.SETLKW, node, handle, 1, 1, 0, 0, 1, slot=132)
                    assert one.refused()[0] is not None

        with threads(3, crowd):
            other.go_on()
            other.go_on()
        assert world.wait_until(lambda: server.sessions() == 2, PATIENCE)
        assert holder.call(Op.SETLK, node, handle, 1, 2, 0, (1 << 63) - 1, 1)[0] == 0
