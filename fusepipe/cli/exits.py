"""How a command ends: its exit code, and the one line that says why."""

from collections.abc import Iterator
from enum import IntEnum
from typing import Final


class ExitCode(IntEnum):
    """The exit codes of every command, as docs/cli.md lists them.  128 + N: signal N came before it was ready."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    MOUNT_POINT = 3
    VOLUME = 4
    CONNECT = 5
    REFUSED = 6
    NOT_PERMITTED = 7
    LOST = 8
    STALE = 9
    DOCTOR = 10


MEANING: Final[dict[ExitCode, str]] = {
    ExitCode.OK: "a clean end",
    ExitCode.INTERNAL: "an error that should not happen; --log-level debug shows where",
    ExitCode.USAGE: "wrong options or arguments",
    ExitCode.MOUNT_POINT: "the mount point is missing, not a directory, not empty or busy",
    ExitCode.VOLUME: "the source or volume is missing or not a directory",
    ExitCode.CONNECT: "no connection to the server, or the address cannot be listened on",
    ExitCode.REFUSED: "the server refused: version, access or a limit",
    ExitCode.NOT_PERMITTED: "not permitted: /dev/fuse, fusermount3, privileges",
    ExitCode.LOST: "the connection to the server was lost",
    ExitCode.STALE: "the session is stale: the server no longer knows it, or another copy of this client goes on",
    ExitCode.DOCTOR: "doctor found that something needed is missing",
}


class CommandError(Exception):
    """An expected failure of a command: what could not be done, why, and what the user can do about it."""

    def __init__(self, what: str, cause: str, remedy: str, code: ExitCode) -> None:
        super().__init__(f"{what}: {cause}; {remedy}")
        self.code = code


class StoppedEarly(Exception):
    """A signal asked the command to end before it was ready.  The exit code is 128 + `signal`, as a shell's."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"stopped by signal {signal} before it was ready")
        self.signal = signal


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The single errors in a group of errors, as trio's nurseries raise them."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error
