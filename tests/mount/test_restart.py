"""The process of a session is killed: another one goes on with what is open, or the session ends as it should."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import signal
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusepipe.syscalls import handle_of
from tests.mount import children, mounttable
from tests.mount.blocking import REPORT
from tests.mount.children import outcome
from tests.support import world
from tests.support.program import Program, Programs

DIED = "a session process died"
ANOTHER = "a session process died, and another one goes on"
GOES_ON = "a session goes on over new connections"
LOST = "the connection to the server is lost"
RESUMED = "the session goes on over a new connection"
STALE = 9
PATIENCE = 60.0


class Served:
    """A volume, its server, and a mount of it."""

    def __init__(self, program: Programs, folder: Path, native: str) -> None:
        self.volume, self.mnt = folder / "volume", folder / "mnt"
        self.volume.mkdir(mode=0o700)  # or the server warns of what guests may leave there
        self.mnt.mkdir()
        self._program = program
        self._common = ("--native", native, "--log-level", "info")
        self._listen = f"unix:{folder}/s"

    def start(self, *options: str, volume: str = "", mount_options: tuple[str, ...] = ()) -> None:
        """Serve and mount it."""
        self.server = self._program(
            "serve", "--listen", self._listen, "--volume", f"data={self.volume}{volume}", *options, *self._common
        )
        self.server.expect_log(DIED)
        self.server.ready()
        self.client = self._program("mount", f"{self._listen}/data", self.mnt, *mount_options, *self._common)
        for line in (LOST, RESUMED):
            self.client.expect_log(line)
        self.client.ready()

    def processes(self) -> list[int]:
        """The session's, of which there may be none for a moment."""
        return children.sessions_below(self.server.pid)

    def kill(self) -> None:
        """Kill the session's process."""
        (pid,) = self.processes()
        os.kill(pid, signal.SIGKILL)

    def kill_now(self) -> None:
        """Kill it, and wait for the next one, whatever that has come to."""
        before = self.server.stderr.count(ANOTHER)
        self.kill()
        assert world.wait_until(lambda: self.server.stderr.count(ANOTHER) > before, PATIENCE), self.server.stderr
        assert world.wait_until(lambda: bool(self.processes()), PATIENCE), self.server.stderr

    def kill_and_resume(self) -> None:
        """The same, and wait until the mount goes on."""
        before = self.server.stderr.count(GOES_ON)
        self.kill()
        assert world.wait_until(lambda: self.server.stderr.count(GOES_ON) > before, PATIENCE), self.server.stderr

    def ends_stale(self) -> None:
        """The session is over, and the client says so."""
        self.client.expect_log("stale")
        self.server.expect_log("a client was refused")
        assert self.client.wait(PATIENCE) == STALE, self.client.stderr
        assert outcome("os.listdir(sys.argv[1])", self.mnt) == "ENOTCONN"
        mounttable.umount(self.mnt)


@pytest.fixture
def served(fuse: None, program: Programs, open_path: Path, native: str) -> Iterator[Served]:
    made = Served(program, open_path, native)
    yield made
    if mounttable.find(made.mnt) is not None:
        made.client.stop()


