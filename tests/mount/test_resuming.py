"""Connections that are lost: the mount goes on, nothing is lost, nothing happens twice; or it ends as it was told."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount import children
from tests.mount.blocking import wait_in
from tests.mount.cutting import CuttingRelay
from tests.support import world
from tests.support.program import ENVIRONMENT, Program, Programs

LOST = "the connection to the server is lost"
RESUMED = "the session goes on over a new connection"
PATIENCE = 60.0


class Cuttable:
    """A volume, its server, and a mount of it through a relay."""

    def __init__(self, program: Programs, folder: Path, native: str) -> None:
        self.program = program
        self.native = native
        self.volume, self.mnt, self.socket = folder / "volume", folder / "mnt", folder / "s"
        self.volume.mkdir(mode=0o700)  # or the server warns of what guests may leave there
        self.mnt.mkdir()
        self.server = self.serve()
        self.relay = CuttingRelay(folder / "r", self.socket)
        self.target = f"unix:{folder}/r/data"

    def serve(self) -> Program:
        server = self.program(
            "serve", "--native", self.native, "--session-grace", "2m", "--listen", f"unix:{self.socket}",
            "--volume", f"data={self.volume}",
        )  # fmt: skip
        server.expect_log("a client was refused|a client broke the protocol")
        server.ready()
        return server

    def mount(self, *options: str) -> Program:
        client = self.program("mount", "--native", self.native, *options, self.target, self.mnt)
        client.expect_log(LOST)
        client.expect_log(RESUMED)
        client.ready()
        return client

    def lose(self, client: Program) -> None:
        """Cuts, lets nobody dial, and waits until the client knows."""
        before = client.stderr.count(LOST)
        self.relay.open.clear()
        self.relay.cut()
        assert world.wait_until(lambda: client.stderr.count(LOST) > before, PATIENCE), client.stderr


@pytest.fixture
def cuttable(fuse: None, program: Programs, open_path: Path, native: str) -> Iterator[Cuttable]:
    made = Cuttable(program, open_path, native)
    with made.relay:
        yield made


def work(place: Path, who: int, stop: threading.Event) -> None:
    """Changes that fail, or leave something wrong, where one of them is done twice or never."""
    home = place / f"home{who}"
    home.mkdir()
    written = rounds = 0
    with (home / "appended").open("ab", buffering=0) as appended:
        while not stop.is_set():
            rounds += 1
            (home / f"new{rounds}").mkdir()
            (home / f"new{rounds}").rename(home / f"moved{rounds}")
            (home / f"moved{rounds}").rmdir()
            fd = os.open(home / "file", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            os.write(fd, b"x" * 5000)
            os.close(fd)
            os.link(home / "file", home / f"link{rounds}")
            (home / "file").unlink()
            assert appended.write(b"0123456789") == 10
            written += 10
        os.fsync(appended.fileno())
        assert os.fstat(appended.fileno()).st_size == written
    assert sorted(os.listdir(home)) == sorted(["appended", *(f"link{i + 1}" for i in range(rounds))])
    assert all((home / f"link{i + 1}").stat().st_size == 5000 for i in range(rounds))


def test_cuts_under_load(cuttable: Cuttable) -> None:
    client = cuttable.mount()
    stop, errors = threading.Event(), []

    def run(who: int) -> None:
        try:
            work(cuttable.mnt, who, stop)
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=run, args=(who,)) for who in range(4)]
    for worker in workers:
        worker.start()
    chance = random.Random(7)
    for cut in range(12):
        before = client.stderr.count(RESUMED)
        if cut % 2:
            cuttable.relay.cut()
        else:
            cuttable.relay.cut_after(chance.randrange(1, 4000))
        assert world.wait_until(lambda n=before: client.stderr.count(RESUMED) > n or bool(errors), PATIENCE)  # type: ignore[misc]
    stop.set()
    for worker in workers:
        worker.join(PATIENCE)
        assert not worker.is_alive()
    assert not errors
    assert client.stop() == 0
    assert world.wait_until(lambda: "a session ended" in cuttable.server.stderr, PATIENCE)


def test_while_disconnected_programs_can_be_killed(cuttable: Cuttable) -> None:
    client = cuttable.mount()
    cuttable.lose(client)
    waiters = [wait_in("lookup", cuttable.mnt / f"name{i}") for i in range(3)]
    time.sleep(0.2)
    assert all(waiter.poll() is None for waiter in waiters), "they wait"
    waiters[0].send_signal(signal.SIGKILL)
    assert waiters[0].wait(PATIENCE) == -signal.SIGKILL
    cuttable.relay.open.set()
    for waiter in waiters[1:]:
        assert children.finish(waiter, PATIENCE) == "ENOENT\n"
    waiters[0].communicate(timeout=PATIENCE)
    assert client.stop() == 0


def test_while_disconnected_umount_works(cuttable: Cuttable) -> None:
    client = cuttable.mount()
    cuttable.lose(client)
    waiter = wait_in("lookup", cuttable.mnt / "name")
    assert cuttable.program.run("umount", cuttable.mnt).process.returncode == 0
    children.finish(waiter, PATIENCE)  # it ends, whenever it came
    assert client.wait(PATIENCE) == 0
    assert not world.mounts_below(cuttable.mnt)


def test_while_disconnected_sigterm_works(cuttable: Cuttable) -> None:
    client = cuttable.mount()
    client.expect_log("unmounted without the server")
    cuttable.lose(client)
    waiter = wait_in("lookup", cuttable.mnt / "name")
    assert client.stop(PATIENCE) == 0
    children.finish(waiter, PATIENCE)  # it ends, whenever it came
    assert not world.mounts_below(cuttable.mnt)


def test_patience_of_some_seconds(cuttable: Cuttable) -> None:
    client = cuttable.mount("--on-disconnect", "1s")
    client.expect_log("the server has not come back in time")
    cuttable.lose(client)
    waiter = wait_in("lookup", cuttable.mnt / "name")
    assert children.finish(waiter, PATIENCE) in ("EIO\n", "ENOTCONN\n", "ECONNABORTED\n")
    assert client.wait(PATIENCE) == 8
    assert len(world.mounts_below(cuttable.mnt)) == 1, "nobody writes below"
    assert cuttable.program.run("umount", cuttable.mnt).process.returncode == 0


def test_a_server_that_does_not_know_the_session(cuttable: Cuttable) -> None:
    client = cuttable.mount()
    client.expect_log("the session is stale")
    cuttable.lose(client)
    assert cuttable.server.stop() == 0
    waiter = wait_in("lookup", cuttable.mnt / "name")
    cuttable.serve()
    cuttable.relay.open.set()
    assert children.finish(waiter, PATIENCE) in ("ESTALE\n", "ENOTCONN\n", "ECONNABORTED\n")
    assert client.wait(PATIENCE) == 9
    assert client.stderr.count("the session is stale, and the mount ends") == 1
    assert len(world.mounts_below(cuttable.mnt)) == 1, "nobody writes below"
    assert cuttable.program.run("umount", cuttable.mnt).process.returncode == 0


@pytest.mark.parametrize("by", ["mount", "mount.fusepipe"])
def test_a_killed_client(fuse: None, program: Programs, open_path: Path, by: str) -> None:
    """Who waits gets an error at once, the server gives back after the grace, the next mount takes the place."""
    (open_path / "volume").mkdir(mode=0o700)
    (open_path / "mnt").mkdir()
    (open_path / "volume" / "file").write_text("x")
    spec = f"unix:{open_path}/s/data"
    server = program(
        "serve", "--session-grace", "2", "--listen", f"unix:{open_path}/s", "--volume", f"data={open_path}/volume"
    )
    server.ready()
    client = program("mount", spec, open_path / "mnt")
    client.ready()
    fd = os.open(open_path / "mnt" / "file", os.O_RDONLY)
    try:
        client.process.kill()
        client.process.wait()
        with pytest.raises(OSError) as raised:
            os.statvfs(open_path / "mnt")
        assert raised.value.errno == errno.ENOTCONN
    finally:
        os.close(fd)
    assert world.wait_until(lambda: "a session ended" in server.stderr, PATIENCE)
    assert "the client has not come back in time" in server.stderr
    if by == "mount":
        program("mount", spec, open_path / "mnt").ready()
    else:
        subprocess.run(
            [sys.executable, "-m", "fusepipe.cli.mount_helper", spec, str(open_path / "mnt")],
            env={**os.environ, **ENVIRONMENT}, check=True, timeout=PATIENCE, cwd="/",
        )  # fmt: skip
    assert (open_path / "mnt" / "file").read_text() == "x"
    assert len(world.mounts_below(open_path / "mnt")) == 1, "in place of the dead one"
    assert program.run("umount", open_path / "mnt").process.returncode == 0
