"""The server is replaced below a mount: everything that is open, locked or waits goes on with the new one."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount import children, mounttable
from tests.mount.blocking import REPORT
from tests.support import world
from tests.support.program import Program, Programs

GOES_ON = "a session goes on over new connections"
PATIENCE = 60.0
REFUSED = 6

WATCH = """
files = [open(name, "r+") for name in sys.argv[1:3]]
print("watching", flush=True)
free = 0
while not select.select([sys.stdin], [], [], 0.001)[0]:
    for file, lock in zip(files, (fcntl.lockf, fcntl.flock)):
        try:
            lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        free += 1
        lock(file, fcntl.LOCK_UN)
print(free, flush=True)
"""
"""Looks on the host, all the time, whether a lock of fcntl and one of flock are held."""


class Served:
    """A volume, the server that runs now, and a mount of it."""

    def __init__(self, program: Programs, folder: Path, native: str) -> None:
        self.volume, self.mnt = folder / "volume", folder / "mnt"
        self.volume.mkdir(mode=0o700)
        self.mnt.mkdir()
        self.socket = folder / "s"
        self._program = program
        self._common = ("--native", native, "--log-level", "info")

    def serve(self, *options: str, env: dict[str, str] | None = None) -> Program:
        return self._program(
            *("serve", "--listen", f"unix:{self.socket}", "--volume", f"data={self.volume}"),
            *(*options, *self._common),
            env=env or {},
        )

    def start(self, *mount_options: str, drain: int = 10, env: dict[str, str] | None = None) -> None:
        """Serve and mount it."""
        self.server = self.serve("--drain", str(drain), env=env)
        self.server.ready()
        self.client = self._program("mount", f"unix:{self.socket}/data", self.mnt, *mount_options, *self._common)
        self.client.expect_log("the connection to the server is lost|the session goes on over a new")
        self.client.ready()

    def replace(self) -> None:
        """Have another server take over, and wait until the mount goes on with it."""
        new = self.serve("--replace")
        new.ready()
        assert self.server.wait(PATIENCE) == 0, self.server.stderr
        self.server = new
        assert world.wait_until(lambda: GOES_ON in new.stderr, PATIENCE), new.stderr

    def stop(self) -> None:
        assert self.client.stop() == 0
        assert self.server.stop() == 0
        assert not self.socket.exists()


@pytest.fixture
def served(fuse: None, program: Programs, open_path: Path, native: str) -> Iterator[Served]:
    made = Served(program, open_path, native)
    yield made
    if mounttable.find(made.mnt) is not None:
        made.client.stop()


def test_what_is_open_lives_on(served: Served) -> None:
    """Also what was removed on the host, which would not outlive the death of the process."""
    served.start()
    mnt = served.mnt
    opened = {name: os.open(mnt / name, os.O_RDWR | os.O_CREAT) for name in ("kept", "unlinked", "host")}
    for name, fd in opened.items():
        os.write(fd, name.encode())
    os.unlink(mnt / "unlinked")
    os.unlink(served.volume / "host")
    (mnt / "gone").mkdir()
    child = children.spawn("os.chdir(sys.argv[1]); print(os.stat('.').st_ino, flush=True); input(); "
                           "print(os.stat('.').st_ino, os.listdir('.'), flush=True)", mnt / "gone")  # fmt: skip
    number = children.read_line(child)
    os.rmdir(mnt / "gone")
    numbers = {name: os.fstat(fd).st_ino for name, fd in opened.items()}
    try:
        for round in range(2):
            served.replace()
            assert {name: os.fstat(fd).st_ino for name, fd in opened.items()} == numbers
            for name, fd in opened.items():
                assert os.pread(fd, 100, 0) == name.encode() + b"!" * round
                assert os.pwrite(fd, b"!", len(name) + round) == 1
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
        assert children.read_line(child) == f"{number} []"
        assert children.finish(child) == ""
    finally:
        for fd in opened.values():
            os.close(fd)
    served.stop()


def test_locks_are_held_all_the_time(served: Served) -> None:
    """A program on the host sees no gap, who waits goes on waiting, and given up means free, as ever."""
    for name in ("locked", "flocked"):
        (served.volume / name).touch()
    served.start("--locks", "shared")
    with (served.mnt / "locked").open("r+") as locked, (served.mnt / "flocked").open("r+") as flocked:
        fcntl.lockf(locked, fcntl.LOCK_EX, 10, 0)
        fcntl.lockf(locked, fcntl.LOCK_SH, 10, 20)
        fcntl.flock(flocked, fcntl.LOCK_EX)
        watch = children.spawn("import select\n" + WATCH, served.volume / "locked", served.volume / "flocked")
        assert children.read_line(watch) == "watching"
        call = "fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX)"
        waiter = children.spawn(REPORT.format(call=call), served.mnt / "locked")
        for _ in range(2):
            served.replace()
            assert waiter.poll() is None
            for part, free in ((0, "EAGAIN"), (20, "EAGAIN"), (40, "ok")):
                call = f"fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB, 10, {part})"
                assert children.outcome(call, served.mnt / "locked") == free
        assert watch.stdin is not None
        watch.stdin.write("end\n")
        watch.stdin.flush()
        assert children.finish(watch) == "0\n", "the host found a lock free"
        fcntl.lockf(locked, fcntl.LOCK_UN)
        assert children.finish(waiter, PATIENCE) == "done\n"
        _free(served.volume / "locked", fcntl.lockf)
    _free(served.volume / "flocked", fcntl.flock)
    assert "locks are lost" not in served.server.stderr
    served.stop()


def _free(path: Path, lock: object) -> None:
    """What the mount has given up is free on the host, as soon as its server has heard of it."""
    with path.open("r+") as file:

        def taken() -> bool:
            try:
                lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # type: ignore[operator]  # one of fcntl's two
            except BlockingIOError:
                return False
            return True

        assert world.wait_until(taken, PATIENCE)


def test_a_lock_that_was_kept_ends_with_the_process_that_holds_it(served: Served) -> None:
    """Nobody else has its descriptor any more."""
    (served.volume / "flocked").touch()
    served.start("--locks", "shared")
    with (served.mnt / "flocked").open("r+") as flocked:
        fcntl.flock(flocked, fcntl.LOCK_EX)
        served.replace()
        served.server.expect_log("a session process died|locks are lost")
        (pid,) = children.sessions_below(served.server.pid)
        os.kill(pid, signal.SIGKILL)
        _free(served.volume / "flocked", fcntl.flock)
        assert world.wait_until(lambda: "locks are lost" in served.server.stderr, PATIENCE)
    served.stop()


def test_the_service_manager_learns_of_it(served: Served, open_path: Path) -> None:
    """The old one names the new one as the main process: only its own word counts (NotifyAccess=main)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(open_path / "notify"))
        manager.settimeout(PATIENCE)
        served.start(env={"NOTIFY_SOCKET": str(open_path / "notify")})
        assert manager.recv(100) == b"READY=1"
        served.replace()
        assert manager.recv(100) == f"MAINPID={served.server.pid}".encode()
        served.stop()


