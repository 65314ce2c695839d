"""One program of a load: `load.py DIR NAME ROUNDS` does all that a mount can meet, with signals in the middle of it.

Needs nothing but Python: it runs without a sanitizer.  Exits with 0 if every answer was right.
"""

import fcntl
import mmap
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

DATA = bytes(range(256)) * 80


def main(me: str, rounds: int) -> None:
    signals = 0

    def count(*_: object) -> None:
        nonlocal signals
        signals += 1

    signal.signal(signal.SIGALRM, count)
    whole(os.makedirs, "shared", 0o755, True)
    failed: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for i in range(rounds):
                one_round(f"{name}-{i}")
                locked("shared/flock", fcntl.flock)
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=work, args=(f"{me}-{number}",)) for number in range(2)]
    for thread in threads:
        thread.start()
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    work(me)
    for _ in range(rounds):
        locked("shared/lock", fcntl.lockf)  # a lock of the whole program, so only this thread takes it
    signal.setitimer(signal.ITIMER_REAL, 0)
    for thread in threads:
        thread.join()
    assert not failed
    assert signals


def whole(call: Callable[..., Any], *arguments: Any) -> Any:
    """A call that Python does not repeat after a signal.  One that was interrupted may have been done all the same."""
    interrupted = False
    while True:
        try:
            return call(*arguments)
        except InterruptedError:
            interrupted = True
        except (FileExistsError, FileNotFoundError):
            if not interrupted:
                raise
            return None


def one_round(name: str) -> None:
    fd = os.open(name, os.O_CREAT | os.O_RDWR, 0o644)
    assert os.pwrite(fd, DATA, 0) == len(DATA)
    os.fsync(fd)
    assert os.pread(fd, 2 * len(DATA), 0) == DATA
    with mmap.mmap(fd, len(DATA)) as mapped:
        mapped[:4] = b"map!"
    os.ftruncate(fd, 100)
    os.fchmod(fd, 0o600)
    assert os.pread(fd, 200, 0)[:4] == b"map!"
    whole(os.utime, fd, (1, 1))
    os.close(fd)
    whole(os.rename, name, f"{name}-r")
    whole(os.link, f"{name}-r", f"{name}-l")
    whole(os.symlink, "nowhere", f"{name}-s")
    assert whole(os.readlink, f"{name}-s") == "nowhere"
    whole(os.mkdir, name)
    whole(os.setxattr, name, "user.x", b"1")
    assert whole(os.listxattr, name) == ["user.x"]
    for number in range(12):
        os.close(os.open(f"{name}/{number}", os.O_CREAT | os.O_WRONLY))
    assert len(whole(os.listdir, name)) == 12
    with whole(os.scandir, "."):
        pass  # a listing that is given up
    assert name in whole(os.listdir, ".")
    held = os.open(f"{name}/0", os.O_RDWR)
    for number in range(12):
        whole(os.unlink, f"{name}/{number}")
    os.pwrite(held, b"unlinked and open", 0)
    assert os.fstat(held).st_nlink == 0
    os.close(held)
    whole(os.rmdir, name)
    whole(os.unlink, f"{name}-r")
    assert whole(os.stat, f"{name}-l").st_nlink == 1
    whole(os.statvfs, ".")
    whole(os.unlink, f"{name}-l")
    whole(os.unlink, f"{name}-s")


def locked(path: str, lock: Any) -> None:
    """What is done under a lock of all programs is done by one at a time."""
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    lock(fd, fcntl.LOCK_EX)
    number = int(os.pread(fd, 20, 0) or b"0") + 1
    os.pwrite(fd, b"%d" % number, 0)
    assert int(os.pread(fd, 20, 0)) == number
    lock(fd, fcntl.LOCK_UN)
    os.close(fd)


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    main(sys.argv[2], int(sys.argv[3]))
