"""A session whose hot requests run in C: the same answers, the same rules, and nobody waits for anybody."""

import errno
import fcntl
import os
import random
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from fusepipe.server import native as native_module
from fusepipe.wire import SlotKind, Ticket, codec
from fusepipe.wire import messages as m
from tests.server.served import Served, serving
from tests.server.sessions import PATIENCE, Client


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path) as served:
        yield served


@pytest.fixture
def headers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Those of the replies that a client takes, also with what is attached to them."""
    taken: list[Any] = []

    def unpacked(header: bytes) -> Any:
        taken.append(codec.unpack(header))
        return taken[-1]

    monkeypatch.setattr("fusepipe.wire.client_session.unpack", unpacked)
    return taken


def opened(client: Client, name: bytes, flags: int = os.O_RDONLY) -> int:
    node = client.call(m.LookupRequest(1, name))[1].entry.node
    handle: int = client.call(m.OpenRequest(node, flags, False, 0, 0))[1].handle
    return handle


def hot(client: Client, place: Path) -> list[Any]:
    """The replies to a life of files: every native operation, also with errors."""
    seen: list[Any] = []

    def call(request: Any, payload: bytes = b"") -> Any:
        number, reply, data = client.call(request, payload)
        seen.append((type(request).__name__, number, len(data)))
        return reply

    made = call(m.CreateRequest(1, b"a", os.O_RDWR | os.O_CREAT, 0o640, 0o22, 0, 0, (), False))
    call(m.CreateRequest(1, b"a", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640, 0o22, 0, 0, (7, 8), False))
    call(m.WriteRequest(made.handle, 3, 0), b"hello" * 1000)
    call(m.WriteRequest(made.handle + 1, 3, 0), b"hello")
    call(m.ReadRequest(made.handle, 0, 100))
    call(m.ReadRequest(made.handle, 5000, 100))
    call(m.ReadRequest(made.handle, 1 << 62, 100))
    call(m.FlushRequest(made.handle, 0))
    call(m.FsyncRequest(made.handle, True))
    attr = call(m.GetattrRequest(made.entry.node, made.handle)).attr
    assert call(m.GetattrRequest(made.entry.node, 0)).attr == attr
    call(m.GetattrRequest(made.entry.node, 12345))
    call(m.GetattrRequest(12345, 0))
    call(m.SetattrRequest(made.entry.node, 0, 1, 0o600, 0, 0, 0, 0, 0, 0, 0))
    seen.append(call(m.LookupRequest(1, b"a")).entry.attr.mode)
    for name in (b"missing", b".", b"..", b"x" * 255, b"a/b"):
        call(m.LookupRequest(1, name))
    for size in (0, 5, 300, 3000):
        os.setxattr(place / "a", "user.name", b"v" * size)
        seen.append(call(m.GetxattrRequest(made.entry.node, b"user.name")).value)
    for name in (b"user.missing", b"security.capability", b"nobody.knows"):
        call(m.GetxattrRequest(made.entry.node, name))
    call(m.GetxattrRequest(12345, b"user.name"))
    folder = call(m.MkdirRequest(1, b"d", 0o755, 0, 0, 0, ())).entry.node
    call(m.RenameRequest(1, b"a", folder, b"b", 0))
    call(m.RenameRequest(1, b"a", folder, b"b", 0))
    call(m.OpenRequest(folder, 0, False, 0, 0))
    seen.append(call(m.OpenRequest(made.entry.node, os.O_RDONLY, False, 1000, 0)).flags)
    directory = call(m.OpendirRequest(folder, 0)).handle
    seen.append(call(m.ReaddirRequest(directory, 0, 4096)).entries)
    for target in (b"elsewhere", b"t" * 4095, b"b"):
        link = call(m.SymlinkRequest(folder, b"s" + target[:1], target, 0, 0, (7, 8))).entry.node
        seen.append(call(m.ReadlinkRequest(link)).target)
    call(m.SymlinkRequest(folder, b"sb", b"again", 0, 0, ()))
    call(m.ReadlinkRequest(folder))
    assert call(m.LinkRequest(made.entry.node, folder, b"c")).entry.attr.nlink == 2
    call(m.LinkRequest(made.entry.node, folder, b"c"))
    call(m.RenameRequest(folder, b"b", folder, b"c", 0))  # one inode: nothing happens
    call(m.RenameRequest(folder, b"sb", folder, b"se", 0))
    call(m.RenameRequest(folder, b"se", folder, b"st", 2))  # RENAME_EXCHANGE
    call(m.RenameRequest(folder, b"se", folder, b"st", 1))  # RENAME_NOREPLACE
    for name in (b"se", b"st", b"c"):
        call(m.UnlinkRequest(folder, name))
    call(m.UnlinkRequest(folder, b"b"))
    call(m.UnlinkRequest(folder, b"b"))
    call(m.RmdirRequest(1, b"d"))
    call(m.RmdirRequest(1, b"d"))
    call(m.CleanupRequest((), (made.handle,), ()))
    call(m.ReadRequest(made.handle, 0, 100))
    return seen


def test_an_opening_brings_what_a_short_file_holds(served: Served, tmp_path: Path) -> None:
    """From the page cache as from the disk; and nothing where it is not all, or need not be read."""
    data = random.Random(1).randbytes(5000)
    (tmp_path / "f").write_bytes(data)
    (tmp_path / "empty").touch()

    with Client(served.connect()) as client:
        node, empty = (client.call(m.LookupRequest(1, name))[1].entry.node for name in (b"f", b"empty"))

        def brings(size: int, flags: int = os.O_RDONLY, *, of: int = node, keep: int = 0) -> bytes:
            number, _, payload = client.call(m.OpenRequest(of, flags, False, keep, size))
            assert number == 0
            return bytes(payload)

        assert brings(5000) == brings(16384, os.O_RDWR) == brings(1 << 20) == data
        with (tmp_path / "f").open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert brings(16384) == data
        assert brings(0) == brings(4999) == brings(16384, of=empty) == b""
        assert brings(16384, os.O_WRONLY) == brings(16384, os.O_DIRECT) == b""
        assert brings(16384, keep=0xFFFFFFFF) == b"", "the guest keeps what it has"
        (tmp_path / "f").write_bytes(bytes(70_000))
        assert brings(1 << 20) == b"", "too long"
        assert brings(1 << 20, os.O_RDWR | os.O_TRUNC) == b""
    assert served.dispatched == []


def test_contents_are_not_kept_with_the_reply(served: Served, tmp_path: Path) -> None:
    """What is answered again comes without: it may be old by then."""
    (tmp_path / "f").write_bytes(b"contents")
    with Client(served.connect()) as client:
        node = client.call(m.LookupRequest(1, b"f"))[1].entry.node
        asked = client.send(m.OpenRequest(node, os.O_RDONLY, False, 0, 16384))
        end = time.monotonic() + PATIENCE
        while served.tables.slots.load(asked.slot).seq != asked.seq or served.wire.in_flight:
            assert time.monotonic() < end
            time.sleep(0.01)
        client.come_back(served.connect())  # nothing was received of the reply
        sock, connection = client.connections[0]
        sock.sendall(b"".join(connection.request(asked)))
        again = client.wait(asked)
        assert isinstance(again.reply, m.OpenReply)
        assert (again.errno, bytes(again.payload)) == (0, b"")
        assert client.call(m.ReadRequest(again.reply.handle, 0, 100))[2] == b"contents"


def test_the_answers_are_those_of_python(tmp_path: Path) -> None:
    answers = []
    for native in (False, True):
        place = tmp_path / str(native)
        place.mkdir()
        with serving(place, native=native) as served, Client(served.connect()) as client:
            answers.append(hot(client, place))
            if native:
                assert served.dispatched == [], "all of it ran in C"
                assert served.wire.in_flight == 0
    assert answers[0] == answers[1]


def test_a_change_of_names_brings_the_directory(served: Served, headers: list[Any]) -> None:
    """Attached to the reply, with what the change has made of it (SPEC.md, UNLINK)."""
    with Client(served.connect()) as client:
        made = client.call(m.MkdirRequest(1, b"d", 0o755, 0, 0, 0, ()))[1].entry.node

        def attached(request: Any) -> list[Any]:
            number, reply, _ = client.call(request)
            assert number == 0
            return [tuple(attr) for attr in headers[-1][3 + len(reply) :]]

        def now(node: int) -> Any:
            return client.call(m.GetattrRequest(node, 0))[1].attr

        create = m.CreateRequest(1, b"f", os.O_RDWR | os.O_CREAT, 0o644, 0, 0, 0, (), False)
        for request, nodes in (
            (create, (1,)),
            (m.RenameRequest(1, b"f", 1, b"g", 0), (1,)),
            (m.RenameRequest(1, b"g", made, b"h", 0), (1, made)),
            (m.UnlinkRequest(made, b"h"), (made,)),
            (m.RmdirRequest(1, b"d"), (1,)),
        ):
            assert attached(request) == [now(node) for node in nodes]
        assert client.call(m.UnlinkRequest(1, b"gone"))[0] == errno.ENOENT
        assert len(headers[-1]) == 3


def test_the_page_that_has_the_last_entry_says_so(served: Served, headers: list[Any]) -> None:
    with Client(served.connect()) as client:
        for number in range(3):
            client.call(m.MkdirRequest(1, b"d%d" % number, 0o755, 0, 0, 0, ()))
        handle = client.call(m.OpendirRequest(1, 0))[1].handle
        offset, entries, ends = 0, [], []
        for _ in range(3):
            number, reply, page = client.call(m.ReaddirRequest(handle, offset, 3 * 160))
            assert number == 0
            entries.append(reply.entries)
            ends.append(headers[-1][4:])
            offset = int.from_bytes(bytes(page)[-104:-96], "little") if reply.entries else offset
        assert (entries, ends) == ([3, 2, 0], [[], [True], []])


def test_a_listing_of_what_is_known_says_what_is_there_now(served: Served, tmp_path: Path) -> None:
    """Inodes of which there are descriptors are not opened again; a name may stand for another of them meanwhile."""
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(name.encode())
    os.link(tmp_path / "a", tmp_path / "also a")
    with Client(served.connect()) as client:
        known = {name: client.call(m.LookupRequest(1, name))[1].entry.node for name in (b"a", b"b", b"c")}

        def nodes() -> dict[bytes, int]:
            handle = client.call(m.OpendirRequest(1, 0))[1].handle
            page = bytes(client.call(m.ReaddirRequest(handle, 0, 1 << 14))[2])
            found, at = {}, 0
            while at < len(page):
                node, size = struct.unpack_from("<Q16xI", page, at)
                found[page[at + 112 : at + 112 + size]] = node
                at += 112 + (size + 7) // 8 * 8
            return {name: node for name, node in found.items() if name not in (b".", b"..")}

        before = served.tables.statistics()["lookups"]
        assert nodes() == {**known, b"also a": known[b"a"]}
        assert served.tables.statistics()["lookups"] == before + 4
        (tmp_path / "b").rename(tmp_path / "a")
        (tmp_path / "c").unlink()
        (tmp_path / "c").touch()
        after = nodes()
        assert (after[b"a"], after[b"also a"]) == (known[b"b"], known[b"a"])
        assert after[b"c"] not in known.values()
        (tmp_path / "c").write_bytes(b"longer")
        assert nodes() == after


@pytest.mark.parametrize("body_crc", [False, True])
def test_data_of_every_size_comes_as_it_was(tmp_path: Path, body_crc: bool) -> None:
    chance = random.Random(7)
    with serving(tmp_path) as served, Client(served.connect(body_crc=body_crc), body_crc=body_crc) as client:
        made = client.call(m.CreateRequest(1, b"f", os.O_RDWR | os.O_CREAT, 0o600, 0, 0, 0, (), False))[1]
        for size in (0, 1, 4095, 65_500, 65_536, 131_073, 1 << 20):
            data = chance.randbytes(size)
            assert client.call(m.WriteRequest(made.handle, 0, 0), data)[1].size == size
            assert client.call(m.ReadRequest(made.handle, 0, size))[2] == data


@contextmanager
def carried(packets: socket.socket) -> Iterator[tuple[socket.socket, list[int]]]:
    """A stream that leads to a socket of packets, and the sizes of those that came from there."""
    near, far = socket.socketpair()
    sizes: list[int] = []

    def there() -> None:
        while some := far.recv(4096):
            packets.sendall(some)
        packets.shutdown(socket.SHUT_RDWR)

    def back() -> None:
        while some := packets.recv(1 << 20):
            sizes.append(len(some))
            far.sendall(some)
        far.shutdown(socket.SHUT_RDWR)

    threads = [threading.Thread(target=there), threading.Thread(target=back)]
    with near, far, packets:
        for thread in threads:
            thread.start()
        try:
            yield near, sizes
        finally:
            with suppress(OSError):  # the client has closed it
                near.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(PATIENCE)


@pytest.mark.parametrize("body_crc", [False, True])
def test_no_call_sends_more_than_the_socket_takes_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body_crc: bool
) -> None:
    """vsock's limit, on a socket that keeps apart what each call sends."""
    monkeypatch.setattr(native_module, "send_limit", lambda _: 32_000)
    data = random.Random(3).randbytes(200_000)
    (tmp_path / "f").write_bytes(data)
    with serving(tmp_path) as served:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        served.session.add(theirs, body_crc=body_crc)
        with carried(ours) as (near, sizes), Client(near, body_crc=body_crc) as client:
            handle = opened(client, b"f")
            for size in (1, 31_900, 32_000, 64_000, len(data)):
                assert client.call(m.ReadRequest(handle, 0, size))[2] == data[:size]
        assert max(sizes) == 32_000


