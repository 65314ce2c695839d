"""One listener takes the place of another: what it gets, when it is refused, and what becomes of the other one then."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from fusepipe.server import HandoverError, ServerOptions, Volume, handover
from fusepipe.server import listener as listener_module
from fusepipe.server.belongings import Packets, Room
from fusepipe.server.handover import Ask, Offer, Refused, Session, Source, Take, control_name
from fusepipe.server.replacing import Running
from fusepipe.transport import Address, Peer, UnixAddress, place
from fusepipe.wire import messages as m
from tests.server.half_way import take_and_go_away
from tests.server.processes import Serving, Sessions, client, dial, leased, serving, until
from tests.server.sessions import PATIENCE, Client
from tests.server.test_listener import Vmm
from tests.server.volume import needs_root

OPTIONS = ServerOptions(session_grace=600, sandbox="none", drain=5)


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    (tmp_path / "a").mkdir(mode=0o700)
    return Volume("v", str(tmp_path / "a"))


@pytest.fixture(params=[False, True], ids=["python", "native"])
def options(request: pytest.FixtureRequest) -> ServerOptions:
    return ServerOptions(session_grace=600, sandbox="none", drain=5, native=request.param)


@contextmanager
def replacing(path: Path, volume: Volume, options: ServerOptions = OPTIONS) -> Iterator[Serving]:
    with serving([f"unix:{path}"], [volume], options, replace=True) as server:
        yield server


def goes_on(one: Client, path: Path) -> None:
    """The client resumes its session and is served."""
    one.come_back(dial(path))
    assert one.call(m.GetattrRequest(1, 0))[0] == 0


def logged(lines: Any, words: str) -> str:
    """Wait until something has been logged: all of the log until then."""
    seen = ""

    def came() -> bool:
        nonlocal seen
        seen += lines()
        return words in seen

    until(came)
    return seen


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# ---- it takes over ----


def test_sessions_and_sockets_pass(tmp_path: Path, volume: Volume, options: ServerOptions, lines: Any) -> None:
    path = tmp_path / "s"
    before = descriptors()
    with serving([f"unix:{path}"], [volume], options) as old, client(path) as one, client(path) as other:
        identity = path.stat().st_ino
        made = one.call(m.CreateRequest(1, b"f", os.O_RDWR, 0o600, 0, 0, 0, (), False))[1]
        assert one.call(m.WriteRequest(made.handle, 0, 0), b"text")[0] == 0
        assert one.call(m.UnlinkRequest(1, b"f"))[0] == 0
        with replacing(path, volume, options):
            old.thread.join(PATIENCE)
            assert not old.thread.is_alive()
            assert old.replaced_by == [os.getpid()]
            goes_on(one, path)
            goes_on(other, path)
            assert one.call(m.ReadRequest(made.handle, 0, 100))[2] == b"text"
            assert path.stat().st_ino == identity
            with replacing(path, volume, options):
                goes_on(one, path)
                assert one.call(m.ReadRequest(made.handle, 0, 100))[2] == b"text"
                one.bye()
                other.close()
    assert not path.exists()
    until(lambda: descriptors() == before)
    assert "this server goes on in place of another" in lines()


@needs_root
def test_what_the_host_has_moved_is_found(tmp_path: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its handle, for which the broker has signed: no name that was ever seen leads there, and no path is known."""

    def no_path(*_: object) -> None:
        raise OSError(errno.ESTALE, "as after the kernel has dropped its caches")

    monkeypatch.setattr("fusepipe.server.broker.handle_within", no_path)
    path, folder = tmp_path / "s", Path(volume.path)
    (folder / "f").write_text("text")
    (folder / "elsewhere").mkdir()
    options = ServerOptions(session_grace=600, sandbox="require", drain=5)
    with serving([f"unix:{path}"], [volume], options), client(path) as one:
        node = one.call(m.LookupRequest(1, b"f"))[1].entry.node
        handle = one.call(m.OpenRequest(node, os.O_RDONLY, False, 0, 0))[1].handle
        (folder / "f").rename(folder / "elsewhere" / "g")
        with replacing(path, volume, options):
            goes_on(one, path)
            assert one.call(m.ReadRequest(handle, 0, 100))[2] == b"text"
            assert one.call(m.GetattrRequest(node, 0))[0] == 0
            one.bye()


