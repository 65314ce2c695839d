"""`--daemon`: the work goes on in the background once it is ready, and the caller learns how the start went.

The process forks before it has threads or has loaded anything that minds.  The child does the work in a session of its
own (setsid(2)) and speaks to its parent through a pipe; the parent waits until the child is ready or has ended, so its
wait ends when the child's start does, which has time-outs of its own.  Signals that ask the parent to stop meanwhile go
on to the child.
"""

import json
import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Final

from fusepipe import log
from fusepipe.cli import report
from fusepipe.cli.exits import ExitCode

STOPPING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Parent:
    """The child's end of the pipe, as a `report.Listener`: one JSON object a line."""

    def __init__(self, fd: int, stderr: int | None) -> None:
        self._fds = [fd] if stderr is None else [fd, stderr]
        log.copy_to(stderr)

    def ready(self, line: str) -> None:
        """Let the parent go, and let go of everything that belongs to whoever started us."""
        self._send("ready", line)
        os.chdir("/")
        log.copy_to(None)
        while self._fds:
            os.close(self._fds.pop())

    def error(self, line: str) -> None:
        """Tell the parent why we end; once it is gone, tell the log."""
        if self._fds:
            self._send("error", line)
        else:
            log.get_logger("cli").error(line)

    def detail(self, text: str) -> None:
        """Tell the parent more about the error."""
        self._send("detail", text)

    def _send(self, kind: str, text: str) -> None:
        if self._fds:
            with suppress(BrokenPipeError):  # the parent was killed: there is nobody to tell
                os.write(self._fds[0], json.dumps({kind: text}).encode() + b"\n")


def go_to_background(*, logs_to_file: bool) -> None:
    """Fork.  Returns in the child only; the parent waits, says what the child says, and raises SystemExit.

    Without a log file the child's log lines appear on the parent's stderr until it is ready, and nowhere after that.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    child = os.fork()
    if child:
        os.close(writing)
        raise SystemExit(_watch(child, reading))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    os.close(reading)
    os.setsid()
    report.speak_to(_Parent(writing, None if logs_to_file else os.dup(2)))
    _redirect(0, os.O_RDONLY)
    _redirect(1, os.O_WRONLY)
    if not logs_to_file:
        _redirect(2, os.O_WRONLY)


def _redirect(fd: int, flags: int) -> None:
    opened = os.open(os.devnull, flags)
    os.dup2(opened, fd)
    os.close(opened)


def _watch(child: int, reading: int) -> int:
    """Relay what the child says until it is ready or has ended, and return the exit code for the parent."""
    stopped_by = 0

    def pass_on(number: int, _frame: FrameType | None) -> None:
        nonlocal stopped_by
        stopped_by = number
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)

    for number in STOPPING:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    with os.fdopen(reading, encoding="utf-8") as lines:
        for line in lines:
            [(kind, text)] = json.loads(line).items()
            if kind == "ready":
                report.ready(text)
                return ExitCode.OK
            if kind == "error":
                report.error(text)
            else:
                report.detail(text)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if stopped_by:
        return 128 + stopped_by
    if code < 0:
        report.error(f"the background process was killed by signal {-code}; its log may say why (--log-file)")
    return code if code > 0 else ExitCode.INTERNAL
