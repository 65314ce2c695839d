"""Runs a program with everything that it starts, and ends all of it: at a time limit, or when the run is stopped.

Nothing here waits without an end, whatever the program's filesystem does: the directory it works in is entered by the
program itself (never by this process), and one that not even SIGKILL ends, because it waits in the kernel for a
filesystem that does not answer, is left behind and said so.
"""

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

KILLED_WITHIN: Final = 10.0
"""Seconds that a killed program gets to be gone."""

MOST_OUTPUT: Final = 16 << 20
"""Bytes of output that are kept of one program."""


class Stop:
    """Says to all threads that the run is to end.  `set` may be called from a signal handler and from any thread."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.signal: int | None = None
        """The signal that asked for it, if one did."""
        self._set = False

    def set(self, signal_number: int | None = None) -> None:
        """End what runs and begin nothing more."""
        if self.signal is None:
            self.signal = signal_number
        self._set = True
        os.eventfd_write(self.fd, 1)

    def __bool__(self) -> bool:
        return self._set

    def close(self) -> None:
        """Give back the file descriptor, once no thread waits for it."""
        os.close(self.fd)


@dataclass(frozen=True)
class Ended:
    """How a program ended."""

    status: int | None
    """As subprocess has it: an exit code, or a signal's number below 0.  None: it is still there."""
    output: str
    seconds: float
    timed_out: bool = False
    stopped: bool = False
    overflowed: bool = False
    """Whether it wrote more than MOST_OUTPUT."""


def run_group(
    command: Sequence[str], seconds: float, stop: Stop | None = None, environment: Mapping[str, str] | None = None
) -> Ended:
    """Run a program in a session of its own, from `/`, with umask 022 and nothing to read, and wait for its end.

    At `seconds`, or when `stop` is set, the whole process group is killed; so is what the program leaves behind in its
    group when it ends by itself.  Raises OSError if it cannot be started.  Any thread may call it.
    """
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        env=environment,
        umask=0o022,
        start_new_session=True,
    )
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    end = os.pidfd_open(process.pid)
    try:
        output = _Output(process.stdout.fileno())
        reason = _wait(end, output, began + seconds, stop)
        # before it is waited for: until then nobody else can have its number
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        gone = reason == "ended" or _wait(end, output, time.monotonic() + KILLED_WITHIN, None) == "ended"
        output.take()
    finally:
        os.close(end)
        process.stdout.close()
    if gone:
        process.wait()
    else:
        _left.append(process)
    return Ended(
        process.returncode,
        output.text(),
        time.monotonic() - began,
        timed_out=reason == "time",
        stopped=reason == "stop",
        overflowed=output.overflowed,
    )


_left: Final[list["subprocess.Popen[bytes]"]] = []
"""Programs that could not be ended; held, so that nobody takes them for forgotten."""


def _wait(end: int, output: "_Output", deadline: float, stop: Stop | None) -> str:
    """Collect output until the program has ended ("ended"), or it is time ("time"), or the run is stopped ("stop")."""
    poll = select.poll()
    poll.register(end, select.POLLIN)
    if stop is not None:
        poll.register(stop.fd, select.POLLIN)
    if not output.closed:
        poll.register(output.fd, select.POLLIN)
    while True:
        left = deadline - time.monotonic()
        ready = {fd for fd, _events in poll.poll(max(0, left) * 1000)}
        if output.fd in ready:
            output.take()
            if output.closed:
                poll.unregister(output.fd)
        if end in ready:
            return "ended"
        if stop is not None and stop.fd in ready:
            return "stop"
        if left <= 0:
            return "time"


class _Output:
    """What a program writes, as far as it is kept."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.closed = False
        self.overflowed = False
        self._kept = bytearray()

    def take(self) -> None:
        """Take what is there now: at most a pipe's worth, so that somebody who writes on and on holds up nobody."""
        with contextlib.suppress(BlockingIOError):
            while not self.closed:
                some = os.read(self.fd, 1 << 16)
                self.closed = not some
                room = MOST_OUTPUT - len(self._kept)
                self.overflowed |= len(some) > room
                self._kept += some[:room]
                if len(some) < 1 << 12:
                    return

    def text(self) -> str:
        return self._kept.decode("utf-8", "backslashreplace")
