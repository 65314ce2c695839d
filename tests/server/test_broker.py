"""The broker of file handles, with a session process that has few descriptors, and with one that asks badly."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusepipe import log
from fusepipe.server import ServerOptions, broker
from fusepipe.server.broker import ANSWER, HEADER, ITEM_SIZE, OPEN, PROVE, SHOW_MOUNT, SIGN, Authority, Broker
from fusepipe.syscalls import HANDLE_ID_SIZE, SIGN_TOGETHER, TAG_SIZE, device_of, handle_of, handle_within, open_handle
from fusepipe.wire import messages as m
from tests.server.processes import connected, ended, session, until
from tests.server.sessions import PATIENCE, Client
from tests.server.volume import needs_root

FILES = 300
BUDGET = 32


def statistics(process: int, capfd: pytest.CaptureFixture[str]) -> dict[str, int]:
    """What a session process logs when it is asked."""
    capfd.readouterr()
    os.kill(process, signal.SIGUSR2)
    logged = ""
    end = time.monotonic() + PATIENCE
    while "statistics of a session" not in logged or not logged.endswith("\n"):
        assert time.monotonic() < end
        logged += capfd.readouterr().err
        time.sleep(0.01)
    line = next(line for line in logged.splitlines() if "statistics of a session" in line)
    return {name: int(value) for name, _, value in (part.partition("=") for part in line.split()) if value.isdigit()}


def look_up(client: Client, names: list[str]) -> dict[str, int]:
    """The node ids."""
    return {name: client.call(m.LookupRequest(1, name.encode()))[1].entry.node for name in names}


@needs_root
@pytest.mark.parametrize("native", [False, True], ids=["python", "native"])
def test_inodes_beyond_the_budget_are_opened_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    monkeypatch.setattr(log._State, "settings", log.Settings("info"))
    monkeypatch.setattr(log._State, "rank", 20)
    names = [f"file-{number}" for number in range(FILES)]
    for name in names:
        (tmp_path / name).write_text(name)
    (tmp_path / "directory").mkdir()
    options = ServerOptions(sandbox="require", fd_budget=BUDGET, native=native)
    with session(tmp_path, options) as process, connected(process) as client:
        nodes = look_up(client, [*names, "directory"])
        for name in names:
            assert client.call(m.GetattrRequest(nodes[name], 0))[1].attr.ino == (tmp_path / name).stat().st_ino
        assert client.call(m.LinkRequest(nodes[names[0]], nodes["directory"], b"link"))[0] == 0
        assert (tmp_path / "directory" / "link").read_text() == names[0]
        for name in names[:50]:
            assert client.call(m.UnlinkRequest(1, name.encode()))[0] == 0
        held = statistics(process.pid, capfd)
        assert held["inodes"] == FILES + 2
        assert held["fds"] <= BUDGET
        assert held["reopened"] >= FILES - BUDGET
        assert held["signed_handles"] >= FILES - BUDGET
        client.bye()
        assert ended(process) == 0


@needs_root
def test_who_stays_within_the_budget_asks_for_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log._State, "settings", log.Settings("info"))
    monkeypatch.setattr(log._State, "rank", 20)
    names = [f"file-{number}" for number in range(FILES)]
    for name in names:
        (tmp_path / name).write_text(name)
    with session(tmp_path, ServerOptions(sandbox="require")) as process, connected(process) as client:
        for nodes in (look_up(client, names), look_up(client, names)):
            assert len(nodes) == FILES
        held = statistics(process.pid, capfd)
        assert held["signed_handles"] == held["reopened"] == held["evictions"] == 0
        client.bye()
        assert ended(process) == 0


@pytest.fixture
def asked() -> Iterator[tuple[Broker, socket.socket]]:
    """A broker for this process, which has no mounts of its own, and the other end of its socket."""
    made = Broker(Authority())
    sock = made.theirs.dup()
    made.start(os.getpid())
    made.theirs.close()
    with sock:
        sock.settimeout(PATIENCE)
        yield made, sock
    made.close(PATIENCE)
    assert not made._thread.is_alive()


def errors_of(sock: socket.socket, data: bytes, shown: list[int]) -> list[str]:
    """What a request came to."""
    socket.send_fds(sock, [data], shown)
    return [os.strerror(-error) for error, _tag in ANSWER.iter_unpack(sock.recv(SIGN_TOGETHER * ANSWER.size))]


def test_no_mount_of_the_launchers_own(asked: tuple[Broker, socket.socket], tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    before = len(os.listdir("/proc/self/fd"))
    assert errors_of(asked[1], HEADER.pack(SHOW_MOUNT, 1), [fd]) == ["Operation not permitted"]
    assert errors_of(asked[1], HEADER.pack(SIGN, 1), [fd]) == ["Operation not permitted"]
    until(lambda: len(os.listdir("/proc/self/fd")) <= before)
    os.close(fd)


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        HEADER.pack(0, 0),
        HEADER.pack(SIGN, 0),
        HEADER.pack(SIGN, SIGN_TOGETHER + 1),
        HEADER.pack(SIGN, 3) + b"x",
        HEADER.pack(PROVE, 3),
        HEADER.pack(PROVE, 1) + bytes(ITEM_SIZE),
        HEADER.pack(OPEN, 1) + bytes(ITEM_SIZE - 1),
        HEADER.pack(SHOW_MOUNT, 3),
        bytes(SIGN_TOGETHER * ITEM_SIZE),
        b"\xff" * 100_000,
    ],
)
def test_nonsense(asked: tuple[Broker, socket.socket], data: bytes) -> None:
    fds = [os.dup(asked[1].fileno()) for _ in range(3)]
    before = len(os.listdir("/proc/self/fd"))
    assert errors_of(asked[1], data, fds) == ["Invalid argument"]
    until(lambda: len(os.listdir("/proc/self/fd")) <= before)
    for fd in fds:
        os.close(fd)


def test_several_at_once_have_an_answer_each(asked: tuple[Broker, socket.socket], tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    assert errors_of(asked[1], HEADER.pack(SIGN, 3), [fd, fd]) == ["Operation not permitted"] * 2 + [
        os.strerror(23)  # ENFILE: as where the broker has no room for a descriptor
    ]
    assert errors_of(asked[1], HEADER.pack(PROVE, 2) + 2 * bytes(ITEM_SIZE), []) == ["Operation not permitted"] * 2
    os.close(fd)


def test_a_session_that_does_not_take_its_answers_loses_its_broker(
    asked: tuple[Broker, socket.socket], capfd: pytest.CaptureFixture[str]
) -> None:
    made, sock = asked
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    request = HEADER.pack(OPEN, 1) + bytes(ITEM_SIZE)

    def is_over() -> bool:
        try:
            sock.send(request, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return False

    until(is_over)
    made._thread.join(PATIENCE)
    assert not made._thread.is_alive()
    assert "does not take the answers of its broker" in capfd.readouterr().err


def test_more_than_the_quota_waits(asked: tuple[Broker, socket.socket]) -> None:
    made, sock = asked
    begin = made._counted = time.monotonic()
    made._quota = -broker.RATE / 10  # so much too many have come that the next one waits for 100 ms
    errors_of(sock, b"x", [])
    assert time.monotonic() - begin > 0.09


@needs_root
def test_a_broker_that_was_never_used_leaves_nothing() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Broker(Authority()):
        assert len(os.listdir("/proc/self/fd")) == before + 2
    assert len(os.listdir("/proc/self/fd")) == before


@needs_root
def test_handles_are_those_of_the_kernel(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    id, _mount = handle_of(fd)
    assert len(id) == HANDLE_ID_SIZE == ITEM_SIZE - TAG_SIZE
    assert device_of(id) == os.fstat(fd).st_dev
    again = open_handle(fd, id)
    assert os.path.sameopenfile(fd, again)
    os.close(again)
    with pytest.raises(OSError, match="tale"):
        open_handle(fd, id[:12] + bytes(HANDLE_ID_SIZE - 12))
    os.close(fd)


@needs_root
def test_within_is_what_its_path_leads_to(tmp_path: Path) -> None:
    """Here the mount namespace is the host's, and its root the directory that paths begin at."""
    root, mount = os.open("/", os.O_RDONLY), os.open(tmp_path, os.O_RDONLY)
    (tmp_path / "f").write_text("f")
    fd = os.open(tmp_path / "f", os.O_PATH)
    id, _mount = handle_of(fd)
    handle_within(root, mount, id)
    with pytest.raises(FileNotFoundError):
        handle_within(mount, mount, id)
    os.unlink(tmp_path / "f")
    with pytest.raises(FileNotFoundError):  # whatever now has the name that the kernel says
        handle_within(root, mount, id)
    (tmp_path / "f (deleted)").write_text("another")
    with pytest.raises(OSError, match="tale"):
        handle_within(root, mount, id)
    for opened in (fd, root, mount):
        os.close(opened)