def test_connections_wait_meanwhile(tmp_path: Path, volume: Volume, lines: Any) -> None:
    """Nobody is refused, however long it takes."""
    path = tmp_path / "s"
    with serving([f"unix:{path}"], [volume], OPTIONS) as old, client(path) as one:
        with leased(tmp_path / "a" / "leased"):
            node = one.call(m.LookupRequest(1, b"leased"))[1].entry.node
            slow = one.send(m.OpenRequest(node, os.O_RDWR, False, 0, 0))
            one.ping()
            new = Serving([f"unix:{path}"], [volume], OPTIONS, None, replace=True)
            new.thread.start()
            logged(lines, "another server takes over")
            # It rests when what runs has ended; whoever comes now is served by the next one.
            early = dial(path)
            assert old.thread.is_alive()
        assert one.wait(slow).errno == 0
        assert new.ready.wait(PATIENCE)
        assert new.error is None
        old.thread.join(PATIENCE)
        goes_on(one, path)
        with Client(early) as late:
            assert late.call(m.GetattrRequest(1, 0))[0] == 0
        one.bye()
        new.stop()
        new.thread.join(PATIENCE)
        assert not new.thread.is_alive()
        assert new.error is None


def test_what_does_not_end_is_made_again(tmp_path: Path, volume: Volume, options: ServerOptions) -> None:
    """It is interrupted, but its client does not learn that."""
    path = tmp_path / "s"
    options = ServerOptions(session_grace=600, sandbox="none", drain=0.4, native=options.native)
    with serving([f"unix:{path}"], [volume], options), client(path) as one, ExitStack() as lease:
        lease.enter_context(leased(tmp_path / "a" / "leased"))
        node = one.call(m.LookupRequest(1, b"leased"))[1].entry.node
        slow = one.send(m.OpenRequest(node, os.O_RDWR, False, 0, 0))
        one.ping()
        with replacing(path, volume, options):
            one.come_back(dial(path))
            sock, connection = one.connections[0]
            sock.sendall(b"".join(connection.request(slow)))
            one.ping()
            assert slow not in one.replies
            lease.close()
            assert one.wait(slow).errno == 0
            one.bye()


def test_nothing_to_replace(tmp_path: Path, volume: Volume, lines: Any) -> None:
    path = tmp_path / "s"
    with replacing(path, volume), client(path) as one:
        assert one.call(m.GetattrRequest(1, 0))[0] == 0
    assert "no server runs at these addresses, so there is none to replace" in lines()


def test_addresses_may_differ(tmp_path: Path, volume: Volume) -> None:
    """What both have passes, what only the old one had ends with it."""
    both, old_only, new_only = tmp_path / "both", tmp_path / "old", tmp_path / "new"
    with (
        serving([f"unix:{both}", f"unix:{old_only}"], [volume], OPTIONS) as old,
        client(old_only) as one,
        serving(
            [f"unix:{new_only}", f"firecracker:{tmp_path}/vmm:52", f"unix:{both}"], [volume], OPTIONS, replace=True
        ),
    ):
        old.thread.join(PATIENCE)
        assert not old_only.exists()
        for path in (both, new_only):
            goes_on(one, path)
        one.bye()
    assert sorted(os.listdir(tmp_path)) == ["a"]


