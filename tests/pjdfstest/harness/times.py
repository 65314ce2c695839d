"""Which of a file's times move, and which stay."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from . import checks
from .caller import Caller, Path
from .status import Status

_tick_ns = 0


def measure(root: Caller) -> int:
    """Learn how long to wait so that a later change gets a later time; returns nanoseconds.

    Kernels stamp files with the time of the last timer tick, and some filesystems store whole seconds only.
    """
    global _tick_ns
    root.setup.write_file("clock", b"")
    root.setup.utimensat("clock", ((1, 123456789), (1, 123456789)))
    whole_seconds = root.lstat("clock").mtime % 1_000_000_000 == 0
    root.setup.unlink("clock")
    resolution = time.clock_getres(time.CLOCK_REALTIME_COARSE) if hasattr(time, "CLOCK_REALTIME_COARSE") else 0.01
    _tick_ns = 1_010_000_000 if whole_seconds else int(max(resolution, 0.004) * 1.3e9)
    return _tick_ns


def pass_after(*statuses: Status) -> None:
    """Wait until a change must get a later time than any of these shows."""
    rest = max(status.taken for status in statuses) + _tick_ns - time.monotonic_ns()
    if rest > 0:
        time.sleep(rest / 1e9)


def moved(before: Status, after: Status, which: str, what: str) -> None:
    """One check for each time named (`"mtime ctime"`): it is later than before."""
    __tracebackhide__ = True
    for name in which.split():
        old, new = getattr(before, name), getattr(after, name)
        checks.check(new > old, f"{name} of {what} did not move: {old} -> {new}")


@contextmanager
def moves(root: Caller, times: Mapping[Path | int, str]) -> Iterator[None]:
    """What happens inside moves these times: `{"directory": "mtime ctime", "file": "ctime"}`.

    One check for each.  An int is a descriptor; symlinks are not followed.
    """
    __tracebackhide__ = True
    paths = list(times)
    before = root.lstats(paths)
    pass_after(*before)
    yield
    for path, old, new in zip(paths, before, root.lstats(paths), strict=True):
        moved(old, new, times[path], repr(path))


@contextmanager
def unchanged(root: Caller, *paths: Path | int, wait: bool = False) -> Iterator[None]:
    """What happens inside changes nothing about these files.  One check for each.

    With `wait` a change of the times would also show where the kernel's time stamps are coarse.
    """
    __tracebackhide__ = True
    before = root.lstats(list(paths))
    if wait:
        pass_after(*before)
    yield
    for path, old, new in zip(paths, before, root.lstats(list(paths)), strict=True):
        # Following a symlink reads it, so its access time may move.
        differences = old.differences(new, *(["atime"] if old.kind == "symlink" else []))
        checks.check(not differences, f"{path!r} has changed: {differences}")
