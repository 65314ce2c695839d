"""Runs a target under libFuzzer: those in Python by atheris, the one in C by itself.

A corpus is kept as one file with an input in hex on each line; libFuzzer wants a folder with a file for each, so that
is made when it is needed.  The inputs that the vectors of the protocol give are added each time.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.fuzz import fuzz_requests, fuzz_wire, native

ROOT = Path(__file__).resolve().parents[2]
SEEDS = {"wire": fuzz_wire.corpus, "requests": fuzz_requests.corpus, "native": native.corpus}
TARGETS = sorted(SEEDS)
LONGEST = {"wire": 4096, "requests": 600, "native": 2048}
"""Bytes of an input."""

HANG = 300
"""Seconds after which an input counts as one that never ends: much, since the machine may be busy."""


def kept(target: str) -> Path:
    """Where a target's corpus is."""
    return ROOT / "tests" / "fuzz" / "corpus" / f"{target}.hex"


def inputs(target: str) -> list[bytes]:
    """The kept inputs of a target."""
    path = kept(target)
    return [bytes.fromhex(line) for line in path.read_text().splitlines()] if path.exists() else []


class Fuzzer:
    """A target and its corpus, in a folder of the caller's."""

    def __init__(self, target: str, folder: Path) -> None:
        self.target = target
        self._corpus = folder / "corpus"
        self._folder = folder
        self._corpus.mkdir()
        self._write(self._corpus, [*SEEDS[target](), *inputs(target)])
        if target == "native":
            self._command = [str(native.build(folder))]
        else:
            self._command = [sys.executable, "-m", "tests.fuzz.guided", target]

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """The fuzzer with these arguments, to its end."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            [*self._command, *arguments],
            cwd=self._folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            check=False,
            **options,
        )

    def fuzz(self, seconds: int, seed: int, artifacts: Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """New inputs for so long.  What fails is written to `artifacts`; then the exit code is not 0."""
        return self.run(
            str(self._corpus),
            f"-max_total_time={seconds}",
            f"-seed={seed}",
            f"-max_len={LONGEST[self.target]}",
            f"-artifact_prefix={artifacts}/",
            f"-timeout={HANG}",
            "-rss_limit_mb=4096",
            "-print_final_stats=1",
            **options,
        )

    def keep(self) -> int:
        """Write the corpus as it is now, without the seeds, to the file that is kept; returns how many inputs."""
        seeds = set(SEEDS[self.target]())
        found = {path.read_bytes() for path in self._corpus.iterdir()} - seeds
        lines = sorted((data.hex() for data in found), key=lambda line: (len(line), line))
        kept(self.target).parent.mkdir(exist_ok=True)
        kept(self.target).write_text("".join(f"{line}\n" for line in lines))
        return len(lines)

    @staticmethod
    def _write(folder: Path, data: list[bytes]) -> None:
        for one in data:
            (folder / hashlib.sha1(one).hexdigest()).write_bytes(one)
