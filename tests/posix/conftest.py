"""A small suite of our own in the layout of the upstream one, and the command that runs it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.program import ENVIRONMENT

COMMAND = (sys.executable, "-m", "fusepipe.posix.main")
HELPER = "#!/bin/sh\necho 'usage: pjdfstest syscall args ...' >&2\nexit 1\n"


@dataclass(frozen=True)
class Ran:
    """What came of a run of the command."""

    code: int
    stdout: str
    stderr: str
    report: dict[str, Any]

    def file(self, name: str) -> dict[str, Any]:
        """What the JSON report says about a file."""
        return next(file for file in self.report["files"] if file["name"] == name)


class Suite:
    """A checkout that is built, and a target."""

    def __init__(self, folder: Path) -> None:
        self.upstream = folder / "upstream"
        self.target = folder / "target"
        self.report = folder / "report.json"
        self.target.mkdir()
        (self.upstream / "tests").mkdir(parents=True)
        self.helper = self.upstream / "pjdfstest"
        self.helper.write_text(HELPER)
        self.helper.chmod(0o755)
        self._running: list[subprocess.Popen[str]] = []

    def add(self, name: str, *lines: str, interpreter: str = "#!/bin/sh") -> Path:
        """A `.t` file with these lines."""
        path = self.upstream / "tests" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join([interpreter, *lines, ""]))
        return path

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """Start the command on this suite and target, with a report in JSON."""
        process = subprocess.Popen(
            [*COMMAND, "--upstream", self.upstream, "--target", self.target, "--json", self.report, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **ENVIRONMENT, "COLUMNS": "200"},
        )
        self._running.append(process)
        return process

    def finish(self, process: subprocess.Popen[str]) -> Ran:
        """Wait for the end of the command."""
        stdout, stderr = process.communicate(timeout=90)
        text = self.report.read_text() if self.report.exists() else ""
        assert not any(self.target.iterdir()), "something is left in the target"
        return Ran(process.returncode, stdout, stderr, json.loads(text) if text else {})

    def run(self, *arguments: str | Path) -> Ran:
        """Run the command to its end."""
        return self.finish(self.start(*arguments))

    def close(self) -> None:
        """End what a failed test left running."""
        for process in self._running:
            if process.poll() is None:
                process.terminate()
            process.communicate(timeout=60)


@pytest.fixture
def suite(tmp_path: Path) -> Iterator[Suite]:
    made = Suite(tmp_path)
    yield made
    made.close()
