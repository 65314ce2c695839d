"""What a command tells whoever started it: one line on stdout when it is ready, one line on stderr when it fails.

A command that detaches (`daemon.py`) hands both to its parent process instead, which is still in the foreground.
"""

import contextlib
import os
import sys
from typing import ClassVar, Protocol

PREFIX = "fusepipe: "


class Listener(Protocol):
    """Whoever started the command, where that is not simply at the other end of stdout and stderr."""

    def ready(self, line: str) -> None:
        """The command does its work now."""

    def error(self, line: str) -> None:
        """The command ends, and this is why."""

    def detail(self, text: str) -> None:
        """Some lines for who wants to know more about the error."""


class _Console:
    """The terminal, file or pipe at stdout and stderr."""

    def __init__(self, stderr: int = 2, *, silent: bool = False) -> None:
        self._stderr = stderr
        self._silent = silent

    def ready(self, line: str) -> None:
        sys.stdout.flush()
        if not self._silent:
            _write(1, PREFIX + line + "\n")

    def error(self, line: str) -> None:
        _write(self._stderr, PREFIX + line + "\n")

    def detail(self, text: str) -> None:
        _write(self._stderr, text)

    def with_errors_to(self, fd: int) -> "_Console":
        """The same with another place for errors."""
        return _Console(fd, silent=self._silent)

    def close(self) -> None:
        """Let go of what is not the process's own stderr: whoever started a command waits for the end of that."""
        if self._stderr != 2:
            os.close(self._stderr)


def _write(fd: int, text: str) -> None:
    """Names are bytes, which Python holds as surrogates.  Nobody reading is no reason to give up a mount."""
    with contextlib.suppress(OSError):
        os.write(fd, text.encode("utf-8", "surrogateescape"))


class _Channel:
    """Where lines go.  Set while a command starts, by one thread."""

    listener: ClassVar[Listener] = _Console()


def ready(line: str) -> None:
    """Say that the command does its work now."""
    _Channel.listener.ready(_one_line(line))


def error(line: str) -> None:
    """Say in one line why the command ends."""
    _Channel.listener.error(_one_line(line))


def detail(text: str) -> None:
    """Say more about an error than fits on a line."""
    _Channel.listener.detail(text)


def log_to(path: str) -> None:
    """Let log lines, which go to fd 2, go to a file; errors still go where stderr was.  Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    if isinstance(_Channel.listener, _Console):
        _Channel.listener = _Channel.listener.with_errors_to(os.dup(2))
    os.dup2(fd, 2)
    os.close(fd)


def only_errors() -> None:
    """Say nothing when the command is ready: mount(8) says nothing when a mount succeeded."""
    _Channel.listener = _Console(silent=True)


def speak_to(listener: Listener) -> None:
    """From now on give everything to `listener`."""
    previous, _Channel.listener = _Channel.listener, listener
    if isinstance(previous, _Console):
        previous.close()


def _one_line(text: str) -> str:
    return "".join(c if c >= " " and c != "\x7f" else f"\\x{ord(c):02x}" for c in text)
