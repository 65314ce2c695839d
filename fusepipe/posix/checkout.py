"""The upstream checkout: whether it can be run at all, and its `.t` files.

Its layout is that of pjdfstest: `tests/GROUP/NN.t`, scripts that call the compiled helper `pjdfstest` at the top.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from fusepipe.posix.errors import ExitCode, PosixError
from fusepipe.posix.groups import run_group

HELPER: Final = "pjdfstest"
HELPER_SECONDS: Final = 30.0

_CANNOT_RUN: Final = (126, 127)
"""Exit codes of a program that could not be loaded: of another machine, without its libraries (sh(1), ld.so(8))."""

_ALONE: Final = {
    re.compile(rb"^\s*(?:mount|umount|mdconfig|losetup|newfs|mkfs)\b", re.M): (
        "it mounts filesystems: mounts and the numbers of loop devices are common to the whole machine"
    ),
    re.compile(rb"\b(?:ENOSPC|EDQUOT)\b"): (
        "it fills a filesystem up: whoever else writes there meanwhile gets the same error"
    ),
}
"""What in a file's text means that it may not run beside others, and why."""


@dataclass(frozen=True)
class TestFile:
    """One `.t` file."""

    __test__ = False  # for pytest, which takes every class of this name for tests

    name: str
    """Below `tests/`: `chmod/00.t`."""
    command: Sequence[str]
    weight: int
    """How many assertions its text announces, 0 if it computes them: a guess at how long it takes."""
    alone: str | None
    """Why it may not run beside others; None: it may."""


def open_checkout(upstream: Path, filters: Sequence[str]) -> list[TestFile]:
    """The `.t` files of a built checkout that `filters` name (all, without one), in the order of their names.

    Raises PosixError.
    """
    what = f"cannot run the suite at {upstream}"
    tests = upstream / "tests"
    try:
        if not upstream.is_dir():
            raise _unsuitable(what, "there is no such directory", "name the checkout's top directory with --upstream")
        if not tests.is_dir():
            raise _unsuitable(
                what, "it has no directory tests/", "name the top directory of a checkout of the suite's shell edition"
            )
        _check_helper(what, upstream / HELPER)
        files = [path for path in tests.rglob("*.t") if path.is_file()]
        if not files:
            raise _unsuitable(what, f"there are no .t files below {tests}", "check it out again, and build it")
        named = [path for path in files if not filters or any(_matches(path.relative_to(tests), f) for f in filters)]
        _check_filters(what, filters, [path.relative_to(tests) for path in files])
        return [_test_file(tests, path) for path in sorted(named, key=lambda path: _natural(path.relative_to(tests)))]
    except OSError as error:
        raise _unsuitable(what, f"{error.filename}: {error.strerror}", "make it readable for root") from error


def _unsuitable(what: str, cause: str, remedy: str) -> PosixError:
    return PosixError(what, cause, remedy, ExitCode.UPSTREAM)


def _check_helper(what: str, helper: Path) -> None:
    remedy = "build the checkout as its own README says, on this machine, and try again"
    if not helper.is_file():
        raise _unsuitable(what, f"it is not built: there is no program {helper}", remedy)
    try:
        ended = run_group([str(helper)], HELPER_SECONDS)  # without arguments it says how it is used, and ends
    except OSError as error:
        raise _unsuitable(what, f"{helper} cannot be executed: {error.strerror}", remedy) from error
    if ended.status in _CANNOT_RUN:
        said = " ".join(ended.output.split())
        raise _unsuitable(what, f"{helper} cannot be executed: {said or f'exit code {ended.status}'}", remedy)
    if ended.timed_out:
        raise _unsuitable(what, f"{helper} does not end within {HELPER_SECONDS:.0f} s", remedy)


def _check_filters(what: str, filters: Sequence[str], files: Sequence[Path]) -> None:
    for pattern in filters:
        if not any(_matches(path, pattern) for path in files):
            groups = ", ".join(sorted({str(path.parent) for path in files}, key=_natural))
            raise _unsuitable(
                what, f"no .t file is called {pattern}", f"give a group ({groups}), GROUP/NN or a pattern"
            )


def _matches(path: Path, pattern: str) -> bool:
    """Whether `chmod`, `chmod/00`, `chmod/00.t`, `tests/chmod/00.t` or `*/00.t` names a file."""
    pattern = pattern.removeprefix("./").removeprefix("tests/").rstrip("/")
    name = path.as_posix()
    return any(
        fnmatchcase(candidate, pattern)
        for candidate in (name, name.removesuffix(".t"), *(parent.as_posix() for parent in path.parents[:-1]))
    )


def _natural(name: Path | str) -> list[tuple[int, str]]:
    """`2.t` before `10.t`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(name))]


def _test_file(tests: Path, path: Path) -> TestFile:
    text = path.read_bytes()
    announced = re.search(rb"""^\s*echo\s+["']?1\.\.(\d+)""", text, re.M)
    reasons = [why for pattern, why in _ALONE.items() if pattern.search(text)]
    return TestFile(
        path.relative_to(tests).as_posix(),
        _command(path, text),
        int(announced[1]) if announced else 0,
        "; ".join(reasons) or None,
    )


def _command(path: Path, text: bytes) -> list[str]:
    """How a file is run: by the interpreter in its first line, as the kernel would, whether or not it is executable."""
    first = text.split(b"\n", 1)[0].decode("utf-8", "surrogateescape")
    interpreter = first[2:].strip().split(None, 1) if first.startswith("#!") else []
    return [*(interpreter or ["/bin/sh"]), str(path)]
