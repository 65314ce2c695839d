"""The load: threads that change a tree in ways whose results are known beforehand.

    python -m tests.faults.load MOUNT VOLUME SEED THREADS [bears]

Each thread has a folder of its own, with a model of it, and compares every result with the model; a few files are
shared, and of those it is known what must be there in the end.  With `bears` a call may also end with EIO: then it has
taken effect, or it has not, and nothing else has happened.  It prints `ready` when all threads work.  On a line of
input they end, everything is compared, through the mount and on the host, and a line of JSON says how it was.  On a
second line it holds open files and locks as HELD says, on a third it gives them back, and on a fourth it ends.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.faults.model import Bears, Worker, check_tree

HELD: Final = {"files": 40, "unlinked": 5, "folders": 5, "locks": 10}
"""What is held open in the end: files (some of them locked), files without a name, and folders."""

WARM: Final = 20
"""Calls of each thread before it counts as working."""

FLOCK: Final = struct.Struct("hhqqixxxx")
RECORD: Final = struct.Struct("<II24x")


def ofd_lock(fd: int, kind: int, command: int = fcntl.F_OFD_SETLKW) -> None:
    """A lock of the open file description on the whole file."""
    fcntl.fcntl(fd, command, FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0))


class Shared:
    """One thread's part in what all threads share: races that one wins, a log, and a counter under a lock."""

    def __init__(self, top: Path, me: int, *, bears: bool = False) -> None:
        """`bears`: calls may end with EIO; what they were about is then in `unsure`."""
        self.top = top
        self._bears = bears
        self.unsure: set[int] = set()
        """Races that may have been won."""
        self.doubtful: set[int] = set()
        """Records that may be in the log."""
        self.me = me
        self.won: list[int] = []
        self.races = 0
        self.records = 0
        self.increments = 0
        self.flocked = 0

    def _bear(self, error: OSError) -> None:
        if not self._bears or error.errno != errno.EIO:
            raise error

    def race(self) -> None:
        """Of all who make a thing of that name exactly one succeeds."""
        number, self.races = self.races, self.races + 1
        name = self.top / "races" / str(number)
        makers: tuple[Callable[[], object], ...] = (
            lambda: os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)),
            lambda: os.mkdir(name),
            lambda: os.link(self.top / "log", name),
            lambda: os.symlink("x", name),
        )
        try:
            makers[number % len(makers)]()
        except FileExistsError:
            return
        except OSError as error:
            self._bear(error)
            self.unsure.add(number)
            return
        self.won.append(number)

    def append(self) -> None:
        """One record for the log that all append to."""
        fd = os.open(self.top / "log", os.O_WRONLY | os.O_APPEND)
        try:
            number, self.records = self.records, self.records + 1
            assert os.write(fd, RECORD.pack(self.me, number)) == RECORD.size
        except OSError as error:
            self._bear(error)
            self.doubtful.add(number)
        finally:
            os.close(fd)

    def increment(self) -> None:
        """Read, add one, write: only right where the lock is a lock."""
        fd = os.open(self.top / "counter", os.O_RDWR)
        try:
            ofd_lock(fd, fcntl.F_WRLCK)
            value = int(os.pread(fd, 20, 0))
            os.pwrite(fd, b"%020d" % (value + 1), 0)
            self.increments += 1
            ofd_lock(fd, fcntl.F_UNLCK)
        finally:
            os.close(fd)

    def flock(self) -> None:
        """The same under flock(2)."""
        fd = os.open(self.top / "flocked", os.O_RDWR)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            value = int(os.pread(fd, 20, 0))
            os.pwrite(fd, b"%020d" % (value + 1), 0)
            self.flocked += 1
        finally:
            os.close(fd)


