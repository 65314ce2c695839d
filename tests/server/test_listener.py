"""The listener: who gets which session, who is refused and how, and what is left when it stops."""

import os
import select
import signal
import socket
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from fusepipe.server import ServerError, ServerOptions, Volume, VolumeError
from fusepipe.server import listener as module
from fusepipe.transport import Listener, ListenError, OutOfResources
from fusepipe.wire import ErrorCode, encode_request
from fusepipe.wire import messages as m
from fusepipe.wire.frames import FrameSender
from tests.server.processes import Sessions, client, dial, leased, serving, until
from tests.server.sessions import PATIENCE, Client, offer

pytestmark = pytest.mark.usefixtures("lines")


def volume(path: Path, name: str = "v", **options: Any) -> Volume:
    path.mkdir(exist_ok=True)
    return Volume(name, str(path), **options)


def refused(client: Client) -> ErrorCode:
    with client:
        assert client.refused is not None
        return client.refused.code


# ---- sessions ----


def test_two_volumes_and_two_clients_at_once(tmp_path: Path, sessions: Sessions) -> None:
    volumes = [volume(tmp_path / "a", "a"), volume(tmp_path / "b", "b", read_only=True)]
    (tmp_path / "a" / "only-a").touch()
    (tmp_path / "b" / "only-b").touch()
    path = tmp_path / "s"
    with serving([f"unix:{path}"], volumes), client(path, b"a") as a, client(path, b"b") as b:
        for _ in range(50):
            tickets = a.send(m.LookupRequest(1, b"only-a")), b.send(m.LookupRequest(1, b"only-b"))
            assert (a.wait(tickets[0]).errno, b.wait(tickets[1]).errno) == (0, 0)
        assert a.call(m.LookupRequest(1, b"only-b"))[0] != 0
        assert a.reply is not None and not a.reply.read_only
        assert b.reply is not None and b.reply.read_only
        assert a.reply.session != b.reply.session
        assert len(sessions()) == 2
        a.bye()
        until(lambda: len(sessions()) == 1)
        assert b.call(m.GetattrRequest(1, 0))[0] == 0
    assert sessions() == [] and not path.exists()