def test_many_at_once_on_two_connections(served: Served, tmp_path: Path) -> None:
    for number in range(32):
        (tmp_path / f"f{number}").write_bytes(bytes([number]) * 4096)
    with Client(served.connect()) as client:
        client.attach(served.connect())
        handles = [opened(client, b"f%d" % number) for number in range(32)]
        for _ in range(20):
            tickets = [client.send(m.ReadRequest(handle, 0, 4096), via=i % 2) for i, handle in enumerate(handles)]
            for number, ticket in enumerate(tickets):
                assert bytes(client.wait(ticket).payload) == bytes([number]) * 4096


def test_what_was_done_is_answered_again_and_not_done_again(served: Served, tmp_path: Path) -> None:
    (tmp_path / "gone").touch()
    for number in range(100):
        (tmp_path / f"a long name for a long page {number}").touch()
    with Client(served.connect()) as client:
        directory = client.call(m.OpendirRequest(1, 0))[1].handle
        tickets = [client.send(m.UnlinkRequest(1, b"gone")), client.send(m.ReaddirRequest(directory, 0, 1 << 15))]
        end = time.monotonic() + PATIENCE
        while (
            any(served.tables.slots.load(ticket.slot).seq != ticket.seq for ticket in tickets) or served.wire.in_flight
        ):
            assert time.monotonic() < end
            time.sleep(0.01)
        lookups = served.tables.statistics()["lookups"]
        client.come_back(served.connect())  # nothing was received of either reply
        sock, connection = client.connections[0]
        for ticket in tickets:
            sock.sendall(b"".join(connection.request(ticket)))
        unlinked, page = [client.wait(ticket) for ticket in tickets]
        assert unlinked.errno == 0 and page.errno == 0
        assert len(page.payload) > 10_000
        assert served.tables.statistics()["lookups"] == lookups
        assert client.call(m.UnlinkRequest(1, b"gone"))[0] == errno.ENOENT


