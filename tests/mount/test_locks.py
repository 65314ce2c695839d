"""--locks shared: fcntl and flock locks are held on the host, by whoever and wherever they were taken."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import sqlite3
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mount import children, mounttable
from tests.mount.blocking import ENOUGH
from tests.mount.conftest import MountFactory
from tests.mount.harness import Mount, call, eventually

SHARED = ("--locks", "shared")
OFD_SETLK, OFD_SETLKW = 37, 38
LOCK_WAITS = 64
PATIENCE = 60.0  # for what takes a second or two on an idle machine


@pytest.fixture
def mount(mounts: MountFactory, volume: Path, real: str) -> Mount:
    return mounts(*SHARED, source=volume)


@pytest.fixture
def connections(scratch: Path) -> Iterator[Path]:
    """fusectl, where the kernel says how many requests of each mount are not answered."""
    path = scratch / "connections"
    path.mkdir()
    mounttable.mount("fusectl", path, "fusectl", 0, "")
    yield path
    mounttable.umount(path)


@contextmanager
def opened(path: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def ofd_lock(command: int, fd: int, type: int = fcntl.F_WRLCK, start: int = 0, length: int = 0) -> None:
    """A lock of the open file description: another program's, as far as this process's other descriptors go."""
    fcntl.fcntl(fd, command, struct.pack("hhqqi4x", type, os.SEEK_SET, start, length, 0))


def is_locked(path: Path, *, kind: str = "fcntl") -> bool:
    """Whether somebody else holds a lock on this file, as another process sees it."""
    call = {
        "fcntl": "fcntl.lockf(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "flock": "fcntl.flock(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)",
    }[kind]
    outcome = children.outcome(call, path)
    assert outcome in ("ok", "EAGAIN"), outcome
    return outcome == "EAGAIN"


def becomes_free(path: Path, kind: str) -> None:
    eventually(lambda: not is_locked(path, kind=kind), PATIENCE, "the end of the lock")


HOLD = """
    fd = os.open(sys.argv[1], os.O_RDWR)
    getattr(fcntl, sys.argv[2])(fd, fcntl.LOCK_EX)
    print("locked", flush=True)
    sys.stdin.readline()
