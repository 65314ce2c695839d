"""What was measured, as values and as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Line:
    """A measure without what runs it: see bench.scenarios.Measure."""

    group: str
    title: str
    state: str
    threads: int
    work: int


@dataclass
class Sample:
    """All runs of one measure on one system, in the order of the rounds; times in seconds.

    cpu    CPU time of the client's and of the server's processes in each run
    calls  system calls of the two in one more run, not timed; None where they were not counted
    """

    seconds: list[float] = field(default_factory=list)
    cpu: list[tuple[float, float]] = field(default_factory=list)
    calls: tuple[int, int] | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def cpu_median(self, side: int) -> float:
        """CPU seconds of the client (0) or the server (1)."""
        return statistics.median(each[side] for each in self.cpu)


@dataclass
class Results:
    """One run of the benchmarks.

    samples  by system and line
    """

    machine: str
    size: str
    rounds: int
    samples: dict[str, dict[Line, Sample]] = field(default_factory=dict)

    def add(self, system: str, line: Line, seconds: float, cpu: tuple[float, float]) -> None:
        sample = self.sample(system, line)
        sample.seconds.append(seconds)
        sample.cpu.append(cpu)

    def sample(self, system: str, line: Line) -> Sample:
        """The sample of a line, made where there is none."""
        return self.samples.setdefault(system, {}).setdefault(line, Sample())

    def median(self, system: str, line: Line) -> float | None:
        """Seconds; None where this was not measured."""
        sample = self.samples.get(system, {}).get(line)
        return sample.median if sample is not None and sample.seconds else None

    def best(self, systems: Iterable[str], line: Line) -> float | None:
        """The shortest median of these systems, in seconds; None where none of them was measured."""
        return min((seconds for name in systems if (seconds := self.median(name, line)) is not None), default=None)

    def lines(self, systems: Iterable[str] | None = None) -> list[Line]:
        """All lines of these systems, in the order in which they were measured."""
        chosen = self.samples if systems is None else systems
        return list(dict.fromkeys(line for system in chosen for line in self.samples.get(system, {})))

    def write(self, path: Path) -> None:
        """Writes everything as JSON; the first keys say what the others mean."""
        samples = [
            {"system": system, **asdict(line), **asdict(sample)}
            for system, lines in self.samples.items()
            for line, sample in lines.items()
        ]
        head = {"machine": self.machine, "size": self.size, "rounds": self.rounds}
        path.write_text(json.dumps({**head, "samples": samples}, indent=1) + "\n")

    @staticmethod
    def read(path: Path) -> Results:
        """Reads what `write` wrote.  Raises OSError, ValueError and KeyError."""
        found = json.loads(path.read_text())
        results = Results(found["machine"], found["size"], found["rounds"])
        for each in found["samples"]:
            line = Line(*(each[name] for name in ("group", "title", "state", "threads", "work")))
            calls = None if each["calls"] is None else (each["calls"][0], each["calls"][1])
            cpu = [(client, server) for client, server in each["cpu"]]
            results.samples.setdefault(each["system"], {})[line] = Sample(each["seconds"], cpu, calls)
        return results


def this_machine() -> str:
    """Processors, kernel and date."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), platform.machine())
    python = platform.python_version()
    return f"{os.cpu_count()} CPUs ({model}), Linux {platform.release()}, Python {python}, {time.strftime('%Y-%m-%d')}"
