"""What concerns the process: capabilities, and the signal that ends a waiting call."""

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fusepipe.syscalls import facts, install_interrupt_handler
from tests.server.volume import Volume, needs_root

SIGNAL = signal.SIGRTMIN + 5


def test_facts() -> None:
    now = facts()
    assert (now.uid, now.euid) == (os.getuid(), os.geteuid())
    with open("/proc/thread-self/status") as status:
        effective = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff"))
    assert ("dac_read_search" in now.capabilities) is bool(effective >> 2 & 1)
    assert ("mknod" in now.capabilities) is bool(effective >> 27 & 1)


@needs_root
def test_facts_of_another_user(as_user: Callable[[Callable[[], None]], None]) -> None:
    def check() -> None:
        assert facts().capabilities == frozenset()

    as_user(check)


def test_a_signal_that_cannot_be_had() -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        install_interrupt_handler(signal.SIGKILL)


LEASE = """
import fcntl, os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO])
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def handler() -> Iterator[None]:
    before = signal.getsignal(SIGNAL)
    install_interrupt_handler(SIGNAL)
    yield
    signal.signal(SIGNAL, before or signal.SIG_DFL)


def test_an_open_that_waits_for_a_lease_can_be_interrupted(handler: None, disk: Volume) -> None:
    path: Path = disk.path / "f"
    path.write_bytes(b"data")
    node = disk.lookup(b"f").node
    with subprocess.Popen([sys.executable, "-c", LEASE, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        ended: list[int | None] = []

        def wait() -> None:
            try:
                disk.open(node, os.O_RDWR)
                ended.append(0)
            except OSError as error:
                ended.append(error.errno)

        with pytest.raises(BlockingIOError):
            disk.open(node, os.O_RDWR | os.O_NONBLOCK)
        thread = threading.Thread(target=wait)
        thread.start()
        disk.lookup(b"f")  # nothing else waits
        for _ in range(600):  # a signal that comes before the call is lost
            if not thread.is_alive():
                break
            assert thread.ident is not None
            signal.pthread_kill(thread.ident, SIGNAL)
            thread.join(0.05)
        thread.join(1)
        assert ended == [errno.EINTR]
        holder.stdin.close()
        holder.wait(10)
    assert disk.read(disk.open(node, os.O_RDWR)) == b"data"
    assert disk.count("handles") == 1
