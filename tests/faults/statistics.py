"""What a session process says that it holds, and what the kernel says about it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

from tests.mount.children import sessions_below
from tests.support import world

PATIENCE = 90.0


def sockets_of(pid: int) -> int:
    """How many sockets a process has open; 0 where there is none."""
    found = 0
    with contextlib.suppress(FileNotFoundError):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found += os.readlink(fd).startswith("socket:")
    return found


class Session:
    """The one session process below a `serve` or `bind` that logs in JSON, at the level info."""

    def __init__(self, pid: int, log: Callable[[], str]) -> None:
        """`pid` is that of `serve` or `bind`, `log` gives what it has logged."""
        self._pid = pid
        self._log = log

    @property
    def pid(self) -> int:
        """Its process now."""
        found = sessions_below(self._pid)
        assert len(found) == 1, f"session processes: {found}"
        return found[0]

    def _said(self) -> list[dict[str, int]]:
        lines = self._log().splitlines()
        return [json.loads(line) for line in lines if '"statistics of a session"' in line and line.endswith("}")]

    def statistics(self) -> dict[str, int]:
        """The counters at this moment; what SIGUSR2 brings to the log."""
        before = len(self._said())
        os.kill(self.pid, signal.SIGUSR2)
        assert world.wait_until(lambda: len(self._said()) > before, PATIENCE), (
            "the session process does not answer SIGUSR2"
        )
        return self._said()[-1]

    def wait_for(self, wanted: dict[str, int], before_each: Callable[[], None] = lambda: None) -> None:
        """Wait until the counters say that; AssertionError where they do not within PATIENCE seconds."""
        found: dict[str, int] = {}

        def right() -> bool:
            before_each()
            found.update(self.statistics())
            return all(found[name] == value for name, value in wanted.items())

        assert world.wait_until(right, PATIENCE), f"{ ({name: found[name] for name in wanted}) } instead of {wanted}"

    def memory(self) -> int:
        """Bytes of memory that are its own, those of its tables among them: Pss of proc_pid_smaps_rollup(5)."""
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no Pss")

    def descriptors(self) -> int:
        """How many it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))