def test_a_guest_that_is_dialled(tmp_path: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "DIAL_PAUSE", 0.01)
    address, vmm = f"firecracker-connect:{tmp_path}/v:52", Vmm(tmp_path / "v")
    with vmm.sock, serving([address], [volume], OPTIONS) as old, Client(vmm.accept(), body_crc=True) as one:
        vmm.accept().close()
        with serving([address], [volume], OPTIONS, replace=True):
            old.thread.join(PATIENCE)
            one.come_back(_alive(vmm))
            assert one.call(m.GetattrRequest(1, 0))[0] == 0
            one.bye()


def _alive(vmm: Vmm) -> socket.socket:
    """A connection that the new one has dialled; those of the old one are closed."""
    for _ in range(10):
        with suppress(OSError):
            sock = vmm.accept()
            if not select.select([sock], [], [], 0.2)[0]:
                return sock
            sock.close()
    raise AssertionError("nobody dials any more")


def test_a_session_whose_process_has_died_passes(
    tmp_path: Path, volume: Volume, sessions: Sessions, lines: Any
) -> None:
    """It is killed while it finishes what runs."""
    path = tmp_path / "s"
    with serving([f"unix:{path}"], [volume], OPTIONS), client(path) as one, leased(tmp_path / "a" / "leased"):
        node = one.call(m.LookupRequest(1, b"leased"))[1].entry.node
        one.send(m.OpenRequest(node, os.O_RDWR, False, 0, 0))
        one.ping()
        before = sessions()
        new = Serving([f"unix:{path}"], [volume], OPTIONS, None, replace=True)
        new.thread.start()
        logged(lines, "another server takes over")
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        assert new.ready.wait(PATIENCE)
        goes_on(one, path)
        one.bye()
        new.stop()
        new.thread.join(PATIENCE)
        assert new.error is None


# ---- it is refused, and the other one goes on ----


def test_a_volume_that_is_missing_or_another(tmp_path: Path, volume: Volume) -> None:
    path = tmp_path / "s"
    (tmp_path / "b").mkdir(mode=0o700)
    with serving([f"unix:{path}"], [volume], OPTIONS), client(path) as one:
        for other, words in ((Volume("w", volume.path), "does not have it"), (Volume("v", f"{tmp_path}/b"), "another")):
            with pytest.raises(HandoverError, match=words), replacing(path, other):
                pass
            assert one.call(m.GetattrRequest(1, 0))[0] == 0, "its connection was not touched"
        one.bye()


def test_a_volume_that_nobody_has_mounted_may_go(tmp_path: Path, volume: Volume) -> None:
    path = tmp_path / "s"
    with serving([f"unix:{path}"], [volume], OPTIONS), replacing(path, Volume("w", volume.path)), client(path, b"w"):
        pass


def test_sessions_that_end_with_their_connections(tmp_path: Path, volume: Volume) -> None:
    path = tmp_path / "s"
    with serving([f"unix:{path}"], [volume], ServerOptions(sandbox="none")), client(path) as one:
        with pytest.raises(HandoverError, match="--session-grace 0"), replacing(path, volume):
            pass
        assert one.call(m.GetattrRequest(1, 0))[0] == 0


def test_an_inherited_connection(tmp_path: Path, volume: Volume) -> None:
    path, (ours, theirs) = tmp_path / "s", socket.socketpair()
    with serving([f"unix:{path}", f"fd:{theirs.detach()}"], [volume], OPTIONS), Client(ours) as one:
        with pytest.raises(HandoverError, match="inherited"), replacing(path, volume):
            pass
        assert one.call(m.GetattrRequest(1, 0))[0] == 0


