"""Operations that wait do not delay others while fewer than --readers wait, and who waits can be killed."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.mount import children, harness
from tests.mount.blocking import ENOUGH, WAITERS, asks_a_filesystem, wait_in
from tests.mount.conftest import BlockMaker, MountFactory
from tests.mount.harness import Mount, eventually

pytestmark = pytest.mark.each_way

READERS = 4
PATIENCE = 30.0  # seconds: the end of a test that fails


def others_go_on(mount: Mount) -> None:
    """Everything ordinary still works, promptly, from several programs at once."""
    start = time.monotonic()
    work = """
    me = sys.argv[2]
    os.chdir(sys.argv[1])
    for i in range(20):
        assert open(f"file{i}").read() == f"contents {i}"
        with open(f"new{me}", "w") as file:
            file.write("text")
            os.fsync(file.fileno())
        os.rename(f"new{me}", f"renamed{me}")
        assert os.stat(f"renamed{me}").st_size == 4
        os.unlink(f"renamed{me}")
        assert "file3" in os.listdir(".")
        os.statvfs(".")
    """
    working = [children.spawn(work, mount.path, who) for who in range(3)]
    for child in working:
        children.finish(child, ENOUGH)
    assert time.monotonic() - start < ENOUGH


@pytest.mark.parametrize(
    "operation", ["open", "read", "write", "fsync", "lookup", "getattr", "fallocate", "seek", "copy"]
)
def test_others_go_on_while_some_wait(
    volume: Path, block: BlockMaker, mounts: MountFactory, real: str, operation: str
) -> None:
    """READERS - 1 requests wait below; as many others as there are go through the last worker."""
    filesystem = block()
    mount = mounts("--readers", str(READERS), source=volume)
    waiters = [wait_in(operation, mount.path / "block" / f"{operation}-{i}") for i in range(READERS - 1)]
    filesystem.blocked(READERS - 1)
    others_go_on(mount)
    assert [w.poll() for w in waiters] == [None] * (READERS - 1)
    filesystem.say("go")
    assert [children.finish(w, ENOUGH) for w in waiters] == ["done\n"] * (READERS - 1)


def test_more_than_readers_wait_and_all_end(volume: Path, block: BlockMaker, mounts: MountFactory, real: str) -> None:
    """Beyond --readers requests queue; once the disk answers, each gets its answer."""
    filesystem = block()
    mount = mounts("--readers", str(READERS), source=volume)
    waiters = [wait_in("read", mount.path / "block" / f"read-{i}") for i in range(3 * READERS)]
    filesystem.blocked(READERS)
    filesystem.say("go")
    assert [children.finish(w, ENOUGH) for w in waiters] == ["done\n"] * (3 * READERS)
    others_go_on(mount)


def test_opens_that_wait_for_a_lease(
    volume: Path, leases: subprocess.Popen[str], mounts: MountFactory, real: str
) -> None:
    mount = mounts("--readers", str(READERS), source=volume)
    waiters = [wait_in("open", mount.path / f"file{i}") for i in range(READERS - 1)]
    time.sleep(0.3)
    work = "print(len([open(f'{sys.argv[1]}/file{i}').read() for i in range(3, 20)]))"
    assert children.run(work, mount.path, timeout=ENOUGH) == "17\n"
    assert [w.poll() for w in waiters] == [None] * (READERS - 1)
    out = children.outcome("os.open(sys.argv[1], os.O_RDONLY | os.O_NONBLOCK)", mount.path / "file0", timeout=ENOUGH)
    assert out == "EAGAIN"
    assert leases.stdin is not None
    leases.stdin.write("go\n")
    leases.stdin.flush()
    assert [children.finish(w, ENOUGH) for w in waiters] == ["done\n"] * (READERS - 1)


def killed_within(process: subprocess.Popen[str], seconds: float) -> None:
    start = time.monotonic()
    assert children.kill(process, seconds), (
        f"killed, and after {seconds} s still in state {children.state_of(process.pid)}"
    )
    assert time.monotonic() - start < seconds


@pytest.mark.parametrize("options", [(), ("--interruptible",)], ids=["stuck", "interruptible"])
@pytest.mark.parametrize("operation", ["open", "read", "fsync", "lookup", "fallocate", "seek", "copy"])
def test_a_waiting_program_can_be_killed(
    volume: Path, block: BlockMaker, mounts: MountFactory, real: str, operation: str, options: tuple[str, ...]
) -> None:
    """Also where the call below cannot be interrupted; its slot works again once that call ends."""
    filesystem = block(*options)
    mount = mounts("--readers", str(READERS), source=volume)
    waiters = [wait_in(operation, mount.path / "block" / f"{operation}-{i}") for i in range(2)]
    filesystem.blocked(2)
    for waiter in waiters:
        killed_within(waiter, 4.0)
    others_go_on(mount)
    filesystem.say("go")
    late = [wait_in("read", mount.path / "block" / f"read-{i}") for i in range(2 * READERS)]
    assert [children.finish(w, ENOUGH) for w in late] == ["done\n"] * (2 * READERS)


def test_who_waits_for_a_slot_can_be_killed(volume: Path, block: BlockMaker, mounts: MountFactory, real: str) -> None:
    """Its request has not left the guest, and never does: so it ends at once, however many wait."""
    filesystem = block()
    mount = mounts("--readers", str(READERS), source=volume)
    held = [wait_in("read", mount.path / "block" / f"read-{i}") for i in range(READERS)]
    filesystem.blocked(READERS)
    parked = [wait_in("lookup", mount.path / f"file{i}") for i in range(2 * READERS)]
    eventually(lambda: all(map(asks_a_filesystem, parked)), PATIENCE, "all programs wait for a slot")
    for waiter in parked:
        assert children.kill(waiter, PATIENCE), f"killed, and still in state {children.state_of(waiter.pid)}"
    assert [w.poll() for w in held] == [None] * READERS
    filesystem.say("go")
    assert [children.finish(w, PATIENCE) for w in held] == ["done\n"] * READERS
    others_go_on(mount)


def test_a_program_that_waits_for_a_lease_can_be_killed(
    volume: Path, leases: subprocess.Popen[str], mounts: MountFactory, real: str
) -> None:
    mount = mounts("--readers", str(READERS), source=volume)
    waiters = [wait_in("open", mount.path / f"file{i}") for i in range(2)]
    time.sleep(0.3)
    for waiter in waiters:
        killed_within(waiter, 4.0)
    assert (mount.path / "file9").read_text() == "contents 9"


@pytest.mark.parametrize("operation", ["open", "read", "fsync"])
def test_a_signal_handler_ends_a_waiting_call(
    volume: Path, block: BlockMaker, mounts: MountFactory, real: str, operation: str
) -> None:
    """SIGALRM ends the call where it can be ended below, as on the host (Python's own retry is avoided by raising).

    Without a cache, for reads: no filesystem of Linux lets a signal end a read that fills the page cache.
    """
    filesystem = block("--interruptible")
    mount = mounts("--readers", str(READERS), "--cache", "none", source=volume)
    waiter = children.spawn(
        f"""
        class Alarm(Exception):
            pass
        def handler(*_):
            raise Alarm
        signal.signal(signal.SIGALRM, handler)
        try:
            {WAITERS[operation]}
        except Alarm:
            print("interrupted")
        """,
        mount.path / "block" / f"{operation}-0",
    )
    filesystem.blocked(1)
    waiter.send_signal(signal.SIGALRM)
    assert children.finish(waiter, ENOUGH) == "interrupted\n"
    filesystem.say("go")


def test_many_interrupted_opens_leave_no_handle_behind(
    volume: Path, block: BlockMaker, mounts: MountFactory, real: str
) -> None:
    """Opens whose programs were killed succeed later on the host; their descriptors are closed again."""
    filesystem = block()
    mount = mounts("--readers", "16", source=volume)
    waiters = [wait_in("open", mount.path / "block" / f"open-{i}") for i in range(6)]
    filesystem.blocked(6)
    for waiter in waiters:
        killed_within(waiter, 4.0)
    filesystem.say("go")

    def open_files() -> list[str]:
        found = []
        for pid in mount.session_pids():
            for fd in os.listdir(f"/proc/{pid}/fd"):
                try:
                    flags = Path(f"/proc/{pid}/fdinfo/{fd}").read_text().split("flags:")[1].split()[0]
                    if "/open-" in os.readlink(f"/proc/{pid}/fd/{fd}") and not int(flags, 8) & os.O_PATH:
                        found.append(fd)
                except OSError:
                    continue
        return found

    eventually(lambda: open_files() == [], ENOUGH, "closing the handles that nobody got")


def test_readers_are_really_parallel(volume: Path, block: BlockMaker, mounts: MountFactory, real: str) -> None:
    """The default of 64: sixty reads wait at once and all reach the disk."""
    filesystem = block()
    mount = mounts(source=volume)
    results: list[str] = []
    descriptors = [os.open(mount.path / "block" / f"read-{i}", os.O_RDONLY) for i in range(60)]
    readers = [threading.Thread(target=lambda fd=fd: results.append(str(os.read(fd, 1)))) for fd in descriptors]
    for reader in readers:
        reader.start()
    filesystem.blocked(60)
    others_go_on(mount)
    filesystem.say("go")
    for reader in readers:
        reader.join(ENOUGH)
    for fd in descriptors:
        os.close(fd)
    assert len(results) == 60


def test_a_source_that_itself_forgets(mounts: MountFactory, volume: Path, scratch: Path, real: str) -> None:
    """A volume on FUSE: its file handles die when the host's cache forgets them; names must still be found."""
    lower = Mount("bindfs", volume)
    with lower:
        mount = mounts(source=lower.path)
        before = {name: (mount.path / name).stat().st_ino for name in os.listdir(mount.path)}
        with (mount.path / "file1").open() as held:
            lower.drop_dentries()
            assert held.read() == "contents 1"
            for i in range(20):
                assert (mount.path / f"file{i}").read_text() == f"contents {i}"
            assert {name: (mount.path / name).stat().st_ino for name in os.listdir(mount.path)} == before
        mount.unmount()


def test_a_killed_client_leaves_no_server_behind_that_waits(
    volume: Path, block: BlockMaker, mounts: MountFactory, real: str
) -> None:
    """The session process ends although one of its threads was in a call that could be interrupted."""
    filesystem = block("--interruptible")
    mount = mounts(source=volume)
    waiter = wait_in("read", mount.path / "block" / "read-0")
    filesystem.blocked(1)
    sessions = mount.session_pids()
    assert sessions
    assert mount.client is not None
    mount.client.process.kill()
    mount.lost()
    assert children.finish(waiter, ENOUGH).strip() in {
        errno.errorcode[code] for code in (errno.ECONNABORTED, errno.ENOTCONN, errno.EIO, errno.EINTR)
    }
    eventually(lambda: not any(map(children.alive, sessions)), ENOUGH, "the end of the session process")
    assert harness.call("umount", mount.path).returncode == 0


def test_poll_reports_a_regular_file_ready(mounts: MountFactory, target: str) -> None:
    mount = mounts()
    with (mount.path / "file").open("w+b") as file:
        poll = select.poll()
        poll.register(file, select.POLLIN | select.POLLOUT)
        assert poll.poll(2000) != []
