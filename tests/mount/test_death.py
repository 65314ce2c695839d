"""When one end dies: errors within a second and no hang, documented exit codes, and a mount point that recovers."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

import pytest

from tests.mount import children, harness
from tests.mount.blocking import BUSY, asks_a_filesystem, wait_in
from tests.mount.conftest import BlockMaker, MountFactory
from tests.mount.harness import Mount, eventually

CONNECTION_LOST = 8
SOON = 3.0  # the promise is one second; the rest is for a busy machine
PATIENCE = 30.0  # seconds for what was promised no time, on a busy machine


def mortal(mounts: MountFactory, real: str, *options: str, **more: object) -> Mount:
    """A mount that ends with its connection, and whose session the server gives back soon after that."""
    if real != "serve":
        return mounts(*options, **more)  # it can do no other
    return mounts("--on-disconnect", "fail", *options, serve_options=("--session-grace", "2"), **more)


def kill_session(mount: Mount) -> None:
    sessions = mount.session_pids()
    assert sessions, f"no session process found\n{mount.log()}"
    for pid in sessions:
        os.kill(pid, signal.SIGKILL)


def expect_the_end(mount: Mount) -> None:
    """The client exits with its code, and its log says why; that is no dirt here."""
    mount.allow.append("the connection to the server is lost|a session process died")
    client = mount.lost(PATIENCE)
    assert client.process.returncode == CONNECTION_LOST, mount.log()
    assert "lost" in client.errors(), "the client must say why it ends"


def kill_client(mount: Mount) -> None:
    assert mount.client is not None
    mount.client.process.kill()
    mount.lost()


def leave(mount: Mount) -> None:
    """Take the dead mount away as its users do."""
    done = harness.call("umount", mount.path)
    assert done.returncode == 0, done.stderr
    assert not mount.mounted()


def test_an_idle_client_ends_when_its_server_dies(mounts: MountFactory, real: str) -> None:
    mount = mortal(mounts, real)
    (mount.path / "file").write_text("x")
    kill_session(mount)
    expect_the_end(mount)
    assert children.outcome("os.stat(sys.argv[1])", mount.path) == "ENOTCONN"
    assert children.outcome("os.listdir(sys.argv[1])", mount.path) == "ENOTCONN"
    leave(mount)
    assert os.listdir(mount.path) == []


def test_the_next_mount_replaces_the_dead_one(mounts: MountFactory, real: str) -> None:
    mount = mortal(mounts, real)
    (mount.path / "file").write_text("x")
    kill_session(mount)
    expect_the_end(mount)
    mount.start()
    assert (mount.path / "file").read_text() == "x"


@pytest.mark.parametrize("operation", ["read", "open", "lookup", "fsync", "getattr"])
def test_waiting_calls_get_eio(
    volume: Path, block: BlockMaker, mounts: MountFactory, real: str, operation: str
) -> None:
    """Each call that waits for the dead server ends with EIO, LOOKUP too, within a second."""
    filesystem = block("--interruptible")
    mount = mortal(mounts, real, source=volume)
    waiters = [wait_in(operation, mount.path / "block" / f"{operation}-{i}") for i in range(3)]
    filesystem.blocked(3)
    start = time.monotonic()
    kill_session(mount)
    assert [children.finish(w, SOON + 2) for w in waiters] == ["EIO\n"] * 3
    assert time.monotonic() - start < SOON
    expect_the_end(mount)
    leave(mount)


def test_calls_that_wait_for_a_slot_get_eio(volume: Path, block: BlockMaker, mounts: MountFactory, real: str) -> None:
    """As those that have one."""
    filesystem = block("--interruptible")
    mount = mortal(mounts, real, "--readers", "2", source=volume)
    waiters = [wait_in("open", mount.path / "block" / f"open-{i}") for i in range(2)]
    filesystem.blocked(2)
    parked = [wait_in("lookup", mount.path / f"file{i}") for i in range(6)]
    eventually(lambda: all(map(asks_a_filesystem, parked)), PATIENCE, "all programs wait for a slot")
    kill_session(mount)
    assert [children.finish(w, PATIENCE) for w in [*waiters, *parked]] == ["EIO\n"] * 8
    expect_the_end(mount)
    leave(mount)


def test_programs_in_full_swing_get_errors_not_hangs(mounts: MountFactory, real: str) -> None:
    mount = mortal(mounts, real)
    programs = [children.spawn(BUSY, mount.path, who) for who in range(4)]
    for program in programs:
        assert children.read_line(program) == "ready"
    time.sleep(0.3)
    kill_session(mount)
    allowed = {errno.errorcode[code] for code in (errno.EIO, errno.ENOTCONN, errno.ECONNABORTED)}
    for program in programs:
        assert children.finish(program, SOON + 2).strip() in allowed
    expect_the_end(mount)
    leave(mount)


def test_a_server_that_answers_nothing_any_more(mounts: MountFactory, real: str) -> None:
    """Stopped, not dead: after PING is unanswered for its time (10 s together) calls end with EIO."""
    mount = mortal(mounts, real)
    (mount.source / "file").write_text("x")
    sessions = mount.session_pids()
    for pid in sessions:
        os.kill(pid, signal.SIGSTOP)
    try:
        waiter = wait_in("lookup", mount.path / "file")
        assert children.finish(waiter, 25.0) == "EIO\n"
        expect_the_end(mount)
    finally:
        for pid in sessions:
            if children.alive(pid):
                os.kill(pid, signal.SIGCONT)
    leave(mount)


def test_a_killed_client_is_replaced_by_the_next_mount(mounts: MountFactory, real: str) -> None:
    mount = mortal(mounts, real)
    (mount.path / "file").write_text("x")
    sessions = mount.session_pids()
    kill_client(mount)
    assert mount.mounted()
    assert children.outcome("os.stat(sys.argv[1])", mount.path) == "ENOTCONN"
    eventually(lambda: not any(map(children.alive, sessions)), 10.0, "the end of the killed client's session")
    mount.start()
    assert (mount.path / "file").read_text() == "x"
    if real == "serve":
        assert mount.server is not None
        assert mount.server.process.poll() is None


def test_umount_takes_away_a_killed_clients_mount(mounts: MountFactory, real: str) -> None:
    mount = mortal(mounts, real)
    kill_client(mount)
    leave(mount)


@pytest.mark.only_on("serve")
def test_the_listener_stops_with_sessions_running(mounts: MountFactory, real: str) -> None:
    """SIGTERM to `serve`: it drains and exits 0, removes its socket; the client ends with its code."""
    mount = mortal(mounts, real)
    (mount.path / "file").write_text("x")
    assert mount.server is not None
    assert mount.server.stop() == 0
    assert not mount.socket.exists()
    expect_the_end(mount)
    leave(mount)


@pytest.mark.only_on("serve")
def test_one_session_dies_and_the_others_go_on(mounts: MountFactory, real: str, scratch: Path) -> None:
    mount = mortal(mounts, real)
    (mount.path / "file").write_text("x")
    first = mount.session_pids()
    other = scratch / "other"
    other.mkdir()
    second = harness.Program("second", harness.Runner().command("mount", f"unix:{mount.socket}/vol", other), scratch)
    try:
        second.wait_line()
        for pid in first:
            os.kill(pid, signal.SIGKILL)
        expect_the_end(mount)
        leave(mount)
        assert children.run("print(open(sys.argv[1] + '/file').read())", other) == "x\n"
        assert second.stop() == 0
    finally:
        second.destroy()
