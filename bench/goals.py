"""What fusepipe is to reach, and whether a run has shown it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from bench.places import READERS, fusepipe
from bench.results import Line, Results

BEST_OF: Final = ("bindfs", "mergerfs")
"""The peers that cross no pipe: the better of them is what fusepipe is compared with."""
OFF: Final = fusepipe(READERS, "--native", "off").name


@dataclass(frozen=True)
class Goal:
    """A line of the tables, and the most that its time may be, as a multiple of the best of some peers'."""

    title: str
    limit: float
    peers: tuple[str, ...] = BEST_OF


GOALS: Final = (
    Goal("read 4 KiB files, 16 threads, cold", 1.0),
    Goal("read 4 KiB files, 64 threads, cold", 1.0),
    Goal("read 4 KiB files, 16 threads, warm", 1.0),
    Goal("read 4 KiB files, 64 threads, warm", 1.0),
    Goal("read 4 KiB files, cold", 2.2),
    Goal("read 4 KiB files, warm", 0.9),
    Goal("write 4 KiB files with fsync, 16 threads", 1.2),
    Goal("write 4 KiB files with fsync, 64 threads", 1.2),
    Goal("stat, 16 threads, guest", 0.6),
    Goal("stat, warm", 1.1, ("bindfs",)),
    Goal("stat, 16 threads, warm", 1.1, ("bindfs",)),
    Goal("read in a row, 1 MiB, cold", 1.3),
    Goal("read in a row, 1 MiB, warm", 1.3),
    Goal("write in a row, 1 MiB, warm", 1.3),
    Goal("read at random, 4 KiB, 16 threads, cold", 1.3),
    Goal("read at random, 4 KiB, 16 threads, warm", 1.3),
    Goal("write at random, 4 KiB, 16 threads, warm", 1.3),
    Goal("read at random, 4 KiB, cold", 2.3),
    Goal("git status, cold", 1.3),
    Goal("git status, warm", 1.3),
    Goal("find, cold", 1.3),
    Goal("find, warm", 1.3),
    Goal("rm -rf, cold", 2.0),
    Goal("tar out, cold", 2.0),
    Goal("tar out, warm", 2.0),
    Goal("tar in", 2.0),
)

CPU_TITLE: Final = "read 4 KiB files, 16 threads, warm"
CPU_LIMITS: Final = {fusepipe().name: (36.0, 1, "file"), OFF: (60.0, 2, "request")}
"""Microseconds of both sides together, by system: the most, for how many parts of a file, and what these are.  A file
is two requests of the kernel: OPEN and RELEASE."""


@dataclass(frozen=True)
class Outcome:
    """A goal, what is to be at most, and what was measured."""

    what: str
    limit: float
    measured: float
    unit: str

    @property
    def reached(self) -> bool:
        return self.measured <= self.limit


def outcomes(results: Results) -> Iterator[Outcome]:
    """Of all goals for which there are figures; last, of all scenarios the one that comes closest to sshfs."""
    lines = {line.title: line for line in results.lines()}
    ours = fusepipe().name
    for goal in GOALS:
        line = lines.get(goal.title)
        ratio = None if line is None else _to_best(results, line, goal.peers)
        if ratio is not None:
            yield Outcome(f"{goal.title}: times {' or '.join(goal.peers)}", goal.limit, ratio, "")
    for system, (limit, parts, part) in CPU_LIMITS.items():
        if (line := lines.get(CPU_TITLE)) and (sample := results.samples.get(system, {}).get(line)) and sample.cpu:
            each = (sample.cpu_median(0) + sample.cpu_median(1)) / line.work / parts * 1e6
            yield Outcome(f"{CPU_TITLE}: CPU of {system} for one {part}", limit, each, " us")
    beside = {line: ratio for line in results.lines([ours]) if (ratio := _to_best(results, line, ("sshfs",)))}
    if beside:
        slowest = max(beside, key=lambda line: beside[line])
        slower = sum(ratio > 1 for ratio in beside.values())
        what = f"times sshfs, the most of all {len(beside)} scenarios ({slowest.title}); {slower} are above 1"
        yield Outcome(what, 1.0, beside[slowest], "")


def _to_best(results: Results, line: Line, peers: tuple[str, ...]) -> float | None:
    """The time of fusepipe as a multiple of the best of these peers'; None where one of the two is missing."""
    best, own = results.best(peers, line), results.median(fusepipe().name, line)
    return own / best if own is not None and best else None
