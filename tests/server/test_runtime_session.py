"""A session's runtime with handlers of the test's own: who is served when, whatever the others do."""

import ctypes
import errno
import os
import random
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from fusepipe.server import connection as connection_module
from fusepipe.server import session as session_module
from fusepipe.wire import Attr, Buffer, Message, Op, ServerLimits, SlotKind, Ticket
from fusepipe.wire.client_session import Replied
from fusepipe.wire.messages import (
    AccessReply,
    AccessRequest,
    GetattrReply,
    GetattrRequest,
    LookupRequest,
    ReadReply,
    ReadRequest,
    StatfsReply,
    StatfsRequest,
    UnlinkReply,
    UnlinkRequest,
    WriteReply,
    WriteRequest,
)
from tests.server.sessions import PATIENCE, Client, offer, running

ATTR = Attr(*range(1, 16))
Answer = tuple[Message, Buffer]

libc = ctypes.CDLL(None, use_errno=True)


def wait_in_the_kernel(*_: Any) -> Answer:
    """A call that a signal can end, as a C handler's would; Python's own waits go on after a signal."""
    if libc.poll(None, 0, int(PATIENCE * 1000)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    raise AssertionError("nobody interrupted")


def getattr_by_node(_context: object, request: GetattrRequest, _payload: Buffer) -> Answer:
    """The node comes back as inode number."""
    return GetattrReply(ATTR._replace(ino=request.node)), b""


def echo(_context: object, request: ReadRequest, _payload: Buffer) -> Answer:
    return ReadReply(), bytes([request.handle % 256]) * request.size


class Gate:
    """A handler that waits until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()
        self.threads: set[int] = set()

    def __call__(self, _context: object, request: Any, _payload: Buffer) -> Answer:
        self.threads.add(threading.get_ident())
        self.entered.release()
        assert self.open.wait(PATIENCE)
        return AccessReply(), b""

    def wait_for(self, count: int) -> None:
        for _ in range(count):
            assert self.entered.acquire(timeout=PATIENCE)


ACCESS = AccessRequest(1, 0, 0, 0, ())


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.002)


# ---- a life ----


def test_from_hello_to_the_end_of_the_connection() -> None:
    with running({Op.GETATTR: getattr_by_node}) as fake:
        with Client(fake.connect()) as client:
            assert client.reply is not None and client.reply.request_slots == 64
            for node in range(1, 200):
                assert client.call(GetattrRequest(node, 0))[1].attr.ino == node
            assert not fake.session.ended.is_set()
        assert fake.session.ended.wait(PATIENCE)
        assert fake.ends == 1 and not fake.session.failed


def test_bye_ends_the_session_whatever_else_is_open() -> None:
    with running({}) as fake, Client(fake.connect()) as client:
        client.attach(fake.connect())
        client.bye()
        assert client.ended
        assert fake.session.ended.wait(PATIENCE)


def test_the_first_frame_may_have_been_read_already() -> None:
    ours, theirs = socket.socketpair()
    with running({Op.GETATTR: getattr_by_node}) as fake, Client(ours, wait=False) as client:
        fake.session.add(theirs, theirs.recv(100_000))
        client.pump(lambda: client.reply)
        assert client.call(GetattrRequest(7, 0))[1].attr.ino == 7


@pytest.mark.parametrize("body_crc", [False, True])
def test_body_crc_from_either_end(body_crc: bool) -> None:
    with running({Op.READ: echo}) as fake, Client(fake.connect(body_crc=body_crc), body_crc=not body_crc) as client:
        assert client.reply is not None and "body-crc" in client.reply.features
        assert client.call(ReadRequest(5, 0, 70_000))[2] == b"\5" * 70_000


# ---- the slow hold up nobody ----


def test_slow_requests_delay_no_other_while_slots_are_left() -> None:
    gate = Gate()
    with running({Op.ACCESS: gate, Op.GETATTR: getattr_by_node}) as fake, Client(fake.connect()) as client:
        slow = [client.send(ACCESS) for _ in range(63)]
        gate.wait_for(63)
        for node in range(1, 50):
            assert client.call(GetattrRequest(node, 0))[1].attr.ino == node
        assert len(gate.threads) == 63
        gate.open.set()
        assert [client.wait(ticket).errno for ticket in slow] == [0] * 63
        # One more for each: who leads, who watches, who sends signals, who came to help and was not needed.
        assert len(fake.session._threads) <= 63 + 4


def test_ping_is_answered_while_every_slot_is_busy() -> None:
    gate = Gate()
    with running({Op.ACCESS: gate}) as fake, Client(fake.connect(), offer(slots=3)) as client:
        slow = [client.send(ACCESS) for _ in range(3)]
        gate.wait_for(3)
        client.ping()
        gate.open.set()
        for ticket in slow:
            assert client.wait(ticket).errno == 0


def test_an_operation_that_was_slow_gets_help_before_it_runs() -> None:
    gate = Gate()
    with running({Op.ACCESS: gate}) as fake, Client(fake.connect()) as client:
        first = client.send(ACCESS)
        gate.wait_for(1)
        client.ping()  # so another thread leads by now
        gate.open.set()
        client.wait(first)
        assert fake.session._slow[Op.ACCESS] == session_module.EXPECTED_SLOW
        for _ in range(session_module.EXPECTED_SLOW):
            assert client.call(ACCESS)[0] == 0
        assert fake.session._slow[Op.ACCESS] == 0


def test_without_threads_to_help_requests_wait_for_each_other(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    gate = Gate()
    with running({Op.ACCESS: gate, Op.GETATTR: getattr_by_node}) as fake, Client(fake.connect()) as client:

        def no_more(_thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", no_more)
            slow = client.send(ACCESS)
            gate.wait_for(1)
            waiting = client.send(GetattrRequest(5, 0))
            until(lambda: fake.session._threads._short)
        gate.open.set()
        assert client.wait(slow).errno == 0
        assert client.wait(waiting).errno == 0
    assert capfd.readouterr().err.count("no more threads") == 1


def test_a_client_that_does_not_read_holds_up_no_other_connection() -> None:
    with running({Op.READ: echo, Op.GETATTR: getattr_by_node}) as fake, Client(fake.connect()) as client:
        client.attach(fake.connect())
        unread = [client.send(ReadRequest(n, 0, 1 << 20), via=0) for n in range(12)]
        until(lambda: any(connection.unsent for connection in fake.session._connections.values()))
        sock, second = client.connections[1]
        ticket = client.session.take(SlotKind.REQUEST, GetattrRequest(9, 0))
        assert ticket is not None
        sock.sendall(b"".join(second.request(ticket)))
        sock.settimeout(PATIENCE)
        while ticket not in client.replies:
            client._receive(sock, second)
        for n, ticket in enumerate(unread):
            assert client.wait(ticket).payload == bytes([n]) * (1 << 20)


def test_a_client_that_only_sends_is_not_read_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "MAX_UNSENT", 10_000)
    with running({}) as fake, Client(fake.connect()) as client:
        sock, connection = client.connections[0]
        (served,) = fake.session._connections.values()
        assert isinstance(served, connection_module.Connection)
        sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            while True:
                sock.sendall(b"".join(connection.ping()))
        assert served._unsent_bytes < 100_000
        sock.settimeout(None)


def is_inode(number: int, replied: Replied) -> bool:
    return isinstance(replied.reply, GetattrReply) and replied.reply.attr.ino == number


def is_payload(payload: bytes, replied: Replied) -> bool:
    return replied.payload == payload


def is_size(size: int, replied: Replied) -> bool:
    return replied.reply == WriteReply(size)


def test_everything_at_once() -> None:
    """Several connections, operations of any length, in any order: each reply is its request's own."""
    chance = random.Random(7)

    def lookup_like(_context: object, request: GetattrRequest, _payload: Buffer) -> Answer:
        if request.handle:
            time.sleep(request.handle / 1e6)
        return GetattrReply(ATTR._replace(ino=request.node)), b""

    def write(_context: object, request: WriteRequest, payload: Buffer) -> Answer:
        assert bytes(payload) == bytes([request.handle]) * len(payload)
        return WriteReply(len(payload)), b""

    with running({Op.GETATTR: lookup_like, Op.READ: echo, Op.WRITE: write}) as fake, Client(fake.connect()) as client:
        for _ in range(3):
            client.attach(fake.connect())
        flying: dict[Ticket, Callable[[Replied], bool]] = {}
        for number in range(1, 1500):
            via = chance.randrange(4)
            what = chance.random()
            size = chance.choice([1, 100, 5_000, 100_000])
            if what < 0.6:
                delay = chance.choice([0, 0, 0, 50, 300, 3000])
                ticket = client.send(GetattrRequest(number, delay), via=via)
                flying[ticket] = partial(is_inode, number)
            elif what < 0.8:
                ticket = client.send(ReadRequest(number, 0, size), via=via)
                flying[ticket] = partial(is_payload, bytes([number % 256]) * size)
            else:
                ticket = client.send(WriteRequest(number % 256, 0, 0), bytes([number % 256]) * size, via=via)
                flying[ticket] = partial(is_size, size)
            if len(flying) >= 40:
                client.pump(lambda: client.replies)
                for ticket, replied in list(client.replies.items()):
                    assert flying.pop(ticket)(replied)
                client.replies.clear()
        for ticket, check in flying.items():
            assert check(client.wait(ticket))


# ---- interrupts ----


def test_an_interrupt_ends_the_wait_of_its_request_only() -> None:
    gate = Gate()
    with running({Op.STATFS: wait_in_the_kernel, Op.ACCESS: gate}) as fake, Client(fake.connect()) as client:
        other, waiting = client.send(ACCESS), client.send(StatfsRequest(1))
        gate.wait_for(1)
        client.interrupt(waiting)
        assert client.wait(waiting).errno == errno.EINTR
        assert other not in client.replies
        gate.open.set()
        assert client.wait(other).errno == 0
        until(lambda: not fake.session._interrupts._wanted)


def test_an_interrupt_that_comes_first_is_remembered() -> None:
    calls: list[int] = []

    def count(*_: Any) -> Answer:
        calls.append(1)
        return StatfsReply(*range(8)), b""

    with running({Op.STATFS: count}) as fake, Client(fake.connect()) as client:
        ticket = client.session.take(SlotKind.REQUEST, StatfsRequest(1))
        assert ticket is not None
        client.interrupt(ticket)
        sock, connection = client.connections[0]
        sock.sendall(b"".join(connection.request(ticket)))
        assert client.wait(ticket).errno == errno.EINTR
        assert calls == []
        assert client.call(StatfsRequest(1))[0] == 0


def test_an_interrupt_that_comes_late_changes_nothing() -> None:
    with running({Op.GETATTR: getattr_by_node}) as fake, Client(fake.connect()) as client:
        ticket = client.send(GetattrRequest(3, 0))
        client.pump(lambda: ticket in client.replies)
        client.interrupt(ticket)
        for node in range(1, 20):
            assert client.call(GetattrRequest(node, 0))[1].attr.ino == node


# ---- errors ----


def crash(*_: Any) -> Answer:
    raise ZeroDivisionError("a bug")


def no_errno(*_: Any) -> Answer:
    raise OSError("no number")


def wrong_reply(*_: Any) -> Answer:
    return AccessReply(), b""


@pytest.mark.parametrize("handler", [crash, no_errno, wrong_reply])
def test_a_bug_in_a_handler_is_an_errno_and_one_line(
    handler: Callable[..., Answer], capfd: pytest.CaptureFixture[str]
) -> None:
    handlers = {Op.LOOKUP: handler, Op.UNLINK: handler, Op.WRITE: handler, Op.GETATTR: getattr_by_node}
    with running(handlers) as fake, Client(fake.connect()) as client:
        assert client.call(LookupRequest(1, b"secret-name"))[0] == errno.EINTR
        assert client.call(UnlinkRequest(1, b"secret-name"))[0] == errno.EIO
        assert client.call(WriteRequest(1, 0, 0), b"secret-data")[0] == errno.EIO
        assert client.call(GetattrRequest(1, 0))[0] == 0
    lines = capfd.readouterr().err.splitlines()
    assert [line.count("failed unexpectedly") for line in lines] == [1, 1, 1]
    assert "op=LOOKUP" in lines[0] and "name=bytes[11]" in lines[0]
    assert "payload=memoryview[11]" in lines[2]
    assert not any("secret" in line for line in lines)


def test_an_oserror_is_its_errno_and_no_line(capfd: pytest.CaptureFixture[str]) -> None:
    def missing(*_: Any) -> Answer:
        raise FileNotFoundError(errno.ENOENT, "no")

    with running({Op.LOOKUP: missing}) as fake, Client(fake.connect()) as client:
        assert client.call(LookupRequest(1, b"x"))[0] == errno.ENOENT
    assert capfd.readouterr().err == ""


def test_garbage_ends_its_connection_only(capfd: pytest.CaptureFixture[str]) -> None:
    with running({Op.GETATTR: getattr_by_node}) as fake, Client(fake.connect()) as client:
        client.attach(fake.connect())
        with fake.connect() as stranger:
            stranger.sendall(b"GET / HTTP/1.0\r\nHost: nobody\r\n\r\n")
            stranger.settimeout(PATIENCE)
            while stranger.recv(4096):
                pass
        client.connections[1][0].sendall(b"\xff" * 1000)
        client.pump(lambda: client.lost)
        until(lambda: len(fake.wire.open_connections()) == 1)
        client.come_back(fake.connect())
        assert client.call(GetattrRequest(3, 0))[1].attr.ino == 3
    assert capfd.readouterr().err.count("broke the protocol") == 2


def test_a_client_that_dies_in_the_middle_of_a_frame_has_not_erred(capfd: pytest.CaptureFixture[str]) -> None:
    with running({}) as fake:
        with Client(fake.connect()) as client:
            sock, connection = client.connections[0]
            sock.sendall(b"".join(connection.ping())[:7])
        assert fake.session.ended.wait(PATIENCE)
    assert capfd.readouterr().err == ""


def test_a_request_that_breaks_the_rules_of_slots(capfd: pytest.CaptureFixture[str]) -> None:
    gate = Gate()
    with running({Op.ACCESS: gate}) as fake, Client(fake.connect()) as client:
        client.attach(fake.connect())
        ticket = client.send(ACCESS)
        gate.wait_for(1)
        ticket.seq += 1
        ticket.header = ticket.header[:2] + bytes([ticket.seq]) + ticket.header[3:]
        sock, connection = client.connections[1]
        sock.sendall(b"".join(connection.request(ticket)))
        client.pump(lambda: client.lost)
        assert client.lost is not None and "while 1 was running" in client.lost.reason
        gate.open.set()
    assert capfd.readouterr().err.count("broke the protocol") == 1


def test_another_version_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    with running({}) as fake, Client(fake.connect(), offer(major=9)) as client:
        assert client.refused is not None
        assert client.refused.code.name == "VERSION" and client.refused.detail == (1, 0, 0)
        assert fake.session.ended.wait(PATIENCE)
    assert "version" in capfd.readouterr().err


def test_a_thread_that_breaks_ends_the_session(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with running({Op.GETATTR: getattr_by_node}) as fake, Client(fake.connect()) as client:
        monkeypatch.setattr(fake.wire, "finish", crash)
        client.send(GetattrRequest(1, 0))
        assert fake.session.ended.wait(PATIENCE)
        assert fake.session.failed
        (connection,) = fake.session._connections.values()
        connection.end_receiving()  # the thread that broke did not; the process would end now
    assert capfd.readouterr().err.count("a session broke") == 1


# ---- connections come and go ----


def test_a_session_outlives_all_connections_but_the_last() -> None:
    with running({Op.GETATTR: getattr_by_node}) as fake, Client(fake.connect()) as client:
        client.attach(fake.connect())
        client.connections.pop(0)[0].close()
        for node in range(1, 20):
            assert client.call(GetattrRequest(node, 0))[1].attr.ino == node
        assert not fake.session.ended.is_set()


def test_a_reply_goes_where_the_client_has_resumed() -> None:
    gate = Gate()
    with running({Op.ACCESS: gate}) as fake, Client(fake.connect()) as client:
        client.attach(fake.connect())
        ticket = client.send(ACCESS)
        gate.wait_for(1)
        client.connections[0][0].close()  # the server still has the other when the client comes back
        client.come_back(fake.connect())
        sock, connection = client.connections[0]
        sock.sendall(b"".join(connection.request(ticket)))
        gate.open.set()
        assert client.wait(ticket).errno == 0


# ---- being told to stop ----


def test_what_runs_is_answered_before_the_connection_closes() -> None:
    gate = Gate()
    with running({Op.ACCESS: gate}) as fake, Client(fake.connect()) as client:
        ticket = client.send(ACCESS)
        gate.wait_for(1)
        closing = threading.Thread(target=fake.session.close, args=(PATIENCE,))
        closing.start()
        until(lambda: fake.session._draining)
        gate.open.set()
        assert client.wait(ticket).errno == 0
        client.pump(lambda: client.lost)
        closing.join()


def test_what_does_not_end_is_interrupted() -> None:
    with running({Op.STATFS: wait_in_the_kernel}) as fake, Client(fake.connect()) as client:
        ticket = client.send(StatfsRequest(1))
        until(fake.session._interrupts.running)
        fake.session.close(0.2)
        assert client.wait(ticket).errno == errno.EINTR


def test_what_cannot_be_interrupted_is_given_up(capfd: pytest.CaptureFixture[str]) -> None:
    gate = Gate()
    with running({Op.ACCESS: gate}) as fake, Client(fake.connect()) as client:
        client.send(ACCESS)
        gate.wait_for(1)
        fake.session.close(0.1)
        assert "did not end in time" in capfd.readouterr().err
        gate.open.set()
        client.pump(lambda: client.lost)


def test_a_connection_that_comes_too_late_is_closed() -> None:
    with running({}) as fake:
        with Client(fake.connect()):
            pass
        assert fake.session.ended.wait(PATIENCE)
        with fake.connect() as late:
            late.settimeout(PATIENCE)
            assert late.recv(1) == b""


def test_more_is_granted_to_nobody_than_the_server_has() -> None:
    with running({}, limits=ServerLimits(request_slots=2)) as fake, Client(fake.connect(), offer(slots=200)) as client:
        assert client.reply is not None and client.reply.request_slots == 2


def test_unlink_is_not_run_twice_when_it_is_sent_twice() -> None:
    calls: list[bytes] = []

    def unlink(_context: object, request: UnlinkRequest, _payload: Buffer) -> Answer:
        calls.append(request.name)
        return UnlinkReply(), b""

    with running({Op.UNLINK: unlink}) as fake, Client(fake.connect()) as client:
        client.attach(fake.connect())
        ticket = client.send(UnlinkRequest(1, b"x"))
        until(lambda: calls)
        # The same slot and seq on the other connection: the kept reply comes there.
        sock, connection = client.connections[1]
        until(lambda: fake.store.load(ticket.slot).state == 2)
        sock.sendall(b"".join(connection.request(ticket)))
        sock.settimeout(PATIENCE)
        while ticket not in client.replies:
            client._receive(sock, connection)
        assert calls == [b"x"]
