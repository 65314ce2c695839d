"""Calls that wait: below a filesystem that does not answer, or for a lease that a host program holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.mount import blockfs as program
from tests.mount import children, mounttable

ENOUGH = 45.0  # seconds for what takes milliseconds: the machine may be busy, a delayed request would never end


_running: list[BlockFS] = []


def release_all() -> None:
    """Let every filesystem answer what it holds back: before mounts end that wait for it."""
    for filesystem in _running:
        if filesystem.process.poll() is None:
            filesystem.say("go")


class BlockFS:
    """The filesystem of blockfs.py, mounted at `path`."""

    def __init__(self, path: Path, *options: str) -> None:
        self.path = path
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", program.__file__, str(path), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        _running.append(self)
        assert children.read_line(self.process) == "ready"

    def blocked(self, count: int) -> None:
        """Wait until `count` requests are unanswered."""
        while len(self.lines) < count:
            self.lines.append(children.read_line(self.process, ENOUGH))

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def close(self) -> None:
        _running.remove(self)
        if self.process.poll() is None:
            self.say("end")
        try:
            self.process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            children.kill(self.process)
        if (found := mounttable.find(self.path)) is not None:
            mounttable.abort(found)
            mounttable.umount(self.path, mounttable.MNT_DETACH)


WAITERS = {
    "open": "os.open(sys.argv[1], os.O_RDONLY)",
    "read": "os.read(os.open(sys.argv[1], os.O_RDONLY), 100)",
    "write": "os.write(os.open(sys.argv[1], os.O_WRONLY), b'data')",
    "fsync": "os.fsync(os.open(sys.argv[1], os.O_WRONLY))",
    "lookup": "os.stat(sys.argv[1])",
    "getattr": "os.stat(sys.argv[1])",
    "fallocate": "os.posix_fallocate(os.open(sys.argv[1], os.O_WRONLY), 0, 100)",
    "seek": "os.lseek(os.open(sys.argv[1], os.O_RDONLY), 0, os.SEEK_DATA)",
    "copy": "os.copy_file_range("
    "os.open(sys.argv[1], os.O_RDONLY), os.open(sys.argv[1] + '-to', os.O_WRONLY), 100, 0, 0)",
}
REPORT = """
try:
    {call}
    print("done")
except OSError as error:
    print(errno.errorcode[error.errno])
"""


def wait_in(operation: str, path: Path) -> subprocess.Popen[str]:
    """A child that waits in one call and prints "done" or the name of its errno."""
    return children.spawn(REPORT.format(call=WAITERS[operation]), path)


def asks_a_filesystem(process: subprocess.Popen[str]) -> bool:
    """Whether it is in a call that waits for the answer of a FUSE mount."""
    return "request_wait_answer" in Path(f"/proc/{process.pid}/wchan").read_text()


LEASE = """
F_SETLEASE = 1024
signal.signal(signal.SIGIO, lambda *_: None)
fds = []
for path in sys.argv[1:]:
    fds.append(os.open(path, os.O_RDWR))
    fcntl.fcntl(fds[-1], F_SETLEASE, fcntl.F_WRLCK)
print("ready", flush=True)
while sys.stdin.readline().strip() != "go":
    pass
for fd in fds:
    fcntl.fcntl(fd, F_SETLEASE, fcntl.F_UNLCK)
"""

BUSY = """
os.chdir(sys.argv[1])
print("ready", flush=True)
i = 0
try:
    while True:
        with open(f"{sys.argv[2]}-{i % 10}", "w") as file:
            file.write("x" * 10_000)
        os.stat(f"{sys.argv[2]}-{i % 10}")
        os.listdir(".")
        i += 1
except OSError as error:
    print(errno.errorcode[error.errno])
"""
"""A program that writes, looks and lists in the directory that it is given until it gets an error, which it prints."""
