"""The command of the benchmarks: `python -m bench run`, `report` and `calls`.  README.md says how it measures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench import tables
from bench.load import LoadError, Tools
from bench.places import HOST, PEERS, READERS, System, fusepipe, installed
from bench.profiles import can_profile, described
from bench.results import Results, this_machine
from bench.runner import Runner
from bench.scenarios import FULL, QUICK, TINY, Measure, Scenarios
from tests.mount.harness import HarnessError
from tests.support import world

HERE = Path(__file__).parent
WIDTH = 160
"""Of tables that go into a file."""
STEPS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SIZES = {"full": FULL, "quick": QUICK, "tiny": TINY}


@click.group()
def main() -> None:
    """Benchmarks of fusepipe, beside the host directory and other passthroughs."""


@main.command()
@click.option(
    "--size", type=click.Choice(list(SIZES)), default="full", show_default=True, help="How much of everything."
)
@click.option("--quick", "size", flag_value="quick", help="The same as --size quick: a few minutes.")
@click.option("--rounds", type=click.IntRange(1), help="How often everything is measured  [default: 5; quick: 3]")
@click.option("--systems", help=f"A comma list of host, fusepipe, off, {', '.join(PEERS)}  [default: all there are]")
@click.option("--readers", default=",".join(map(str, STEPS)), show_default=True, help="Steps of the reference's table.")
@click.option("--only", help="A comma list of words; measures whose title or group contains none of them are left out.")
@click.option("--costs/--no-costs", default=True, show_default=True, help="Count system calls, too (needs perf).")
@click.option(
    "--directory", type=click.Path(file_okay=False, exists=True), default=tempfile.gettempdir(), help="Where."
)
@click.option(
    "--json",
    "output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write all single times there, after each round.",
)
@click.option(
    "--add", is_flag=True, help="Add rounds to what stands there: it must be of this machine, and of this day."
)
def run(
    size: str,
    rounds: int | None,
    systems: str | None,
    readers: str,
    only: str | None,
    costs: bool,
    directory: str,
    output: Path | None,
    add: bool,
) -> None:
    """Measure everything side by side and print the tables.

    Needs root: it mounts, and drops the kernel's caches.  All files are made in a new directory below --directory.
    """
    if os.geteuid() != 0:
        raise click.ClickException("dropping caches needs root: run it as root")
    chosen = SIZES[size]
    rounds = rounds or chosen.rounds
    beside = _systems(systems)
    steps = _steps(readers)
    console = Console(stderr=True)
    results = Results(this_machine(), size, 0)
    if add:
        results = _earlier(output, results)

    def write() -> None:
        if output is not None:
            results.write(output)

    with _scratch(directory) as scratch:
        scenarios = Scenarios(Tools.build(scratch), chosen, _folder(scratch, "template"))
        measures = _chosen(scenarios.all(), only)
        scaled = [fusepipe(step) for step in steps if fusepipe(step) not in beside]
        plan = [(m, [*beside, *scaled] if tables.REFERENCE.match(m.title) else beside) for m in measures]
        counted = [m for m in measures if m.group == "small files" and m.threads == 16] if costs else []
        total = rounds * sum(len(on) for _, on in plan) + len(counted) * (len(beside) - 1)
        with _progress(console) as progress:
            task = progress.add_task("", total=total)

            def report(text: str) -> None:
                progress.update(task, advance=1, description=text)

            runner = Runner(results, report)
            runner.run(plan, rounds, _folder(scratch, "measured"), write)
            runner.count_calls([s for s in beside if s.name != HOST], counted, _folder(scratch, "counted"))
    write()
    tables.show(Console(width=None if sys.stdout.isatty() else WIDTH), results)


@main.command()
@click.option("--only", required=True, help="A comma list of words, as of `run`.")
@click.option("--systems", default="fusepipe,bindfs", show_default=True, help="A comma list, as of `run`.")
@click.option(
    "--size", type=click.Choice(list(SIZES)), default="full", show_default=True, help="How much of everything."
)
@click.option(
    "--directory", type=click.Path(file_okay=False, exists=True), default=tempfile.gettempdir(), help="Where."
)
def profile(only: str, systems: str, size: str, directory: str) -> None:
    """Say where the time of a measure goes, for each file or request.

    That is: what the kernel asks (tracefs), and CPU, switches of threads and system calls by name of both sides (perf).
    """
    if os.geteuid() != 0:
        raise click.ClickException("tracing needs root: run it as root")
    if why := can_profile():
        raise click.ClickException(why)
    chosen = [system for system in _systems(systems) if system.name != HOST]
    console = Console(stderr=True)
    with _scratch(directory) as scratch:
        scenarios = Scenarios(Tools.build(scratch), SIZES[size], _folder(scratch, "template"))
        measures = _chosen(scenarios.all(), only)
        runner = Runner(Results(this_machine(), size, 1), console.print)
        for system, measure, found in runner.profile(chosen, measures, _folder(scratch, "measured")):
            click.echo(f"{measure.title}: {system.name}: {described(found, measure.work)}\n")


@main.command()
@click.argument("results", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--plots", type=click.Path(file_okay=False, path_type=Path), help="Draw into this directory.")
@click.option("--format", "kind", type=click.Choice(["svg", "png"]), default="svg", show_default=True, help="Of plots.")
@click.option("--readme", is_flag=True, help="Put the tables, and the plots of bench/plots, into bench/README.md.")
def report(results: Path, plots: Path | None, kind: str, readme: bool) -> None:
    """Make tables and plots of what `run --json` wrote."""
    found = Results.read(results)
    folder = HERE / "plots" if readme and plots is None else plots
    drawn: list[Path] = []
    if folder is not None:
        from bench.plots import draw  # it is slow to load

        drawn = draw(found, folder, kind)
    if readme:
        tables.put_into(HERE / "README.md", tables.everything(found, drawn))
    else:
        click.echo(tables.everything(found, drawn))


@main.command(context_settings={"ignore_unknown_options": True})
@click.option("--save", metavar="NAME", help="Keep the figures under a name, in .benchmarks/.")
@click.option("--compare", metavar="NAME", help="Show them beside those that were kept under a name.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def calls(save: str | None, compare: str | None, arguments: tuple[str, ...]) -> None:
    """Time single calls: codec, round trip, operations on a mount (pytest-benchmark, which gets ARGUMENTS)."""
    command = [sys.executable, "-m", "pytest", str(HERE), "--benchmark-enable", "-q", *arguments]
    if save is not None:
        command.append(f"--benchmark-save={save}")
    if compare is not None:
        command.append(f"--benchmark-compare=*_{compare}")
    sys.exit(subprocess.run(command, cwd=HERE.parent, check=False).returncode)


@contextmanager
def _scratch(directory: str) -> Iterator[Path]:
    """A new directory, and an end without anything left of it, however that comes."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stopped)  # ends everything as an error would
    scratch = Path(tempfile.mkdtemp(prefix="bench-", dir=directory))
    try:
        yield scratch
    except (LoadError, HarnessError) as error:
        raise click.ClickException(str(error)) from error
    finally:
        world.end_mounts_below(scratch)
        world.remove(scratch)