def test_two_sessions_of_one_volume_on_two_addresses(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "vmm_52"
    addresses = [f"unix:{one}", f"firecracker:{tmp_path}/vmm:52"]
    with serving(addresses, [volume(tmp_path / "a")]), client(one) as first, client(two) as second:
        assert first.reply is not None and second.reply is not None
        assert "body-crc" not in first.reply.features and "body-crc" in second.reply.features
        first.call(m.MkdirRequest(1, b"x", 0o755, 0, os.geteuid(), os.getegid(), ()))
        assert second.call(m.LookupRequest(1, b"x"))[0] == 0
    assert sorted(os.listdir(tmp_path)) == ["a"]


def test_a_further_connection_reaches_its_own_session(tmp_path: Path, sessions: Sessions) -> None:
    path = tmp_path / "s"
    with serving([f"unix:{path}"], [volume(tmp_path / "a")]), client(path) as one, client(path) as other:
        one.attach(dial(path))
        other.attach(dial(path))
        assert one.call(m.GetattrRequest(1, 0), via=1)[0] == 0
        assert len(sessions()) == 2
        one.come_back(dial(path))
        assert one.call(m.GetattrRequest(1, 0))[0] == 0
        one.bye()
        assert other.call(m.GetattrRequest(1, 0), via=1)[0] == 0


def test_an_unknown_session_is_stale(tmp_path: Path, lines: Any, sessions: Sessions) -> None:
    path = tmp_path / "s"
    with serving([f"unix:{path}"], [volume(tmp_path / "a")]), client(path) as gone:
        gone.bye()
        until(lambda: not sessions())
        attach = m.AttachRequest(b"i" * 16, m.Secret(b"s" * 32), ())
        with dial(path) as sock:
            sock.sendall(b"".join(FrameSender().frame(encode_request(None, 1, attach))))
            assert b"does not know this session" in sock.recv(1000)
        assert "a client was refused" in lines()


# ---- refusals ----


def test_typed_refusals(tmp_path: Path, lines: Any, sessions: Sessions) -> None:
    path = tmp_path / "s"
    with serving([f"unix:{path}"], [volume(tmp_path / "a")], ServerOptions(max_sessions=1)):
        assert refused(client(path, b"other")) is ErrorCode.NO_SUCH_VOLUME
        assert refused(client(path, hello=offer(major=2))) is ErrorCode.VERSION
        assert sessions() == []
        with client(path):
            assert refused(client(path)) is ErrorCode.LIMIT
        assert "there is no volume 'other'" in lines()
        until(lambda: "a session ended" in lines())
        (tmp_path / "a").rmdir()
        assert refused(client(path)) is ErrorCode.FAILED
        (tmp_path / "a").mkdir()
        with client(path) as again:
            assert again.call(m.GetattrRequest(1, 0))[0] == 0
    assert str(tmp_path / "a") in lines()


def test_the_host_tells_a_guest_none_of_its_paths(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with serving([f"unix:{path}"], [volume(tmp_path / "a")]):
        (tmp_path / "a").rmdir()
        with client(path) as asking:
            assert asking.refused is not None and str(tmp_path) not in asking.refused.text


def test_no_process_for_a_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: Any) -> None:
    def no_process(*_: object) -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    path = tmp_path / "s"
    with serving([f"unix:{path}"], [volume(tmp_path / "a")]):
        with monkeypatch.context() as patched:
            patched.setattr(module, "KeptSession", no_process)
            assert refused(client(path)) is ErrorCode.FAILED
        with client(path) as again:
            assert again.call(m.GetattrRequest(1, 0))[0] == 0
    assert "a session cannot be started" in lines()


def test_garbage_concerns_nobody_else(tmp_path: Path, lines: Any) -> None:
    path = tmp_path / "s"
    with serving([f"unix:{path}"], [volume(tmp_path / "a")]), client(path) as good:
        for garbage in (b"GET / HTTP/1.0\r\n\r\n", bytes(1000), os.urandom(100_000)):
            with dial(path) as sock, suppress(ConnectionError):
                sock.sendall(garbage)
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(10_000):
                    pass
        with dial(path) as sock:
            sock.sendall(b"".join(FrameSender().frame(b"\x93\xc0\x01\x06")))
            assert sock.recv(10_000)
        assert good.call(m.GetattrRequest(1, 0))[0] == 0
    assert lines().count("a client was refused") == 4


def test_half_a_first_frame(tmp_path: Path, lines: Any) -> None:
    path = tmp_path / "s"
    with serving([f"unix:{path}"], [volume(tmp_path / "a")]):
        with dial(path) as sock:
            sock.sendall(b"".join(FrameSender().frame(bytes(500)))[:100])
            sock.shutdown(socket.SHUT_WR)
            assert b"in the middle of the first frame" in sock.recv(10_000)
        with dial(path):
            pass
    assert "error" not in lines()


# ---- who says nothing ----


def test_silence_is_not_waited_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: Any) -> None:
    monkeypatch.setattr(module, "HELLO_PATIENCE", 0.1)
    path = tmp_path / "s"
    with serving([f"unix:{path}"], [volume(tmp_path / "a")]), dial(path) as silent:
        assert silent.recv(1) == b""
    assert "said nothing in time" in lines()


def test_the_silent_keep_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    path = tmp_path / "s"
    with serving([f"unix:{path}"], [volume(tmp_path / "a")]), ExitStack() as stack:
        silent = [stack.enter_context(dial(path)) for _ in range(6)]
        with client(path) as good:
            assert good.call(m.GetattrRequest(1, 0))[0] == 0
        for sock in silent[:3]:
            assert sock.recv(1) == b""
        silent[5].settimeout(0.05)
        with pytest.raises(TimeoutError):
            silent[5].recv(1)