@pytest.fixture
def leased(tmp_path: Path) -> Iterator[Path]:
    """A file that nobody can open for writing for a long time: this process has a lease on it (fcntl(2))."""
    path = tmp_path / "leased"
    path.write_bytes(b"data")
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # what tells the holder
    fd = os.open(path, os.O_RDONLY)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    yield path
    os.close(fd)
    signal.signal(signal.SIGIO, before)


def test_an_open_that_waits_holds_up_nobody_and_can_be_interrupted(served: Served, leased: Path) -> None:
    with Client(served.connect()) as client:
        node = client.call(m.LookupRequest(1, b"leased"))[1].entry.node
        waits = client.send(m.OpenRequest(node, os.O_WRONLY, False, 0, 0))
        for _ in range(20):
            assert client.call(m.GetattrRequest(node, 0))[0] == 0
        client.interrupt(waits)
        assert client.wait(waits).errno == errno.EINTR
        assert served.dispatched == []


def test_whoever_leads_after_another_has_all_that_came(served: Served, leased: Path, tmp_path: Path) -> None:
    """The thread that receives is held up again and again, with further requests of all sizes behind it."""
    sizes = (1, 5000, 60_000, 100_000, 300_000)
    with Client(served.connect()) as client:
        node = client.call(m.LookupRequest(1, b"leased"))[1].entry.node
        (tmp_path / "f").touch()
        handle = opened(client, b"f", os.O_RDWR)
        expected = b""
        waits = []
        for turn in range(6):
            waits.append(client.send(m.OpenRequest(node, os.O_WRONLY, False, 0, 0)))
            tickets = []
            for number, size in enumerate(sizes[turn % 2 :] + sizes[: turn % 2]):
                data = bytes([turn * 16 + number]) * size
                tickets.append(client.send(m.WriteRequest(handle, len(expected), 0), data))
                expected += data
            assert [client.wait(ticket).errno for ticket in tickets] == [0] * len(sizes)
        for ticket in waits:
            client.interrupt(ticket)
        assert [client.wait(ticket).errno for ticket in waits] == [errno.EINTR] * len(waits)
        assert (tmp_path / "f").read_bytes() == expected
        assert served.dispatched == []


