"""The command `fusepipe` in child processes, as its users run it, with logs that must be clean."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

COMMAND = (sys.executable, "-m", "fusepipe")
ENVIRONMENT = {"PYTHONPATH": str(REPOSITORY)}
"""How tests start fusepipe, from whatever directory."""

DIRTY = re.compile(
    rb'^\S+Z (warning|error) |"level": "(warning|error)"|^Traceback |^Fatal Python error|Sanitizer', re.M
)


class Program:
    """One running `fusepipe`.  Its stdout and stderr go to files, so that it never waits for a reader."""

    def __init__(self, arguments: list[str], folder: Path, environment: Mapping[str, str]) -> None:
        self.arguments = arguments
        self._out, self._err = folder / "stdout", folder / "stderr"
        self._expected: list[re.Pattern[bytes]] = []
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [*COMMAND, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, **ENVIRONMENT, **environment},
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stdout(self) -> str:
        return self._out.read_text()

    @property
    def stderr(self) -> str:
        return self._err.read_text()

    def ready(self, seconds: float = 30) -> str:
        """Wait for the first whole line on stdout and return it; fails if the program ends before."""
        deadline = time.monotonic() + seconds
        while "\n" not in self.stdout:
            if self.process.poll() is not None:
                raise AssertionError(f"{self} ended with {self.process.returncode} before it was ready: {self.stderr}")
            if time.monotonic() > deadline:
                raise AssertionError(f"{self} was not ready within {seconds} s: {self.stderr}")
            time.sleep(0.02)
        return self.stdout.splitlines()[0]

    def wait(self, seconds: float = 30) -> int:
        """Wait for the end and return the exit code."""
        return self.process.wait(timeout=seconds)

    def stop(self, seconds: float = 30) -> int:
        """Ask it to end as an init system does (SIGTERM), wait, and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.wait(seconds)

    def expect_log(self, pattern: str) -> None:
        """Warnings and errors that match are part of the test; they may come, others may not."""
        self._expected.append(re.compile(pattern.encode()))

    def check_log(self) -> None:
        """Fail for a warning, error or traceback on stderr that the test did not expect."""
        lines = self._err.read_bytes().splitlines()
        dirty = [line for line in lines if DIRTY.search(line) and not any(p.search(line) for p in self._expected)]
        if dirty:
            text = b"\n".join(dirty).decode("utf-8", "replace")
            raise AssertionError(f"{self} logged what the test does not expect:\n{text}\n--- all of it:\n{self.stderr}")

    def __str__(self) -> str:
        return "fusepipe " + " ".join(self.arguments)


class Programs:
    """Starts programs for one test, and ends them with it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[Program] = []

    def __call__(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> Program:
        """Start `fusepipe ARGUMENTS` and return at once."""
        folder = self._folder / str(len(self._started))
        folder.mkdir()
        started = Program([str(argument) for argument in arguments], folder, env or {})
        self._started.append(started)
        return started

    def run(self, *arguments: str | Path, env: Mapping[str, str] | None = None, seconds: float = 60) -> Program:
        """Run `fusepipe ARGUMENTS` to its end; `.process.returncode`, `.stdout` and `.stderr` tell how it went."""
        started = self(*arguments, env=env)
        started.wait(seconds)
        return started

    def finish(self) -> None:
        """Stop what still runs, and check all logs."""
        for started in reversed(self._started):
            started.stop()
        for started in self._started:
            started.check_log()

    def kill(self) -> None:
        """End what still runs, whatever it does."""
        for started in self._started:
            with contextlib.suppress(ProcessLookupError):
                started.process.kill()
            started.process.wait()
