"""Where the files run: a directory of the run's own below the target, and in it a fresh one for each file.

This process never touches the target itself: a filesystem that does not answer would hold it for good.  Programs with
a time limit do it (`groups.py`).
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Final

from fusepipe.posix.errors import ExitCode, PosixError
from fusepipe.posix.groups import Stop, run_group

ANSWERS_WITHIN: Final = 30.0
"""Seconds that the target gets to make a directory."""

REMOVED_WITHIN: Final = 120.0
"""Seconds that the target gets to remove what a file left behind."""

_MAKE: Final = 'd=$(mktemp -d "$1/fusepipe-posix.XXXXXXXX") && chmod 755 "$d" && printf %s "$d"'
_INSIDE: Final = 'mkdir -m 755 "$1" && cd "$1" && shift && exec "$@"'
_ENVIRONMENT: Final = {**os.environ, "LC_ALL": "C"}


@contextlib.contextmanager
def run_directory(target: str, stop: Stop) -> Iterator[str]:
    """A new directory below `target`, removed at the end if the target lets it.

    Raises PosixError: the target is no directory, cannot be written to, or does not answer.
    """
    what = f"cannot run in {target}"
    ended = run_group(["/bin/sh", "-c", _MAKE, "sh", target], ANSWERS_WITHIN, stop, _ENVIRONMENT)
    if ended.timed_out or ended.status is None:
        raise PosixError(
            what, f"it does not answer within {ANSWERS_WITHIN:.0f} s", "is its server alive?", ExitCode.TARGET
        )
    if ended.status != 0 and not ended.stopped:
        cause = ended.output.strip().rpartition(": ")[2] or f"exit code {ended.status}"
        raise PosixError(what, cause, "name a directory that root may write to with --target", ExitCode.TARGET)
    made = ended.output if ended.status == 0 else None
    try:
        yield made or target
    finally:
        if made is not None:
            remove(made)


def inside(directory: str, command: Sequence[str]) -> list[str]:
    """The command that makes a directory and runs `command` in it."""
    return ["/bin/sh", "-c", _INSIDE, "sh", directory, *command]


def remove(directory: str) -> str | None:
    """Remove a directory with what is in it, not reaching into other filesystems; says what went wrong, if anything."""
    command = ["rm", "-rf", "--one-file-system", "--", directory]
    ended = run_group(command, REMOVED_WITHIN, environment=_ENVIRONMENT)
    if ended.status == 0:
        return None
    first = ended.output.strip().split("\n")[0]
    return f"cannot remove {directory}: {first or f'no end within {REMOVED_WITHIN:.0f} s'}"
