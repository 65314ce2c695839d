"""How the command ends when it could not run the suite: its exit code, and the one line that says why."""

from enum import IntEnum
from typing import Final


class ExitCode(IntEnum):
    """The exit codes of `fusepipe-posix`, as docs/posix-upstream.md lists them.  128 + N: signal N stopped it."""

    OK = 0
    FAILED = 1
    USAGE = 2
    TARGET = 3
    UPSTREAM = 4
    BAILED_OUT = 5
    INTERNAL = 6
    NOT_PERMITTED = 7


MEANING: Final[dict[ExitCode, str]] = {
    ExitCode.OK: "every file passed or was skipped",
    ExitCode.FAILED: "at least one file failed or ran out of time",
    ExitCode.USAGE: "wrong options or arguments, or a report that cannot be written",
    ExitCode.TARGET: "the target is missing, not a directory, not writable, or does not answer",
    ExitCode.UPSTREAM: "the upstream checkout is missing, not built, or has no such .t files",
    ExitCode.BAILED_OUT: "a file bailed out, so the rest was not run",
    ExitCode.INTERNAL: "an error that should not happen",
    ExitCode.NOT_PERMITTED: "not root",
}


class PosixError(Exception):
    """The suite could not be run: what could not be done, why, and what the user can do about it."""

    def __init__(self, what: str, cause: str, remedy: str, code: ExitCode) -> None:
        super().__init__(f"{what}: {cause}; {remedy}")
        self.code = code
