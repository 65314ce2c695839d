"""What came of a file and of a run: plain values, which any thread may read."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """How a file ended."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    TIMED_OUT = "timed out"
    BAILED_OUT = "bailed out"
    INTERRUPTED = "interrupted"

    @property
    def bad(self) -> bool:
        """Whether a run with such a file in it did not pass."""
        return self not in (Outcome.PASSED, Outcome.SKIPPED)


@dataclass(frozen=True)
class Assertion:
    """One `ok` or `not ok`.  `todo` and `skip` are the reasons behind these directives, None without one."""

    number: int
    ok: bool
    description: str
    todo: str | None = None
    skip: str | None = None

    @property
    def failed(self) -> bool:
        """Not ok, and not expected to be so."""
        return not self.ok and self.todo is None

    @property
    def surprising(self) -> bool:
        """Ok, though marked as something still to do."""
        return self.ok and self.todo is not None


@dataclass(frozen=True)
class FileResult:
    """What came of one `.t` file."""

    name: str
    """Below the checkout's `tests/`: `chmod/00.t`."""
    outcome: Outcome
    seconds: float
    assertions: Sequence[Assertion] = ()
    planned: int | None = None
    """How many assertions it announced."""
    problems: Sequence[str] = ()
    """What is wrong beside assertions that failed: no plan, an exit status, the time limit."""
    reason: str = ""
    """Why it was skipped or bailed out, as it said itself."""
    output: str = ""
    """All that it wrote, stdout and stderr."""

    @property
    def group(self) -> str:
        """The directory of the file, which is the system call that it is about."""
        return self.name.rpartition("/")[0] or "."

    @property
    def failures(self) -> list[Assertion]:
        """The assertions that failed."""
        return [assertion for assertion in self.assertions if assertion.failed]


@dataclass(frozen=True)
class RunResult:
    """What came of a whole run."""

    upstream: str
    target: str
    jobs: int
    started: float
    """Seconds since the epoch."""
    seconds: float
    files: Sequence[FileResult]
    """Those that were begun, in the order of their names."""
    not_run: Sequence[str]
    """The names of those that were not begun, because the run was stopped."""

    @property
    def assertions(self) -> int:
        """How many were made."""
        return sum(len(file.assertions) for file in self.files)

    @property
    def failures(self) -> int:
        """How many of them failed."""
        return sum(len(file.failures) for file in self.files)

    @property
    def bad_files(self) -> list[FileResult]:
        """The files that did not pass."""
        return [file for file in self.files if file.outcome.bad]

    def count(self, outcome: Outcome) -> int:
        """How many files ended so."""
        return sum(file.outcome is outcome for file in self.files)
