"""What a run cost: CPU time and system calls of the processes that serve a mount."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

NANOSECONDS = 1e9
ATTACHED = 60.0  # seconds that perf gets to attach to a process's threads, on a busy machine


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
    told, tell = os.pipe()
    answers, answer = os.pipe()
    command = ["perf", "stat", "-x,", "-e", "raw_syscalls:sys_enter", "-p", ",".join(map(str, pids))]
    command += ["--delay=-1", f"--control=fd:{told},{answer}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, pass_fds=(told, answer))
    os.close(told)
    os.close(answer)
    try:
        os.write(tell, b"enable\n")  # it counts from its answer on
        if not select.select([answers], [], [], ATTACHED)[0] or not os.read(answers, 16):
            raise RuntimeError("perf does not begin to count system calls")
        yield calls
    finally:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        os.close(tell)
        os.close(answers)
    calls.count = sum(int(line.split(",")[0]) for line in said.splitlines() if "raw_syscalls" in line)
