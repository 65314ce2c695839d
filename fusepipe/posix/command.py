"""The command `fusepipe-posix`: options, signals, exit codes."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TextIO

import click

from fusepipe import __version__
from fusepipe.posix.checkout import open_checkout
from fusepipe.posix.console import Display, Output, show
from fusepipe.posix.directory import run_directory
from fusepipe.posix.errors import MEANING, ExitCode, PosixError
from fusepipe.posix.groups import Stop
from fusepipe.posix.json_report import as_json
from fusepipe.posix.junit import as_junit
from fusepipe.posix.results import FileResult, Outcome, RunResult
from fusepipe.posix.running import run_file
from fusepipe.posix.schedule import run_all

EXAMPLES: Final = (
    ("fusepipe-posix --upstream ~/suite --target /mnt", "the whole suite, below /mnt"),
    ("fusepipe-posix --upstream ~/suite --target /mnt --jobs 16 chmod rename/2*", "two groups of it, 16 files at once"),
    ("fusepipe-posix --upstream ~/suite --target /mnt --junit posix.xml", "and a report for a CI system"),
)


class _Command(click.Command):
    """A command whose help ends with examples and exit codes."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Examples"):
            for line, meaning in EXAMPLES:
                formatter.write(f"  {line}\n")
                formatter.indent()
                formatter.write_text(meaning)
                formatter.dedent()
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(int(code)), MEANING[code]) for code in ExitCode])


@click.command(cls=_Command, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--upstream",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="The checkout of the suite, built: tests/GROUP/NN.t and the program pjdfstest.",
)
@click.option(
    "--target",
    type=click.Path(),
    required=True,
    metavar="DIR",
    help="A directory of the filesystem under test; all runs in a new directory below it.",
)
@click.option(
    "--jobs", type=click.IntRange(1, 512), default=4, show_default=True, metavar="N", help="Files that run at once."
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=600,
    show_default=True,
    metavar="SECONDS",
    help="How long one file may take; then everything that it started is ended.",
)
@click.option(
    "--junit",
    type=click.Path(),
    metavar="FILE",
    show_default="none",
    help="Write a report as JUnit XML, for CI systems.",
)
@click.option(
    "--json", type=click.Path(), metavar="FILE", show_default="none", help="Write a report as JSON, with everything."
)
@click.version_option(__version__, prog_name="fusepipe-posix", message="%(prog)s %(version)s")
@click.argument("filters", nargs=-1, metavar="[FILTER]...")
def fusepipe_posix(
    upstream: Path,
    target: str,
    jobs: int,
    timeout: float,
    junit: str | None,
    json: str | None,
    filters: tuple[str, ...],
) -> int:
    """Run the .t files of a built checkout of the upstream POSIX suite on any directory, in parallel.

    It neither downloads nor builds anything.  FILTER chooses files: a group (chmod), a file (chmod/00) or a pattern
    (*/00.t).  Ctrl-C ends what runs, and what came of the rest is shown and reported.
    """
    if os.geteuid() != 0:
        raise PosixError("cannot run the suite", "it acts as several users", "run it as root", ExitCode.NOT_PERMITTED)
    tests = open_checkout(upstream.absolute(), filters)
    results: list[FileResult] = []
    started, began = time.time(), time.monotonic()
    console = Output()
    with ExitStack() as stack:
        reports = [
            (f"{option} {path}", stack.enter_context(_report(option, path)), write)
            for option, path, write in (("--junit", junit, as_junit), ("--json", json, as_json))
            if path is not None
        ]
        stop = stack.enter_context(_stopped_by_signals())
        with run_directory(os.path.abspath(target), stop) as within, Display(console, len(tests)) as display:

            def ended(result: FileResult) -> None:
                results.append(result)
                display.ended(result)

            run_all(tests, jobs, partial(run_file, within=within, seconds=timeout, stop=stop), ended, stop)
        begun = {result.name: result for result in results}
        run = RunResult(
            upstream=str(upstream),
            target=target,
            jobs=jobs,
            started=started,
            seconds=time.monotonic() - began,
            files=[begun[test.name] for test in tests if test.name in begun],
            not_run=[test.name for test in tests if test.name not in begun],
        )
        show(console, run)
        for name, file, write in reports:
            _write(name, file, write(run))
        return _exit_code(run, stop)


@contextmanager
def _report(option: str, path: str) -> Iterator[TextIO]:
    """The file of a report, opened before anything runs, so that nothing runs for a report that cannot be written."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise PosixError(
            f"{option} {path}", str(error.strerror), "name a file that can be written", ExitCode.USAGE
        ) from error
    with open(fd, "w", encoding="utf-8") as file:
        yield file


def _write(option: str, file: TextIO, text: str) -> None:
    try:
        with file:
            file.write(text)
    except OSError as error:
        cause = f"the report is not whole: {error.strerror}"
        raise PosixError(f"cannot write {option}", cause, "write it to another place", ExitCode.USAGE) from error


@contextmanager
def _stopped_by_signals() -> Iterator[Stop]:
    """SIGINT, SIGTERM and SIGHUP end the run with what it has."""
    stop = Stop()

    def handler(number: int, _frame: Any) -> None:
        stop.set(number)

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield stop
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
        stop.close()


def _exit_code(run: RunResult, stop: Stop) -> int:
    if stop.signal is not None:
        return 128 + stop.signal
    if run.count(Outcome.BAILED_OUT):
        return ExitCode.BAILED_OUT
    return ExitCode.FAILED if run.bad_files else ExitCode.OK