def check_shared(top: Path, all_of: list[Shared]) -> None:
    """AssertionError where the shared things are not what the threads made of them."""
    tried = set(range(max(one.races for one in all_of)))
    won = [number for one in all_of for number in one.won]
    assert len(won) == len(set(won)), f"won twice: {sorted(n for n in set(won) if won.count(n) > 1)}"
    lost = tried - set(won) - {number for one in all_of for number in one.unsure}
    assert not lost, f"won by nobody: {sorted(lost)}"
    made = set(map(int, os.listdir(top / "races")))
    assert set(won) <= made <= tried, f"made: {sorted(made)}, tried: {sorted(tried)}, won: {sorted(won)}"
    log = (top / "log").read_bytes()
    assert len(log) % RECORD.size == 0, f"the log has {len(log)} bytes"
    found: dict[int, list[int]] = {}
    for who, number in RECORD.iter_unpack(log):
        found.setdefault(who, []).append(number)
    for one in all_of:
        there = found.get(one.me, [])
        sure = [number for number in range(one.records) if number not in one.doubtful or number in there]
        assert there == sure, f"records of {one.me}: {there}, and {one.records} were written"
    assert int((top / "counter").read_bytes()) == sum(one.increments for one in all_of)
    assert int((top / "flocked").read_bytes()) == sum(one.flocked for one in all_of)


class Thread(threading.Thread):
    """Works until told to stop; `problem` is what went wrong."""

    def __init__(
        self,
        top: Path,
        seed: str,
        me: int,
        stop: threading.Event,
        working: threading.Semaphore,
        bears: Bears | None = None,
    ) -> None:
        super().__init__(name=f"load {me}", daemon=True)
        self.shared = Shared(top / "shared", me, bears=bears is not None)
        self.worker = Worker(top / f"t{me}", seed, bears)
        self.bears = bears
        self.steps = 0
        self.problem: str | None = None
        self._stop_event = stop
        self._working = working

    @property
    def failed(self) -> int:
        """Calls whose answer was EIO."""
        seen = 0 if self.bears is None else self.bears.failed
        return seen + len(self.shared.unsure) + len(self.shared.doubtful)

    def run(self) -> None:
        others = (self.shared.race, self.shared.append, self.shared.increment, self.shared.flock)
        try:
            while not self._stop_event.is_set():
                step = self.worker.step if self.steps % 4 else others[self.steps // 4 % len(others)]
                step()
                self.steps += 1
                if self.steps == WARM:
                    self._working.release()
            self.worker.end()
        except BaseException as error:
            self.problem = f"{self.name}, step {self.steps}: {error!r} after {self.worker.history}"
            self._working.release()


def prepare(top: Path, threads: int) -> None:
    """The folders and files that everything begins with."""
    for name in ("shared", "shared/races", "held", *(f"t{i}" for i in range(threads))):
        (top / name).mkdir()
    (top / "shared" / "log").touch()
    for name in ("counter", "flocked"):
        (top / "shared" / name).write_bytes(b"%020d" % 0)


def hold(top: Path) -> list[int]:
    """Open what HELD says."""
    fds = []
    for i in range(HELD["files"]):
        fds.append(os.open(top / "held" / f"file{i}", os.O_RDWR | os.O_CREAT))
        if i < HELD["locks"]:
            ofd_lock(fds[-1], fcntl.F_WRLCK)
    for i in range(HELD["unlinked"]):
        fds.append(os.open(top / "held" / f"gone{i}", os.O_RDWR | os.O_CREAT))
        os.unlink(top / "held" / f"gone{i}")
    for i in range(HELD["folders"]):
        (top / "held" / f"folder{i}").mkdir()
        fds.append(os.open(top / "held" / f"folder{i}", os.O_RDONLY | os.O_DIRECTORY))
    return fds


def main() -> None:
    top, volume, seed, count = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    bears = "bears" in sys.argv[5:]
    prepare(top, count)
    stop, working = threading.Event(), threading.Semaphore(0)
    threads = [
        Thread(top, f"{seed}/{me}", me, stop, working, Bears(top, volume) if bears else None) for me in range(count)
    ]
    for thread in threads:
        thread.start()
    for _ in threads:
        working.acquire()
    print("ready", flush=True)
    sys.stdin.readline()
    stop.set()
    for thread in threads:
        thread.join()
    problems = [thread.problem for thread in threads if thread.problem]
    if not problems:
        try:
            for place in (top, volume):
                check_shared(place / "shared", [thread.shared for thread in threads])
                for thread in threads:
                    check_tree(place / thread.worker.top.name, thread.worker.folder)
        except AssertionError as error:
            problems.append(str(error))
    outcome = {
        "problems": problems,
        "steps": sum(thread.steps for thread in threads),
        "failed": sum(thread.failed for thread in threads),
    }
    print(json.dumps(outcome), flush=True)
    sys.stdin.readline()
    fds = hold(top)
    print("held", flush=True)
    sys.stdin.readline()
    for fd in fds:
        os.close(fd)
    print("free", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