def test_accepting_goes_on_when_there_are_descriptors_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: Any
) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.01)
    real, failures = Listener.accept, iter([OutOfResources("Too many open files"), PermissionError("a firewall")])

    async def accept(listener: Any) -> Any:
        if (failure := next(failures, None)) is not None:
            raise failure
        return await real(listener)

    monkeypatch.setattr(Listener, "accept", accept)
    path = tmp_path / "s"
    with serving([f"unix:{path}"], [volume(tmp_path / "a")]), client(path) as good:
        assert good.call(m.GetattrRequest(1, 0))[0] == 0
    assert lines().count("cannot accept connections") == 1


# ---- crashes and the end ----


def test_a_session_process_that_dies_is_its_own_loss_only(tmp_path: Path, lines: Any, sessions: Sessions) -> None:
    path = tmp_path / "s"
    with serving([f"unix:{path}"], [volume(tmp_path / "a")]), client(path) as lucky:
        (survivor,) = sessions()
        before = len(os.listdir("/proc/self/fd"))
        with client(path) as unlucky:
            (victim,) = set(sessions()) - {survivor}
            os.kill(victim, signal.SIGKILL)
            unlucky.pump(lambda: unlucky.lost)
        until(lambda: "a session process died" in lines())
        until(lambda: len(os.listdir("/proc/self/fd")) == before)
        assert lucky.call(m.GetattrRequest(1, 0))[0] == 0
        with client(path) as again:
            assert again.call(m.GetattrRequest(1, 0))[0] == 0


def test_stopping_lets_what_runs_end(tmp_path: Path, lines: Any, sessions: Sessions) -> None:
    path = tmp_path / "s"
    with serving([f"unix:{path}"], [volume(tmp_path / "a")]) as server, client(path) as one:
        with leased(tmp_path / "a" / "leased"):
            node = one.call(m.LookupRequest(1, b"leased"))[1].entry.node
            slow = one.send(m.OpenRequest(node, os.O_RDWR, False, 0, 0))
            one.ping()
            server.stop()
            # The address is given up first, not after the sessions.
            until(lambda: not path.exists())
            assert server.thread.is_alive()
        assert one.wait(slow).errno == 0
        one.pump(lambda: one.lost)
        server.thread.join(PATIENCE)
    assert sessions() == []
    assert "a session ended" in lines()


def test_stopping_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: Any, sessions: Sessions) -> None:
    monkeypatch.setattr("fusepipe.server.launching.KILL_PATIENCE", 0.3)
    path = tmp_path / "s"
    with serving([f"unix:{path}"], [volume(tmp_path / "a")], ServerOptions(drain=0.1)) as server, client(path):
        os.kill(sessions()[0], signal.SIGSTOP)
        server.stop()
        server.thread.join(PATIENCE)
        assert not server.thread.is_alive()
    assert "a session process died" in lines()


def test_stopping_at_once(tmp_path: Path, sessions: Sessions) -> None:
    path = tmp_path / "s"
    with serving([f"unix:{path}"], [volume(tmp_path / "a")]) as server, dial(path), dial(path) as sock:
        hello = encode_request(None, 1, offer())
        sock.sendall(b"".join(FrameSender().frame(hello)))
        server.stop()
    assert sessions() == []


# ---- addresses that do not listen ----