def test_what_is_slow_does_not_keep_others_from_being_quick(served: Served, leased: Path) -> None:
    """Many waits that end together, and then the same operation where it does not wait."""
    with Client(served.connect()) as client:
        node = client.call(m.LookupRequest(1, b"leased"))[1].entry.node
        for _ in range(3):
            waits = [client.send(m.OpenRequest(node, os.O_WRONLY, False, 0, 0)) for _ in range(8)]
            assert client.call(m.GetattrRequest(node, 0))[0] == 0
            for ticket in waits:
                client.interrupt(ticket)
            assert {client.wait(ticket).errno for ticket in waits} == {errno.EINTR}
            for _ in range(40):
                _number, reply, _data = client.call(m.OpenRequest(node, os.O_RDONLY, False, 0, 0))
                client.call(m.CleanupRequest((), (reply.handle,), ()))
        assert served.dispatched == []


def together(client: Client, requests: list[Any]) -> list[Ticket]:
    """Sends requests in one go on the first connection."""
    sock, connection = client.connections[0]
    tickets = [client.session.take(SlotKind.REQUEST, request, b"") for request in requests]
    taken = [ticket for ticket in tickets if ticket is not None]
    assert len(taken) == len(requests), "no free slot"
    sock.sendall(b"".join(bytes(part) for ticket in taken for part in connection.request(ticket)))
    return taken


