"""Runs one `.t` file and judges it."""

import os
import signal

from fusepipe.posix.assertions import Said, read
from fusepipe.posix.checkout import TestFile
from fusepipe.posix.directory import inside, remove
from fusepipe.posix.groups import MOST_OUTPUT, Ended, Stop, run_group
from fusepipe.posix.results import FileResult, Outcome


def run_file(test: TestFile, within: str, seconds: float, stop: Stop) -> FileResult:
    """Run a file in a fresh directory below `within`, for at most `seconds`; any thread may call it."""
    directory = os.path.join(within, test.name.removesuffix(".t").replace("/", "-"))
    try:
        ended = run_group(inside(directory, test.command), seconds, stop)
    except OSError as error:
        return FileResult(test.name, Outcome.FAILED, 0.0, problems=[f"cannot be started: {error.strerror}"])
    said = read(ended.output)
    problems = _problems(ended, said, seconds)
    if left := remove(directory):
        problems.append(left)
    return FileResult(
        test.name,
        _outcome(ended, said, problems),
        ended.seconds,
        said.assertions,
        said.planned,
        problems,
        said.bailed_out or said.skipped or "",
        ended.output,
    )


def _problems(ended: Ended, said: Said, seconds: float) -> list[str]:
    """What is wrong with a file, the most important first."""
    problems = []
    if ended.timed_out:
        problems.append(f"not done after {seconds:g} s: ended")
    if ended.stopped:
        problems.append("ended, because the run was stopped")
    if ended.status is None:
        problems.append("cannot be ended: it waits in the kernel, for a filesystem that does not answer")
    if ended.overflowed:
        problems.append(f"wrote more than {MOST_OUTPUT >> 20} MiB, the rest was not looked at")
    if said.bailed_out is not None:
        problems.append(f"bailed out: {said.bailed_out}")
    if ended.status and not ended.timed_out and not ended.stopped:
        problems.append(_status(ended.status))
    return problems + said.problems


def _status(status: int) -> str:
    """An exit status in words."""
    if status > 0:
        return f"exit status {status}"
    try:
        return f"ended by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal has no name
        return f"ended by signal {-status}"


def _outcome(ended: Ended, said: Said, problems: list[str]) -> Outcome:
    if ended.stopped:
        return Outcome.INTERRUPTED
    if ended.timed_out:
        return Outcome.TIMED_OUT
    if said.bailed_out is not None:
        return Outcome.BAILED_OUT
    if problems or any(assertion.failed for assertion in said.assertions):
        return Outcome.FAILED
    return Outcome.SKIPPED if said.skipped is not None else Outcome.PASSED
