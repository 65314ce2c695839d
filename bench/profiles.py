"""Where the time of a measure goes: requests of the kernel, system calls by name, switches of threads."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.costs import cpu_seconds
from bench.places import Place

TRACING = Path("/sys/kernel/tracing")
ATTACH = 0.4  # seconds that perf gets to attach to threads; it does not say when it has, and what is warm must stay so
BUFFER = 65536  # KiB for each processor: some hundred thousand requests


@dataclass
class Side:
    """What one side's processes did."""

    pids: list[int]
    cpu: float = 0.0
    switches: int = 0
    calls: Counter[str] = field(default_factory=Counter)


@dataclass
class Profile:
    """Of one run: seconds without perf(1), requests of the kernel by name, and both sides."""

    seconds: float
    requests: Counter[str]
    client: Side
    server: Side


def can_profile() -> str:
    """Why it cannot be done here; empty where it can."""
    if not (TRACING / "events/fuse/fuse_request_send").exists():
        return f"{TRACING} has no event fuse/fuse_request_send: mount tracefs there (Linux 6.12 has it)"
    done = subprocess.run(["perf", "--version"], capture_output=True, check=False) if _installed("perf") else None
    return "" if done is not None and done.returncode == 0 else "perf is not installed (package linux-perf)"


def _installed(name: str) -> bool:
    return any((Path(folder) / name).exists() for folder in os.get_exec_path())


@contextmanager
def requests(place: Place) -> Iterator[Counter[str]]:
    """Counts the requests that the kernel sends to a mount while the block runs; known after it."""
    found: Counter[str] = Counter()
    if not place.client:  # the host's own directory
        yield found
        return
    connection = os.minor(place.path.stat().st_dev)
    instance = TRACING / "instances" / f"fusepipe-bench-{os.getpid()}"
    instance.mkdir()
    try:
        (instance / "buffer_size_kb").write_text(str(BUFFER))
        event = instance / "events/fuse/fuse_request_send"
        (event / "filter").write_text(f"connection == {connection}")
        (event / "enable").write_text("1")
        yield found
        (event / "enable").write_text("0")
        with (instance / "trace").open() as lines:
            found.update(match[1] for line in lines if (match := re.search(r"\(FUSE_(\w+)\)", line)))
    finally:
        instance.rmdir()


def switches(pids: Iterable[int]) -> int:
    """How often threads that live now were switched away from, of their own accord or not (proc_pid_status)."""
    total = 0
    for pid in pids:
        for entry in Path(f"/proc/{pid}/task").glob("*/status"):
            try:
                text = entry.read_text()
            except OSError:
                continue  # the thread has ended meanwhile
            total += sum(int(count) for count in re.findall(r"ctxt_switches:\s*(\d+)", text))
    return total


@contextmanager
def observed(side: Side) -> Iterator[None]:
    """Notes CPU and switches of a side while the block runs."""
    cpu, switched = cpu_seconds(side.pids), switches(side.pids)
    yield
    side.cpu = cpu_seconds(side.pids) - cpu
    side.switches = switches(side.pids) - switched


@contextmanager
def named_calls(sides: Iterable[Side]) -> Iterator[None]:
    """Counts system calls by name while the block runs, with perf-trace(1), which slows it."""
    started = []
    try:
        for side in sides:
            if side.pids:
                command = ["perf", "trace", "-s", "-p", ",".join(map(str, side.pids))]
                process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
                started.append((side, process))
        time.sleep(ATTACH)
        yield
    finally:
        for _, process in started:
            process.send_signal(signal.SIGINT)
        for side, process in started:
            _, said = process.communicate(timeout=60)
            for name, count in re.findall(r"^\s+(\w+)\s+(\d+)\s+\d+\s+[\d.]+\s", said, re.MULTILINE):
                side.calls[name] += int(count)


def described(profile: Profile, work: int) -> str:
    """The profile as lines of text, divided by files or requests."""

    def each(counts: Counter[str]) -> str:
        return ", ".join(f"{name} {count / work:.1f}" for name, count in counts.most_common() if count >= work / 20)

    lines = [f"{profile.seconds / work * 1e6:.1f} us"]
    if profile.requests:
        lines.append(f"requests: {each(profile.requests)}")
    for name, side in (("client", profile.client), ("server", profile.server)):
        if side.pids:
            cpu, switched = side.cpu / work * 1e6, side.switches / work
            lines.append(f"{name}: CPU {cpu:.1f} us, switches {switched:.1f}, calls {each(side.calls)}")
    return "\n".join(lines)