def test_what_is_ready_does_not_wait_for_what_came_with_it(served: Served, leased: Path, tmp_path: Path) -> None:
    """Replies that would leave together with that of a request which turns out to wait."""
    (tmp_path / "f").write_bytes(b"data")
    with Client(served.connect()) as client:
        node = client.call(m.LookupRequest(1, b"leased"))[1].entry.node
        handle = opened(client, b"f")
        read, flush = m.ReadRequest(handle, 0, 4), m.FlushRequest(handle, 0)
        waiting = m.CreateRequest(1, b"leased", os.O_WRONLY, 0o600, 0, 0, 0, (), False)
        for stuck in (waiting, m.OpenRequest(node, os.O_WRONLY, False, 0, 0)) * 3:
            tickets = together(client, [flush, read, flush, stuck, read, flush, stuck, flush, read])
            waits = [tickets.pop(6), tickets.pop(3)]
            replies = [client.wait(ticket) for ticket in tickets]
            assert [reply.errno for reply in replies] == [0] * 7
            assert [bytes(replies[i].payload) for i in (1, 3, 6)] == [b"data"] * 3
            for ticket in waits:
                client.interrupt(ticket)
                assert client.wait(ticket).errno == errno.EINTR
        assert served.dispatched == []
    assert served.wire.in_flight == 0