def test_an_inherited_connection_is_served_to_its_end(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with serving([f"fd:{theirs.detach()}"], [volume(tmp_path / "a")]) as server:
        with Client(ours) as one:
            assert one.call(m.GetattrRequest(1, 0))[0] == 0
            assert server.thread.is_alive()
        server.thread.join(PATIENCE)
        assert not server.thread.is_alive()


def accepted(vmm: socket.socket) -> socket.socket:
    """A connection that was dialled through a VMM's socket."""
    sock, _ = vmm.accept()
    sock.settimeout(PATIENCE)
    try:
        line = b""
        while not line.endswith(b"\n"):
            line += sock.recv(1)
        assert line == b"CONNECT 52\n"
        sock.sendall(b"OK 1024\n")
    except BaseException:
        sock.close()
        raise
    return sock


class Vmm:
    """Stands for Firecracker with a guest that listens: hands out the connections that were dialled."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE)
        self.sock.bind(str(path))
        self.sock.listen()

    def accept(self) -> socket.socket:
        return accepted(self.sock)


def test_a_guest_that_listens_is_dialled_as_often_as_it_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sessions: Sessions
) -> None:
    """One connection is there beside those in use: for each mount, for further ones, and to come back after a loss."""
    monkeypatch.setattr(module, "DIAL_PAUSE", 0.01)
    vmm = Vmm(tmp_path / "v")
    options = ServerOptions(session_grace=60)
    with vmm.sock, serving([f"firecracker-connect:{tmp_path}/v:52"], [volume(tmp_path / "a")], options):
        vmm.accept().close()
        for wanted in (3, 1, 2):
            first = vmm.accept()
            assert not select.select([vmm.sock], [], [], 0.1)[0], "one is enough"
            with Client(first, offer(connections=wanted), body_crc=True) as one:
                one.ping()
                for number in range(1, wanted):
                    one.attach(vmm.accept())
                    assert one.call(m.GetattrRequest(1, 0), via=number)[0] == 0
                for sock, _ in one.connections:
                    sock.close()
                one.come_back(vmm.accept())
                assert one.call(m.GetattrRequest(1, 0))[0] == 0
                one.bye()
        until(lambda: not sessions())


@pytest.mark.parametrize("grace", [600.0, 0.1])
def test_a_guest_that_is_away_is_dialled_until_it_listens_again(
    tmp_path: Path, grace: float, sessions: Sessions
) -> None:
    """It loses all connections at once, and its VMM is gone for a while: its session lasts for the grace."""
    socket_path, options = tmp_path / "v", ServerOptions(session_grace=grace)
    with ExitStack() as stack:
        vmm = stack.enter_context(Vmm(socket_path).sock)
        stack.enter_context(serving([f"firecracker-connect:{socket_path}:52"], [volume(tmp_path / "a")], options))
        one = stack.enter_context(Client(accepted(vmm), body_crc=True))
        one.attach(accepted(vmm))
        assert one.call(m.GetattrRequest(1, 0))[0] == 0
        unused = accepted(vmm)
        socket_path.unlink()
        vmm.close()
        for sock in (unused, *(sock for sock, _ in one.connections)):
            sock.close()
        until(lambda: grace > 1 or not sessions())
        again = stack.enter_context(Vmm(socket_path).sock)
        one.come_back(accepted(again))
        if grace > 1:
            assert one.call(m.GetattrRequest(1, 0))[0] == 0
            one.bye()
        else:
            assert one.refused is not None
            assert one.refused.code is ErrorCode.STALE
            one.close()
        with Client(accepted(again), body_crc=True) as another:
            assert another.call(m.GetattrRequest(1, 0))[0] == 0
            another.bye()


def test_something_that_is_no_vmm_is_complained_about_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: Any
) -> None:
    monkeypatch.setattr(module, "DIAL_PAUSE", 0.01)
    (tmp_path / "v").touch()
    with serving([f"firecracker-connect:{tmp_path}/v:52"], [volume(tmp_path / "a")]):
        until(lambda: "cannot dial the guest" in lines())
        threading.Event().wait(0.1)
        assert lines() == ""


# ---- what cannot be served ----


def test_mistakes_are_said_before_anything_starts(tmp_path: Path) -> None:
    good, path = volume(tmp_path / "a"), f"unix:{tmp_path}/s"
    for addresses, volumes, error, part in [
        ([], [good], ServerError, "no address"),
        ([path], [], ServerError, "no volume"),
        ([path], [good, good], ServerError, "same name"),
        ([path], [good, Volume("x", f"{tmp_path}/none")], VolumeError, "no directory"),
        ([path, f"unix:{tmp_path}/none/s"], [good], ListenError, "cannot be opened"),
        ([path, path], [good], ListenError, "another process listens"),
    ]:
        with pytest.raises(error, match=part), serving(addresses, volumes):
            pass
    assert os.listdir(tmp_path) == ["a"]