def test_another_version(tmp_path: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s"
    with serving([f"unix:{path}"], [volume], OPTIONS), client(path) as one:
        monkeypatch.setattr("fusepipe.server.replacing.VERSION", 99)
        with pytest.raises(HandoverError, match="another version"), replacing(path, volume):
            pass
        assert one.call(m.GetattrRequest(1, 0))[0] == 0
        one.bye()


def test_what_is_not_understood(tmp_path: Path, volume: Volume, lines: Any) -> None:
    path = tmp_path / "s"
    with serving([f"unix:{path}"], [volume], OPTIONS), client(path) as one:
        for packet in (b"rubbish", b"\x92\xa3Ask\x80", b"\x92\xa4Take\x80"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                where = place(UnixAddress(str(path)))
                assert where is not None
                sock.connect(control_name(where))
                sock.settimeout(PATIENCE)
                sock.send(packet)
                assert Refused.__name__.encode() in sock.recv(4096)
        assert one.call(m.GetattrRequest(1, 0))[0] == 0
        one.bye()
    assert "does not get it" in lines()


def test_servers_of_two(tmp_path: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pids are what tells them apart; here both are this process."""
    numbers = iter((11, 12))
    addresses = [f"unix:{tmp_path}/1", f"unix:{tmp_path}/2"]
    with (
        serving(addresses[:1], [volume], OPTIONS),
        serving(addresses[1:], [volume], OPTIONS),
        monkeypatch.context() as patched,
    ):
        patched.setattr("fusepipe.server.controls.is_own", lambda _: False)
        patched.setattr("fusepipe.server.replacing.is_own", lambda _: True)
        patched.setattr(handover, "peer_of", lambda _: Peer(pid=next(numbers)))
        with pytest.raises(HandoverError, match="belong to 2 servers: processes 11, 12"):
            trio.run(Running.find, [Address.parse(address) for address in addresses])


def test_another_users_server(tmp_path: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s"
    with serving([f"unix:{path}"], [volume], OPTIONS), client(path) as one:
        with monkeypatch.context() as patched:
            patched.setattr("fusepipe.server.replacing.is_own", lambda _: False)
            with pytest.raises(HandoverError, match="one of user"):
                trio.run(Running.find, [UnixAddress(str(path))])
        with monkeypatch.context() as patched:
            patched.setattr("fusepipe.server.controls.is_own", lambda _: False)
            with pytest.raises(HandoverError, match="gone"), replacing(path, volume):
                pass
        assert one.call(m.GetattrRequest(1, 0))[0] == 0
        one.bye()


# ---- it fails half way ----


@pytest.mark.parametrize("until_all", [False, True])
def test_the_new_one_goes_away(
    tmp_path: Path, volume: Volume, options: ServerOptions, until_all: bool, lines: Any
) -> None:
    path = tmp_path / "s"
    seen = ""
    with serving([f"unix:{path}"], [volume], options), client(path) as one:
        made = one.call(m.CreateRequest(1, b"f", os.O_RDWR, 0o600, 0, 0, 0, (), False))[1]
        assert one.call(m.UnlinkRequest(1, b"f"))[0] == 0
        lock = m.SetlkRequest(made.entry.node, made.handle, 7, 1, 0, 10, 1)
        assert one.call(lock)[0] == 0
        for _ in range(2):
            heard = take_and_go_away(path, volume, until_all=until_all)
            assert not until_all or {Source.__name__, Session.__name__} <= set(heard)
            seen += logged(lines, "this one goes on")
            goes_on(one, path)
            assert one.call(m.WriteRequest(made.handle, 0, 0), b"text")[0] == 0
        with replacing(path, volume, options):
            goes_on(one, path)
            assert one.call(m.ReadRequest(made.handle, 0, 100))[2] == b"text"
            assert one.call(m.SetlkRequest(made.entry.node, made.handle, 8, 1, 0, 10, 1))[0] != 0, "the lock is held"
            one.bye()
    assert "locks are lost" not in seen + lines()


def test_the_new_one_is_silent(tmp_path: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch, lines: Any) -> None:
    path = tmp_path / "s"
    monkeypatch.setattr(handover.Conversation.hear, "__defaults__", (0.3,))
    monkeypatch.setattr(handover.Conversation.expect, "__defaults__", (0.3,))

    async def stay_silent() -> str:
        running = await Running.find([UnixAddress(str(path))])
        assert running is not None
        await running.ask([UnixAddress(str(path))], {b"v": volume})
        await running._conversation.say(Take())
        try:
            while True:
                _message, fds = await running._conversation.hear(PATIENCE)
                for fd in fds:
                    os.close(fd)
        except HandoverError as error:
            return error.cause
        finally:
            running.close()

    with serving([f"unix:{path}"], [volume], OPTIONS), client(path) as one:
        assert "silent" in trio.run(stay_silent)
        goes_on(one, path)
        one.bye()
    assert "this one goes on" in lines()


def test_the_old_one_is_silent(tmp_path: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover.Conversation.expect, "__defaults__", (0.3,))
    with serving([f"unix:{tmp_path}/s"], [volume], OPTIONS), monkeypatch.context() as patched:
        patched.setattr("fusepipe.server.controls.Controls._converse", _never)
        with pytest.raises(HandoverError, match="silent"), replacing(tmp_path / "s", volume):
            pass


async def _never(_controls: object, conversation: handover.Conversation, *_: object) -> None:
    try:
        await trio.sleep_forever()
    finally:
        conversation.close()


def test_a_process_that_does_not_make_room(
    tmp_path: Path, volume: Volume, sessions: Sessions, monkeypatch: pytest.MonkeyPatch, lines: Any
) -> None:
    """It is killed, and the session passes all the same."""
    monkeypatch.setattr("fusepipe.server.giving_over.LEAVE_PATIENCE", 0.3)
    path = tmp_path / "s"
    options = ServerOptions(session_grace=600, sandbox="none", drain=0.1)
    with serving([f"unix:{path}"], [volume], options), client(path) as one:
        (pid,) = sessions()
        os.kill(pid, signal.SIGSTOP)
        with replacing(path, volume):
            goes_on(one, path)
            one.bye()
    assert "does not make room, and is killed" in lines()


def test_a_volume_without_file_handles_is_refused(
    tmp_path: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session's process says so, and its client notices nothing."""
    path = tmp_path / "s"
    with serving([f"unix:{path}"], [Volume("v", "/proc/self/task")], OPTIONS), client(path) as one:
        with pytest.raises(HandoverError, match="file handle"), replacing(path, Volume("v", "/proc/self/task")):
            pass
        assert one.call(m.GetattrRequest(1, 0))[0] == 0
        one.bye()


def test_room_for_what_is_left() -> None:
    room = Room()
    packets = Packets(room)
    left, before = room.left, descriptors()
    packets.add(b"one", [os.open("/", os.O_PATH)])
    assert (len(packets), room.left) == (1, left - 1)
    room.left = 0
    packets.add(b"two", [os.open("/", os.O_PATH)])
    assert next(iter(packets))[0] == b"one" and len(packets) == 1
    packets.close()
    assert descriptors() == before


def test_messages_survive_the_way(tmp_path: Path) -> None:
    """Names that are no UTF-8, and descriptors."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    async def exchange() -> None:
        a, b = handover.Conversation(ours), handover.Conversation(theirs)
        ask = Ask(1, 2, ["p"], {"\udcff": (1, 2)})
        with (tmp_path / "f").open("w") as file:
            await a.say(ask, [file.fileno()])
        message, (fd,) = await b.hear()
        assert message == Ask(1, 2, ["p"], {"\udcff": [1, 2]})  # type: ignore[dict-item]  # msgpack knows no tuples
        os.close(fd)
        await a.say(Offer([], 1.0))
        with pytest.raises(HandoverError, match="Offer where something else"):
            await b.expect(Ask)
        await b.say(Refused("why", "what to do"))
        with pytest.raises(HandoverError, match="why; what to do"):
            await a.expect(Ask)
        a.close()
        with pytest.raises(HandoverError, match="gone"):
            await b.hear()
        b.close()

    trio.run(exchange)