@pytest.mark.parametrize("body_crc", [False, True])
def test_what_comes_together_is_answered_each_for_itself(tmp_path: Path, body_crc: bool) -> None:
    """More small ones than leave together, and such with much data in between."""
    for number in range(60):
        (tmp_path / f"f{number}").write_bytes(bytes([number]) * number * 300)
    with serving(tmp_path) as served, Client(served.connect(body_crc=body_crc), body_crc=body_crc) as client:
        handles = [opened(client, b"f%d" % number) for number in range(60)]
        directory = client.call(m.OpendirRequest(1, 0))[1].handle
        for turn in range(10):
            requests: list[Any] = [m.ReadRequest(handle, 0, 1 << 15) for handle in handles]
            requests[::3] = [m.MkdirRequest(1, b"d%d-%d" % (turn, n), 0o755, 0, 0, 0, ()) for n in range(20)]
            requests[1::6] = [m.ReaddirRequest(directory, 0, 1 << 15)] * 10
            tickets = together(client, requests)
            for number, (request, ticket) in enumerate(zip(requests, tickets, strict=True)):
                replied = client.wait(ticket)
                reply: Any = replied.reply
                assert replied.errno == 0
                if isinstance(request, m.ReadRequest):
                    assert bytes(replied.payload) == bytes([number]) * number * 300
                elif isinstance(request, m.MkdirRequest):
                    assert reply.entry.attr.ino == os.stat(tmp_path / os.fsdecode(request.name)).st_ino
                else:
                    assert len(replied.payload) > 1000
        assert served.dispatched == []


def test_a_client_that_does_not_read_holds_up_nobody(served: Served, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(1 << 20))
    with Client(served.connect()) as client:
        client.attach(served.connect())
        handle = opened(client, b"f")
        unread = [client.send(m.ReadRequest(handle, 0, 1 << 20), via=0) for _ in range(8)]
        time.sleep(0.2)
        for _ in range(10):
            # Only the other connection is read meanwhile.
            ticket = client.send(m.GetattrRequest(1, 0), via=1)
            sock, connection = client.connections[1]
            end = time.monotonic() + PATIENCE
            while ticket not in client.replies:
                assert time.monotonic() < end
                client._receive(sock, connection)
        for ticket in unread:
            assert len(client.wait(ticket).payload) == 1 << 20


@pytest.mark.parametrize("at", [0, 8, 12, 17])
def test_a_broken_frame_ends_its_connection_alone(served: Served, at: int) -> None:
    with Client(served.connect()) as client:
        client.attach(served.connect())
        ticket = client.session.take(SlotKind.REQUEST, m.GetattrRequest(1, 0), b"")
        assert ticket is not None
        sock, connection = client.connections[1]
        frame = bytearray(b"".join(connection.request(ticket)))
        frame[at] ^= 0xFF
        sock.sendall(frame)
        client.pump(lambda: client.lost)
        end = time.monotonic() + PATIENCE
        while len(served.wire.open_connections()) > 1:
            assert time.monotonic() < end
            time.sleep(0.01)
        client.come_back(served.connect())  # the server still has the other one
        assert client.call(m.GetattrRequest(1, 0))[0] == 0
