"""The programs that make the load, and how long they take."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

LIMIT = 900.0  # seconds for one run of one program


class LoadError(RuntimeError):
    """A program failed; the text has what it said."""


def _run(command: list[str | Path], **more: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False, **more)  # type: ignore[call-overload]  # of strings
    if done.returncode:
        raise LoadError(f"{' '.join(map(str, command))}: exit code {done.returncode}: {done.stderr.strip()[-500:]}")
    return str(done.stdout)


@dataclass(frozen=True)
class Tools:
    """Programs that were built for a run."""

    parbench: Path

    @staticmethod
    def build(folder: Path) -> Tools:
        """Compiles parbench.c into `folder`.  Raises LoadError."""
        binary = folder / "parbench"
        _run(["cc", "-O2", "-pthread", "-o", binary, Path(__file__).with_name("parbench.c")])
        return Tools(binary)

    def small_files(self, mode: str, threads: int, count: int, directory: Path) -> float:
        """parbench: seconds, without the start of its threads."""
        return float(json.loads(_run([self.parbench, mode, str(threads), str(count), directory]))["seconds"])


def timed(*command: str | Path) -> float:
    """Seconds from the start of a program to its end."""
    begin = time.perf_counter()
    _run(list(command))
    return time.perf_counter() - begin


def shell(script: str, *arguments: str | Path) -> float:
    """The same for a line of sh(1), whose $1 and so on are `arguments`."""
    return timed("sh", "-ec", script, "sh", *arguments)


def fio(path: Path, pattern: str, *, block: int, file_bytes: int, io_bytes: int, jobs: int, engine: str) -> float:
    """Seconds that fio(1) needs for `io_bytes` of input or output on the file `path`, all jobs together.

    pattern  read, write, randread or randwrite
    jobs     threads at once, each with its share
    """
    each = max(block, io_bytes // jobs)
    options = {
        "name": "load",
        "filename": str(path),
        "rw": pattern,
        "bs": block,
        "size": file_bytes,
        "io_size": each,
        "numjobs": jobs,
        "ioengine": engine,
        "thread": 1,
        "group_reporting": 1,
        "invalidate": 0,
        "randrepeat": 1,
        "allow_file_create": 0,
        "output-format": "json",
    }
    if pattern in ("read", "write"):
        options["offset_increment"] = file_bytes // jobs
    said = _run(["fio", *(f"--{name}={value}" for name, value in options.items())])
    job = json.loads(said[said.index("{") :])["jobs"][0]
    side = job["write" if "write" in pattern else "read"]
    return float(side["io_bytes"]) / float(side["bw_bytes"])


def make_tree(directory: Path, files: int) -> None:
    """A git repository with `files` small files in directories of 100, all committed and none changed."""
    directory.mkdir()
    for k in range(files):
        folder = directory / f"d{k // 100:03d}"
        if not k % 100:
            folder.mkdir()
        (folder / f"file-{k:05d}.txt").write_text(f"{k}\n" * (20 + k % 200))
    for command in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=bench", "-c", "user.email=bench@localhost", "commit", "-q", "-m", "tree"],
        ["gc", "-q"],
    ):
        # else git would do so in the background, while the tree is copied
        _run(["git", "-C", directory, "-c", "maintenance.auto=false", *command])
