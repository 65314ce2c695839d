"""What a run cost: CPU time and system calls of the processes that serve a mount."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

NANOSECONDS = 1e9
ATTACHED = 0.3  # seconds that perf gets to attach to a process's threads


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time of all threads that live now, in seconds (proc_pid_schedstat: the first number, in nanoseconds)."""
    total = 0
    for pid in pids:
        for entry in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            try:
                total += int(entry.read_text().split()[0])
            except OSError:
                continue  # the thread has ended meanwhile
    return total / NANOSECONDS


def can_count_calls() -> bool:
    """Whether perf(1) is here and may count system calls."""
    if shutil.which("perf") is None:
        return False
    command = ["perf", "stat", "-e", "raw_syscalls:sys_enter", "true"]
    done = subprocess.run(command, capture_output=True, check=False)
    return done.returncode == 0


class Calls:
    """How many system calls a set of processes made; `count` is known after the block of `counted`."""

    count = 0


@contextmanager
def counted(pids: list[int]) -> Iterator[Calls]:
    """Counts the system calls of processes with perf(1) while the block runs."""
    calls = Calls()
    if not pids:
        yield calls
        return
    command = ["perf", "stat", "-x,", "-e", "raw_syscalls:sys_enter", "-p", ",".join(map(str, pids))]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    time.sleep(ATTACHED)
    try:
        yield calls
    finally:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    calls.count = sum(int(line.split(",")[0]) for line in said.splitlines() if "raw_syscalls" in line)
