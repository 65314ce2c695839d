"""The command line of the workload: which jobs, how large, and on what."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.mount.harness import HarnessError, Mount
from tests.support import world
from tests.workload import archive, build, clone, database, disk, packages
from tests.workload.jobs import Context, JobError
from tests.workload.sizes import SIZES

Job = Callable[[Context], dict[str, object]]

JOBS: dict[str, Job] = {
    "git": clone.run,
    "build": build.run,
    "pip": packages.run,
    "sqlite": database.run,
    "tar": archive.run_tar,
    "rsync": archive.run_rsync,
    "fio": disk.run,
}
NEEDED = {"git": "git", "build": "make", "tar": "tar", "rsync": "rsync", "fio": "fio"}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.workload",
        description="Clone, build, install, query, archive, copy and write with checks, on a directory or a mount.",
        epilog="Exit code 0: all jobs passed; 1: one failed (the rest did not run); 2: usage.",
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("directory", nargs="?", type=Path, help="an existing directory; a new one inside it is used")
    where.add_argument("--bind", action="store_true", help="a directory mounted by `fusepipe bind`")
    where.add_argument("--serve", action="store_true", help="the same by `fusepipe serve` and `fusepipe mount`")
    where.add_argument("--bindfs", action="store_true", help="the same by bindfs, to compare with")
    parser.add_argument("--size", choices=SIZES, default="small", help="how much each job does (default: small)")
    parser.add_argument("--only", metavar="JOB,...", default=",".join(JOBS), help=f"of: {', '.join(JOBS)}")
    parser.add_argument(
        "--native",
        choices=("auto", "off"),
        default="auto",
        help="of --bind and --serve, for both sides (default: auto)",
    )
    parser.add_argument(
        "--mount-option", metavar="OPTION", action="append", default=[], help="one more word for the mount"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summary there too")
    chosen = parser.parse_args(arguments)
    chosen.jobs = chosen.only.split(",")
    if unknown := set(chosen.jobs) - JOBS.keys():
        parser.error(f"no such job: {', '.join(sorted(unknown))}; there are {', '.join(JOBS)}")
    if missing := [NEEDED[job] for job in chosen.jobs if job in NEEDED and not shutil.which(NEEDED[job])]:
        parser.error(f"these programs are missing, please install them: {', '.join(missing)}")
    if chosen.directory is not None and not chosen.directory.is_dir():
        parser.error(f"{chosen.directory} is not a directory")
    return chosen


@contextmanager
def target(chosen: argparse.Namespace) -> Iterator[tuple[Path, Callable[[], bool]]]:
    """The directory to work in and the function that remounts it; all is taken away at the end."""
    if chosen.directory is not None:
        work = Path(tempfile.mkdtemp(prefix="workload-", dir=chosen.directory))
        try:
            yield work, lambda: False
        finally:
            world.remove(work)
        return
    kind = "bind" if chosen.bind else "serve" if chosen.serve else "bindfs"
    if chosen.native == "off" and kind != "bindfs":
        kind += "-off"
    source = Path(tempfile.mkdtemp(prefix="workload-source-"))
    try:
        with Mount(kind, source, options=tuple(chosen.mount_option)) as mount:

            def remount() -> bool:
                mount.remount()
                return True

            yield mount.path, remount
    finally:
        world.remove(source)


def main(arguments: list[str] | None = None) -> int:
    """Run the chosen jobs; the exit code."""
    chosen = parse(arguments)
    summary: dict[str, object] = {"size": chosen.size, "target": " ".join(arguments or sys.argv[1:]), "passed": False}
    jobs: dict[str, object] = {}
    summary["jobs"] = jobs
    host = Path(tempfile.mkdtemp(prefix="workload-host-"))
    begin = time.monotonic()
    failure = ""
    try:
        with target(chosen) as (work, remount):
            for number, name in enumerate(chosen.jobs, 1):
                start = time.monotonic()
                say(f"[{number}/{len(chosen.jobs)}] {name}")
                context = Context(work, host, SIZES[chosen.size], remount, lambda text: say(f"      {text}"))
                found = JOBS[name](context)
                jobs[name] = {"seconds": round(time.monotonic() - start, 2), **found}
        summary["passed"] = True
    except (JobError, HarnessError, OSError) as error:
        failure = f"{type(error).__name__}: {error}"
        summary["failure"] = failure
    finally:
        world.remove(host)
    summary["seconds"] = round(time.monotonic() - begin, 2)
    print(json.dumps(summary), flush=True)
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(summary, indent=2) + "\n")
    if failure:
        print(f"FAILED: {failure}", file=sys.stderr)
        return 1
    return 0


def say(text: str) -> None:
    """A line of progress, on standard error: standard output is for the summary."""
    print(text, file=sys.stderr, flush=True)