@pytest.mark.parametrize("sandbox", ["none", "prefer"])
def test_what_is_open_lives_on(served: Served, sandbox: str) -> None:
    served.start("--sandbox", sandbox)
    mnt, opened = served.mnt, {}
    for name, flags in (
        ("kept", os.O_RDWR),
        ("made", os.O_RDWR | os.O_EXCL),
        ("appended", os.O_WRONLY | os.O_APPEND | os.O_TRUNC),
        ("unlinked", os.O_RDWR),
        ("replaced", os.O_RDWR),
        ("linked", os.O_RDWR),
    ):
        opened[name] = os.open(mnt / name, flags | os.O_CREAT)
        assert os.write(opened[name], name.encode()) == len(name)
    opened["nameless"] = os.open(mnt, os.O_TMPFILE | os.O_RDWR)
    os.write(opened["nameless"], b"nameless")
    os.link(mnt / "linked", mnt / "link")
    for name in ("unlinked", "linked"):
        os.unlink(mnt / name)
    (mnt / "other").write_text("other")
    os.rename(mnt / "other", mnt / "replaced")
    (mnt / "gone").mkdir()
    opened["gone"] = os.open(mnt / "gone", os.O_RDONLY | os.O_DIRECTORY)
    os.rmdir(mnt / "gone")
    listing = os.open(mnt, os.O_RDONLY | os.O_DIRECTORY)
    numbers = {name: os.fstat(fd).st_ino for name, fd in opened.items()}
    try:
        for death in range(2):
            served.kill_and_resume()
            assert {name: os.fstat(fd).st_ino for name, fd in opened.items()} == numbers
            for name in ("kept", "made", "unlinked", "replaced", "linked", "nameless"):
                assert os.pread(opened[name], 100, 0) == name.encode() + b"!" * death
                assert os.pwrite(opened[name], b"!", len(name) + death) == 1
            assert os.write(opened["appended"], b"!") == 1
            assert (served.volume / "appended").read_bytes() == b"appended" + b"!" * (death + 1)
            assert os.fstat(opened["unlinked"]).st_nlink == 0
            assert os.listdir(opened["gone"]) == []
            with pytest.raises(FileNotFoundError):
                os.mkdir(mnt / "gone" / "new")
            assert sorted(os.listdir(listing)) == ["appended", "kept", "link", "made", "replaced"]
        os.link(f"/proc/self/fd/{opened['nameless']}", mnt / "named", src_dir_fd=listing)  # which makes it follow
        assert (served.volume / "named").read_bytes() == b"nameless!!"
    finally:
        for fd in (listing, *opened.values()):
            os.close(fd)
    assert served.client.stop() == 0
    assert served.server.stop() == 0


def rewrite_rows(server: int, rows: dict[Path, bytes]) -> None:
    """What somebody does who has broken into a session process: the inodes of these files become others, in its tables.

    Those of syscalls/tables.h, struct inode_row: device and inode number stand before the type and bytes of the handle.
    """
    (memfd,) = [fd for fd in Path(f"/proc/{server}/fd").iterdir() if "fusepipe-tables" in os.readlink(fd)]
    with memfd.open("r+b") as tables:
        for file, other in rows.items():
            begin = struct.pack("QQ", file.stat().st_dev, file.stat().st_ino)
            at = mmap_find(tables.fileno(), begin)
            os.pwrite(tables.fileno(), other, at)


def mmap_find(fd: int, wanted: bytes) -> int:
    """Where these bytes stand in a file, which has to have them once."""
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as content:
        at = content.find(wanted)
        assert at >= 0
        assert content.find(wanted, at + 1) < 0
        return at


def made_up(file: Path, tag: bytes = b"") -> bytes:
    """A row's part from the device on, of another file."""
    fd = os.open(file, os.O_PATH)
    id, _mount = handle_of(fd)
    about = os.fstat(fd)
    os.close(fd)
    return struct.pack("QQ", about.st_dev, about.st_ino) + id[8:12] + id[16:] + tag


def test_inodes_that_a_process_has_made_up_are_not_opened(served: Served, open_path: Path) -> None:
    """Nobody has signed for them, and they do not lie in the volume; what does, is found there and goes on."""
    secret = open_path / "secret"
    secret.write_text("secret")
    names = ("kept", "changed", "signed")
    for name in names:
        (served.volume / name).write_text(name)
    served.start()
    files = {name: (served.mnt / name).open() for name in names}
    rows = {served.volume / "changed": made_up(secret), served.volume / "signed": made_up(secret, os.urandom(16))}
    rewrite_rows(served.server.pid, rows)
    served.kill_and_resume()
    assert files["kept"].read() == "kept"
    for name in ("changed", "signed"):
        with pytest.raises(OSError, match="tale"):
            os.fstat(files[name].fileno())
        with pytest.raises(OSError, match="tale"):
            files[name].read()
    assert "inodes are gone, or cannot be told to lie in the volume" in served.server.stderr
    assert "count=2" in served.server.stderr
    for file in files.values():
        file.close()
    assert [(served.mnt / name).read_text() for name in names] == list(names)
    assert served.client.stop() == 0
    assert served.server.stop() == 0