def _earlier(output: Path | None, now: Results) -> Results:
    """What an earlier run has written, to which rounds are to be added."""
    if output is None:
        raise click.UsageError("--add needs --json: the file that the earlier run has written")
    try:
        earlier = Results.read(output)
    except (OSError, ValueError, KeyError) as error:
        raise click.ClickException(f"{output} cannot be read as what `run --json` writes: {error}") from error
    if (earlier.machine, earlier.size) != (now.machine, now.size):
        raise click.ClickException(
            f"{output} has figures of {earlier.machine}, size {earlier.size}; this is {now.machine}, size {now.size}: "
            "write into another file"
        )
    return earlier


def _stopped(number: int, _: object) -> None:
    sys.exit(128 + number)


def _systems(text: str | None) -> list[System]:
    known = {HOST: System(HOST), "fusepipe": fusepipe(), "off": fusepipe(READERS, "--native", "off")}
    known |= {name: System(name) for name in PEERS}
    names = list(known) if text is None else text.split(",")
    if unknown := [name for name in names if name not in known]:
        raise click.BadParameter(f"no such system: {', '.join(unknown)}; known are {', '.join(known)}")
    missing = [name for name in names if name in PEERS and not installed(name)]
    if text is not None and missing:
        raise click.ClickException(f"not installed: {', '.join(missing)} (sshfs needs openssh-sftp-server, too)")
    if HOST not in names:
        names.insert(0, HOST)
    return [known[name] for name in names if name not in missing]


def _steps(text: str) -> list[int]:
    try:
        steps = sorted({int(word) for word in text.split(",") if word})
    except ValueError:
        raise click.BadParameter(f"{text!r} is no comma list of numbers") from None
    if steps and not (steps[0] >= 1 and steps[-1] <= 256):
        raise click.BadParameter("readers are 1 to 256")
    return steps


def _chosen(measures: list[Measure], only: str | None) -> list[Measure]:
    if not only:
        return measures
    words = only.split(",")
    return [m for m in measures if any(word in m.title or word in m.group for word in words)]


def _folder(scratch: Path, name: str) -> Path:
    (scratch / name).mkdir()
    return scratch / name


def _progress(console: Console) -> Progress:
    columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("{task.description}", markup=False), console=console)


if __name__ == "__main__":
    main()