def test_a_refusal_changes_nothing(served: Served, open_path: Path) -> None:
    served.start()
    with (served.mnt / "file").open("w+") as file:
        os.rename(served.volume, open_path / "renamed")
        os.mkdir(served.volume, 0o700)
        refused = served.serve("--replace")
        assert refused.wait(PATIENCE) == REFUSED
        assert "volume 'data' is another directory" in refused.stderr
        assert refused.stderr.count("\n") == 1
        file.write("text")
    assert "the connection to the server is lost" not in served.client.stderr
    served.stop()


def _is_being_opened(leased: Path) -> bool:
    """Whether somebody waits for the lease on that file."""
    end = f":{leased.stat().st_ino} "
    return any(end in line and "BREAKING" in line for line in Path("/proc/locks").read_text().splitlines())


def test_stopping_answers_what_runs(served: Served) -> None:
    """An open that waits at SIGTERM is answered, and the server ends well."""
    (served.volume / "leased").touch()
    lease = children.spawn(
        "signal.signal(signal.SIGIO, signal.SIG_IGN); fd = os.open(sys.argv[1], os.O_RDWR); "
        "fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK); print('leased', flush=True); sys.stdin.read()",
        served.volume / "leased",
    )
    assert children.read_line(lease) == "leased"
    served.start(drain=100)  # half of it is how long the open may wait, on a busy machine, too
    opening = children.spawn(REPORT.format(call="os.open(sys.argv[1], os.O_RDWR)"), served.mnt / "leased")
    assert world.wait_until(lambda: _is_being_opened(served.volume / "leased"), PATIENCE)
    served.server.process.send_signal(signal.SIGTERM)
    assert world.wait_until(lambda: not served.socket.exists(), PATIENCE)
    assert children.finish(lease) == ""  # its input ends, and so does it
    assert children.finish(opening, PATIENCE) == "done\n"
    assert served.server.wait(PATIENCE) == 0
    served.client.stop()