def has_ended(pid: int) -> bool:
    """Whether a process is only waited for any more: proc_pid_stat(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.fixture
def served_ext4(fuse: None, program: Programs, ext4: Path, native: str) -> Iterator[Served]:
    """On a filesystem whose names the kernel can be made to forget."""
    made = Served(program, ext4, native)
    yield made
    if mounttable.find(made.mnt) is not None:
        made.client.stop()
        made.server.stop()


def test_inodes_whose_names_the_kernel_has_forgotten(served_ext4: Served) -> None:
    """They are found where they were seen last: by a lookup, a listing, when made, and where they were moved to."""
    served = served_ext4
    for name in ("one", "two"):
        (served.volume / name).mkdir()
    for name in ("looked-up", "listed", "renamed", "exchanged", "linked"):
        (served.volume / "one" / name).write_text(name)
    (served.volume / "two" / "other").write_text("other")
    served.start()
    one, two = served.mnt / "one", served.mnt / "two"
    with os.scandir(one) as entries:
        numbers = {entry.name: entry.inode() for entry in entries}
    (two / "created").write_text("created")
    files = {name: (one / name).open("r") for name in ("looked-up", "listed", "renamed", "exchanged", "linked")}
    files |= {name: (two / name).open("r") for name in ("other", "created")}
    os.rename(one / "renamed", two / "renamed")
    exchange(one / "exchanged", two / "other")
    os.link(one / "linked", two / "linked")
    os.unlink(one / "linked")
    here = os.open(two, os.O_RDONLY | os.O_DIRECTORY)
    before = served.server.stderr.count(GOES_ON)
    (pid,) = served.processes()
    os.kill(served.server.pid, signal.SIGSTOP)
    try:
        os.kill(pid, signal.SIGKILL)
        assert world.wait_until(lambda: has_ended(pid), PATIENCE)
        mounttable.drop_dentries(served.volume.parent)
    finally:
        os.kill(served.server.pid, signal.SIGCONT)
    assert world.wait_until(lambda: served.server.stderr.count(GOES_ON) > before, PATIENCE), served.server.stderr
    for name, file in files.items():
        assert file.read() == name
        assert numbers.get(name, os.fstat(file.fileno()).st_ino) == os.fstat(file.fileno()).st_ino
        file.close()
    assert sorted(os.listdir(here)) == ["created", "linked", "other", "renamed"]
    os.close(here)
    assert served.client.stop() == 0
    assert served.server.stop() == 0


def exchange(one: Path, other: Path) -> None:
    """renameat2(2) with RENAME_EXCHANGE."""
    renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    if renameat2(-100, os.fsencode(one), -100, os.fsencode(other), 2):
        raise OSError(ctypes.get_errno(), "renameat2")


def test_filesystems_in_the_volume_are_found_again(served: Served) -> None:
    below = served.volume / "a b" / "nested"
    below.mkdir(parents=True)
    mounttable.mount("tmpfs", below, "tmpfs", 0, "")
    try:
        served.start()
        with (served.mnt / "a b" / "nested" / "file").open("w+") as file:
            file.write("text")
            file.flush()
            number = os.fstat(file.fileno()).st_ino
            served.kill_and_resume()
            file.seek(0)
            assert file.read() == "text"
            assert os.fstat(file.fileno()).st_ino == number
        assert served.client.stop() == 0
        assert served.server.stop() == 0
    finally:
        mounttable.umount(below, mounttable.MNT_DETACH)


def test_locks_are_lost_and_that_is_said(served: Served) -> None:
    served.start(mount_options=("--locks", "shared"))
    served.server.expect_log("locks are lost")
    with (served.mnt / "locked").open("w") as file, (served.mnt / "flocked").open("w") as other:
        fcntl.lockf(file, fcntl.LOCK_EX)
        fcntl.flock(other, fcntl.LOCK_EX)
        served.kill_and_resume()
        assert "locks are lost: files that had some are open without them" in served.server.stderr
        assert "files=2" in served.server.stderr
        fcntl.lockf(file, fcntl.LOCK_EX)
        before = served.server.stderr.count("locks are lost")
        assert before == 1
    assert served.client.stop() == 0


def test_three_deaths_in_a_minute_end_the_session(served: Served) -> None:
    served.start()
    (served.mnt / "file").write_text("text")
    for count in range(1, 3):
        served.kill_now()
        assert served.server.stderr.count(ANOTHER) == count
    served.kill()
    served.ends_stale()
    assert served.server.stderr.count(ANOTHER) == 2
    assert served.processes() == []


def test_processes_that_die_before_anybody_comes_back(served: Served) -> None:
    """Killed as soon as they are there, with whatever the handshakes were at."""
    served.start("--session-deaths", "1000")
    with (served.mnt / "file").open("w") as file:
        for _ in range(5):
            served.kill_now()
        file.write("text")
        file.flush()
        assert (served.volume / "file").read_text() == "text"
    assert served.client.stop() == 0


def test_a_session_that_cannot_be_restored_ends(served: Served) -> None:
    """Without the right to open by file handle, only descriptors lead to inodes, and those go with the process."""
    os.chown(served.volume, 65534, 65534)
    served.start(volume=":squash-all=65534:65534,no-setuid")
    served.server.expect_log("a session cannot go on")
    (served.mnt / "file").write_text("text")
    served.kill()
    served.ends_stale()
    assert "its inodes cannot be opened again by file handle" in served.server.stderr


def waits_for_a_lock(file: Path) -> bool:
    """Whether somebody does: proc_locks(5)."""
    inode = file.stat().st_ino
    return any("->" in line and f":{inode} " in line for line in Path("/proc/locks").read_text().splitlines())


def test_a_request_that_two_processes_die_of(served: Served) -> None:
    """It is EIO, alone; here: one that waits for a lock, so that one sees when to kill."""
    file = served.volume / "file"
    file.write_text("text")
    served.start(mount_options=("--locks", "shared"))
    served.server.expect_log("a request is given up: the processes that ran it have died")
    with file.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        call = "fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)"
        waiter = children.spawn(REPORT.format(call=call), served.mnt / "file")
        for _ in range(2):
            assert world.wait_until(lambda: waits_for_a_lock(file), PATIENCE)
            served.kill_and_resume()
        assert children.finish(waiter, PATIENCE) == "EIO\n"
        assert not waits_for_a_lock(file)
        assert os.listdir(served.mnt) == ["file"]
    with (served.mnt / "file").open() as taken:
        fcntl.flock(taken, fcntl.LOCK_EX)
    assert served.client.stop() == 0
    assert served.server.stop() == 0


def test_bind_does_not_go_on(fuse: None, program: Programs, open_path: Path, native: str) -> None:
    """Nobody could come back: EIO, then ENOTCONN, as ever."""
    volume, mnt = open_path / "volume", open_path / "mnt"
    volume.mkdir(mode=0o700)
    mnt.mkdir()
    bind: Program = program("bind", volume, mnt, "--native", native)
    bind.expect_log(LOST)
    bind.ready()
    (pid,) = children.sessions_below(bind.pid)
    os.kill(pid, signal.SIGKILL)
    assert bind.wait(PATIENCE) == 8
    assert outcome("os.stat(sys.argv[1])", mnt) == "ENOTCONN"
    mounttable.umount(mnt)