"""
NAMES = {"fcntl": "lockf", "flock": "flock"}


def hold(path: Path, kind: str = "fcntl") -> subprocess.Popen[str]:
    """A program that takes a lock, waiting for it, says so, and keeps it until it is told to end."""
    return children.spawn(HOLD, path, NAMES[kind])


def holder(path: Path, kind: str = "fcntl") -> subprocess.Popen[str]:
    program = hold(path, kind)
    assert children.read_line(program, ENOUGH) == "locked"
    return program


def _target(link: Path) -> str | None:
    """What it leads to; nothing where it is gone meanwhile."""
    try:
        return os.readlink(link)
    except FileNotFoundError:
        return None


def release(program: subprocess.Popen[str]) -> None:
    children.finish(program)


def waits(program: subprocess.Popen[str]) -> None:
    """It has not got its lock, and does wait in the kernel."""
    eventually(
        lambda: "lock" in Path(f"/proc/{program.pid}/syscall").read_text() or _state(program) in "SD",
        ENOUGH,
        "a program that waits",
    )
    time.sleep(0.2)
    assert program.poll() is None


def _state(program: subprocess.Popen[str]) -> str:
    return Path(f"/proc/{program.pid}/stat").read_text().rpartition(")")[2].split()[0]


# ---- who sees a lock ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NAMES)
def test_everybody_sees_it(mount: Mount, mounts: MountFactory, volume: Path, kind: str) -> None:
    """On this mount, on the host, and on another mount of the volume."""
    other = mounts(*SHARED, source=volume)
    places = [place / "file0" for place in (mount.path, volume, other.path)]
    for held in places:
        program = holder(held, kind)
        assert [is_locked(place, kind=kind) for place in places] == [True] * 3
        release(program)
        assert [is_locked(place, kind=kind) for place in places] == [False] * 3


def test_the_two_kinds_do_not_meet(mount: Mount, volume: Path) -> None:
    program = holder(mount.path / "file0", "flock")
    assert not is_locked(volume / "file0", kind="fcntl")
    assert not is_locked(mount.path / "file0", kind="fcntl")
    release(program)


def test_local_locks_stay_in_the_guest(mounts: MountFactory, volume: Path, real: str) -> None:
    mount = mounts(source=volume)
    for kind in NAMES:
        program = holder(mount.path / "file0", kind)
        assert is_locked(mount.path / "file0", kind=kind)
        assert not is_locked(volume / "file0", kind=kind)
        release(program)


def test_who_holds_it(mount: Mount, volume: Path) -> None:
    """The range, the type, and the pid where the holder is on the same mount."""

    def asked(path: Path) -> tuple[int, ...]:
        line = children.run(
            """
            fd = os.open(sys.argv[1], os.O_RDWR)
            import struct
            found = fcntl.fcntl(fd, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
            print(*struct.unpack("hhqqi4x", found))
            """,
            path,
        )
        type, _, start, length, pid = map(int, line.split())
        return type, start, length, pid

    path = mount.path / "file0"
    assert asked(path)[0] == fcntl.F_UNLCK
    with opened(path) as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 50)
        assert asked(path) == (fcntl.F_WRLCK, 50, 10, os.getpid())
        fcntl.lockf(fd, fcntl.LOCK_UN)
        fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB, 0, 7)
        assert asked(path) == (fcntl.F_RDLCK, 7, 0, os.getpid())
    with opened(volume / "file0") as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 3, 4)
        assert asked(path) == (fcntl.F_WRLCK, 4, 3, 0)


# ---- whose it is, and when it ends ----------------------------------------------------------------------------------


def test_one_process_never_meets_itself(mount: Mount, volume: Path) -> None:
    """Whatever descriptors it uses; and all of its locks end with the first that it closes (fcntl(2))."""
    path = mount.path / "file0"
    with opened(path) as first:
        with opened(path) as second, opened(path, os.O_RDONLY) as third:
            fcntl.lockf(first, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)
            fcntl.lockf(second, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5)
            fcntl.lockf(third, fcntl.LOCK_SH | fcntl.LOCK_NB, 5, 0)
            assert is_locked(volume / "file0")
        assert not is_locked(volume / "file0")
        fcntl.lockf(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert is_locked(volume / "file0")


def test_an_owner_that_forked(mount: Mount, volume: Path) -> None:
    """The child has none of its parent's fcntl locks, and closing what it inherited ends none."""
    path = mount.path / "file0"
    with opened(path) as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        script = (
            "import fcntl, os, sys; fd = int(sys.argv[1])\n"
            "try: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB); print('got it')\n"
            "except BlockingIOError: print('locked')\n"
            "os.close(fd)\n"
        )
        command = ["python3", "-c", script, str(fd)]
        done = subprocess.run(command, pass_fds=[fd], capture_output=True, text=True, check=True, timeout=PATIENCE)
        assert done.stdout == "locked\n"
        assert is_locked(volume / "file0")


def test_a_descriptor_that_was_handed_on(mount: Mount, volume: Path) -> None:
    """flock and open file description locks live as long as any descriptor of the open file."""
    path = mount.path / "file0"
    for kind in ("flock", "ofd"):
        with opened(path) as fd:
            if kind == "flock":
                fcntl.flock(fd, fcntl.LOCK_EX)
            else:
                ofd_lock(OFD_SETLK, fd)
            child = subprocess.Popen(["sleep", "1000"], pass_fds=[fd])
        seen = "flock" if kind == "flock" else "fcntl"
        try:
            assert is_locked(volume / "file0", kind=seen)
        finally:
            child.kill()
            child.wait(PATIENCE)
        becomes_free(volume / "file0", seen)


@pytest.mark.parametrize("kind", ["flock", "ofd"])
def test_given_up_means_free(mount: Mount, kind: str) -> None:
    """A lock that one program gave up by closing is there for the next at once, although RELEASE comes after close."""

    def take(fd: int) -> None:
        if kind == "flock":
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            ofd_lock(OFD_SETLK, fd)

    path = mount.path / "file0"
    for _ in range(200):
        with opened(path) as fd:
            take(fd)


def test_one_program_after_the_other(mount: Mount, volume: Path) -> None:
    script = 'for i in $(seq 50); do flock -n "$1" true && flock -n "$1" true || exit 1; done'
    for path in (mount.path / "file0", volume / "file0"):
        subprocess.run(["sh", "-c", script, "sh", path], check=True, timeout=PATIENCE)


@pytest.mark.parametrize("kind", NAMES)
def test_a_killed_program(mount: Mount, volume: Path, kind: str) -> None:
    program = holder(mount.path / "file0", kind)
    assert children.kill(program)
    assert not is_locked(mount.path / "file0", kind=kind)
    assert not is_locked(volume / "file0", kind=kind)


def test_the_end_of_the_mount(mounts: MountFactory, volume: Path, real: str) -> None:
    for kind in NAMES:
        mount = mounts(*SHARED, source=volume)
        mount.allow.append("in use")
        program = holder(mount.path / "file0", kind)
        assert is_locked(volume / "file0", kind=kind)
        mount.unmount()
        becomes_free(volume / "file0", kind)
        children.kill(program)


def test_a_killed_client(mounts: MountFactory, volume: Path, real: str) -> None:
    for kind in NAMES:
        mount = mounts(*SHARED, source=volume, serve_options=("--session-grace", "2"))
        program = holder(mount.path / "file0", kind)
        assert mount.client is not None
        mount.client.family()
        mount.client.process.send_signal(signal.SIGKILL)
        mount.lost()
        becomes_free(volume / "file0", kind)
        children.kill(program)
        assert call("umount", mount.path).returncode == 0


# ---- waiting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("where", ["here", "host"])
def test_waiting(mount: Mount, volume: Path, kind: str, where: str) -> None:
    first = holder((volume if where == "host" else mount.path) / "file0", kind)
    second = hold(mount.path / "file0", kind)
    waits(second)
    release(first)
    assert children.read_line(second, ENOUGH) == "locked"
    assert is_locked(volume / "file0", kind=kind)
    release(second)


@pytest.mark.parametrize("kind", NAMES)
def test_the_host_waits(mount: Mount, volume: Path, kind: str) -> None:
    first = holder(mount.path / "file0", kind)
    second = hold(volume / "file0", kind)
    waits(second)
    release(first)
    assert children.read_line(second, ENOUGH) == "locked"
    release(second)


@pytest.mark.parametrize("kind", NAMES)
def test_who_waits_can_be_killed(mount: Mount, volume: Path, kind: str) -> None:
    first = holder(volume / "file0", kind)
    second = hold(mount.path / "file0", kind)
    waits(second)
    assert children.kill(second, ENOUGH)
    release(first)
    assert not is_locked(mount.path / "file0", kind=kind)
    becomes_free(volume / "file0", kind)  # that one was given up by a close, of which the server hears soon


@pytest.mark.parametrize("kind", NAMES)
def test_a_signal_ends_the_waiting(mount: Mount, volume: Path, kind: str) -> None:
    """With a handler that raises; a handler that returns lets the program wait on (signal(7), SA_RESTART)."""
    first = holder(volume / "file0", kind)
    second = children.spawn(
        """
        def handler(number, frame):
            raise InterruptedError
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        try:
            getattr(fcntl, sys.argv[2])(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX)
        except InterruptedError:
            print("interrupted", flush=True)
        """,
        mount.path / "file0",
        NAMES[kind],
    )
    assert children.finish(second, PATIENCE) == "interrupted\n"
    release(first)
    assert not is_locked(volume / "file0", kind=kind)


@pytest.mark.once
def test_waiting_takes_no_worker(mounts: MountFactory, volume: Path, real: str) -> None:
    """With a single reader: while a program waits, everything else goes on, and so does what it waits for."""
    mount = mounts("--readers", "1", *SHARED, source=volume)
    first = holder(mount.path / "file0")
    waiting = [hold(mount.path / "file0", kind) for kind in ("fcntl", "fcntl")]
    for program in waiting:
        waits(program)
    assert (mount.path / "file1").read_text() == "contents 1"
    (mount.path / "new").write_text("text")
    assert (volume / "new").read_text() == "text"
    assert children.kill(waiting.pop(), ENOUGH)
    release(first)
    assert children.read_line(waiting[0], ENOUGH) == "locked"
    release(waiting[0])


@pytest.mark.once
def test_too_many_wait(mount: Mount, volume: Path) -> None:
    """One more than there are lock slots gets ENOLCK; a lock that is free is still given."""
    many = """
    import threading
    results = []
    def wait(i):
        fd = os.open(sys.argv[1], os.O_RDWR)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            results.append("locked")
        except OSError as error:
            results.append(errno.errorcode[error.errno])
        os.close(fd)
    threads = [threading.Thread(target=wait, args=(i,)) for i in range(int(sys.argv[2]))]
    for thread in threads:
        thread.start()
    while len(results) < 1:
        time.sleep(0.01)
    print(*results, flush=True)
    fd = os.open(sys.argv[3], os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    fcntl.lockf(fd, fcntl.LOCK_EX)
    print("free", flush=True)
    sys.stdin.readline()
    for thread in threads:
        thread.join()
    print(*sorted(set(results)), len(results), flush=True)
    """
    first = holder(volume / "file0", "flock")
    program = children.spawn(many, mount.path / "file0", LOCK_WAITS + 1, mount.path / "file1")
    assert children.read_line(program, PATIENCE) == "ENOLCK"
    assert children.read_line(program, PATIENCE) == "free"
    release(first)
    assert program.stdin is not None
    program.stdin.write("\n")
    program.stdin.flush()
    assert children.finish(program, PATIENCE) == f"ENOLCK locked {LOCK_WAITS + 1}\n"


@pytest.mark.once
def test_killed_waiters_leave_nothing(mounts: MountFactory, volume: Path, connections: Path, real: str) -> None:
    """Also with one reader: more are killed in turn than may wait at once, and then as many may wait as ever."""
    mount = mounts("--readers", "1", *SHARED, source=volume)
    (session,) = mount.session_pids()
    requests = connections / str(os.minor(mount.path.stat().st_dev)) / "waiting"
    many = """
        import threading
        def wait():
            fd = os.open(sys.argv[1], os.O_RDWR)
            getattr(fcntl, sys.argv[2])(fd, fcntl.LOCK_EX)
        for _ in range(int(sys.argv[3])):
            threading.Thread(target=wait, daemon=True).start()
        sys.stdin.readline()
    """
    first = holder(volume / "file0")
    other = holder(volume / "file0", "flock")

    def round(kind: str, count: int = LOCK_WAITS // 2) -> None:
        program = children.spawn(many, mount.path / "file0", NAMES[kind], count)
        eventually(lambda: int(requests.read_text()) >= count, PATIENCE, f"{count} requests that wait")
        assert (mount.path / "file1").read_text() == "contents 1"
        assert children.kill(program, PATIENCE)
        eventually(lambda: int(requests.read_text()) == 0, PATIENCE, "the end of all requests")

    def descriptors() -> list[str]:
        targets = [_target(Path(f"/proc/{session}/fd/{fd}")) for fd in os.listdir(f"/proc/{session}/fd")]
        return [target for target in targets if target is not None]

    round("fcntl")
    eventually(lambda: descriptors().count(str(volume / "file0")) <= 1, ENOUGH, "at most the inode's own descriptor")
    before = len(descriptors())
    for kind in ("flock", "fcntl", "flock"):
        round(kind)
    eventually(lambda: len(descriptors()) <= before, ENOUGH, f"{before} descriptors, as before")
    round("flock", LOCK_WAITS)
    release(other)
    release(first)
    for kind in NAMES:
        assert not is_locked(mount.path / "file0", kind=kind)
        becomes_free(volume / "file0", kind)


# ---- what a lock protects -------------------------------------------------------------------------------------------


def test_what_was_written_under_a_lock_is_read_under_it(mounts: MountFactory, volume: Path, real: str) -> None:
    """Whatever the guest has cached, and however soon after its last look the host has written."""
    mount = mounts("--cache", "ttl:3600", *SHARED, source=volume)
    (volume / "counter").write_bytes(bytes(8))
    with opened(mount.path / "counter") as here, opened(volume / "counter") as there:
        for count in range(1, 100, 2):
            for fd, value in ((there, count), (here, count + 1)):
                ofd_lock(OFD_SETLKW, fd)
                assert struct.unpack("q", os.pread(fd, 8, 0)) == (value - 1,)
                os.pwrite(fd, struct.pack("q", value), 0)
                ofd_lock(OFD_SETLK, fd, fcntl.F_UNLCK)


INCREMENT = """
    import sqlite3
    for _ in range(int(sys.argv[2])):
        connection = sqlite3.connect(sys.argv[1], timeout=120, isolation_level=None)
        connection.execute("begin immediate")
        (value,) = connection.execute("select value from counter").fetchone()
        connection.execute("update counter set value = ?", (value + 1,))
        connection.execute("insert into log values (?, ?)", (value, "x" * (value % 3000)))
        connection.execute("commit")
        connection.close()
"""


@pytest.mark.parametrize("journal", ["delete", "truncate", "persist"])
def test_sqlite_from_all_sides(mount: Mount, mounts: MountFactory, volume: Path, journal: str) -> None:
    """Programs on two mounts and on the host change one database at the same time."""
    each = 15
    with sqlite3.connect(volume / "db") as connection:
        connection.execute(f"pragma journal_mode={journal}")
        connection.execute("create table counter (value)")
        connection.execute("create table log (value primary key, text)")
        connection.execute("insert into counter values (0)")
    connection.close()
    other = mounts(*SHARED, source=volume)
    places = [mount.path, mount.path, other.path, volume]
    programs = [children.spawn(INCREMENT, place / "db", each) for place in places]
    for program in programs:
        children.finish(program, 2 * PATIENCE)
    for place in (volume, mount.path):
        connection = sqlite3.connect(place / "db", timeout=60)
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
        assert connection.execute("select value from counter").fetchall() == [(each * len(places),)]
        assert connection.execute("select count(*) from log").fetchall() == [(each * len(places),)]
        connection.close()


@pytest.mark.parametrize("locks", ["local", "shared"])
def test_a_write_ahead_log_within_one_mount(mounts: MountFactory, volume: Path, real: str, locks: str) -> None:
    """Its index is memory that the programs of one guest share through the guest's page cache."""
    mount, each, count = mounts("--locks", locks, source=volume), 15, 3
    database = mount.path / "db"
    connection = sqlite3.connect(database)
    assert connection.execute("pragma journal_mode=wal").fetchall() == [("wal",)]
    connection.execute("create table counter (value)")
    connection.execute("create table log (value primary key, text)")
    connection.execute("insert into counter values (0)")
    connection.commit()
    for program in [children.spawn(INCREMENT, database, each) for _ in range(count)]:
        children.finish(program, 2 * PATIENCE)
    assert connection.execute("select value from counter").fetchall() == [(each * count,)]
    assert connection.execute("select count(*) from log").fetchall() == [(each * count,)]
    assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
    assert (mount.path / "db-shm").exists()
    connection.close()
    connection = sqlite3.connect(volume / "db")
    assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
    assert connection.execute("select value from counter").fetchall() == [(each * count,)]
    connection.close()


# ---- nothing is left ------------------------------------------------------------------------------------------------


def test_nothing_leaks(mount: Mount) -> None:
    (session,) = mount.session_pids()

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{session}/fd"))

    def work() -> None:
        for i in range(10):
            with opened(mount.path / f"file{i}") as fd, opened(mount.path / f"file{i}") as other:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                ofd_lock(OFD_SETLK, other, start=20, length=5)
                with pytest.raises(BlockingIOError):
                    fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                with pytest.raises(BlockingIOError):
                    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 18)

    work()
    time.sleep(0.2)
    before = descriptors()
    for _ in range(5):
        work()
    eventually(lambda: descriptors() <= before, ENOUGH, f"{before} descriptors of the session, as before")


def test_access_modes_and_bad_ranges(mount: Mount) -> None:
    path = mount.path / "file0"
    with opened(path, os.O_RDONLY) as fd, pytest.raises(OSError) as caught:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert caught.value.errno == errno.EBADF
    with opened(path, os.O_RDONLY) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_a_read_only_mount(mounts: MountFactory, volume: Path, real: str) -> None:
    mount = mounts("--read-only", *SHARED, source=volume)
    with opened(mount.path / "file0", os.O_RDONLY) as fd:
        fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert is_locked(volume / "file0")
        fcntl.lockf(fd, fcntl.LOCK_UN)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert is_locked(volume / "file0", kind="flock")
