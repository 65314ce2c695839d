"""What a job gets to work with, and how it runs programs."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.workload.sizes import Size


class JobError(Exception):
    """A job found something wrong; the message says what."""


@dataclass(frozen=True)
class Context:
    """Everything that a job needs.  `work` is on the filesystem under test, `host` is an ordinary directory."""

    work: Path
    host: Path
    size: Size
    remount: Callable[[], bool]
    """Unmounts and mounts again; False where the target is a plain directory that cannot be remounted."""
    say: Callable[[str], None]

    def run(
        self,
        *command: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        accept: Sequence[int] = (0,),
    ) -> str:
        """Run a program to its end and return its standard output; JobError when it fails or takes too long."""
        line = " ".join(map(str, command))
        started = time.monotonic()
        try:
            done = subprocess.run(
                [str(part) for part in command],
                cwd=cwd or self.work,
                env={**os.environ, "LC_ALL": "C", **(env or {})},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="surrogateescape",
                timeout=self.size.step_seconds,
            )
        except subprocess.TimeoutExpired:
            raise JobError(f"{line}: not done after {self.size.step_seconds:.0f} s") from None
        if done.returncode not in accept:
            tail = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
            raise JobError(f"{line}: exit code {done.returncode}\n{tail}")
        self.say(f"{line[:90]} ({time.monotonic() - started:.1f} s)")
        return done.stdout


def check(condition: bool, what: str) -> None:
    """JobError with `what` unless the condition holds."""
    if not condition:
        raise JobError(what)
