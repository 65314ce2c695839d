"""What the user sees: progress while it runs, and the table at the end."""

from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from fusepipe.posix.results import FileResult, Outcome, RunResult

SHOWN: Final = 10
"""Assertions that are shown of a file that failed; the reports have all of them."""

STYLE: Final = {
    Outcome.PASSED: "green",
    Outcome.SKIPPED: "cyan",
    Outcome.FAILED: "bold red",
    Outcome.TIMED_OUT: "bold red",
    Outcome.BAILED_OUT: "bold red",
    Outcome.INTERRUPTED: "yellow",
}


class Output(Console):
    """The terminal, file or pipe at stdout.  Where nobody reads it any more BrokenPipeError is raised."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class Display:
    """Shows a run: a bar on a terminal, and otherwise a line for each file that has ended.  For one thread only."""

    def __init__(self, console: Console, files: int) -> None:
        self._console = console
        self._files = files
        self._ended = 0
        self._failed = 0
        self._assertions = 0
        self._progress = Progress(
            TextColumn("[progress.description]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=files)

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._progress.stop()

    def ended(self, result: FileResult) -> None:
        """A file has ended."""
        self._ended += 1
        self._failed += result.outcome.bad
        self._assertions += len(result.assertions)
        if result.outcome.bad or not self._console.is_terminal:
            counted = "" if self._console.is_terminal else f"[{self._ended}/{self._files}] "
            self._console.print(Text(counted).append(_line(result)), soft_wrap=True)
        self._progress.update(
            self._task,
            completed=self._ended,
            description=f"{_counted(self._assertions, 'assertion')}, {_counted(self._failed, 'file')} failed",
        )


def _line(result: FileResult) -> Text:
    """A file on one line."""
    text = Text(f"{result.name}: ").append(str(result.outcome), STYLE[result.outcome])
    if failures := len(result.failures):
        text.append(f", {failures} of {_counted(len(result.assertions), 'assertion')}")
    elif result.assertions:
        text.append(f", {_counted(len(result.assertions), 'assertion')}")
    if result.outcome is Outcome.SKIPPED:
        text.append(f" ({_printable(result.reason)})")
    return text.append(f", {result.seconds:.1f} s")


def show(console: Console, run: RunResult) -> None:
    """The table of groups, what failed, and the sum of it all."""
    console.print(_table(run))
    for file in run.bad_files:
        console.print()
        console.print(_line(file), soft_wrap=True)
        for text in details(file):
            console.print(Text(f"    {_printable(text)}"), soft_wrap=True)
    surprises = [(file, assertion) for file in run.files for assertion in file.assertions if assertion.surprising]
    if surprises:
        console.print()
        for file, assertion in surprises[:SHOWN]:
            text = f"{file.name}: ok, though marked TODO: {assertion.number} {assertion.description}"
            console.print(Text(_printable(text)), soft_wrap=True)
        if len(surprises) > SHOWN:
            console.print(f"and {len(surprises) - SHOWN} more that are marked TODO and ok")
    if run.not_run:
        console.print()
        console.print(f"not run: {_listed(run.not_run)}", soft_wrap=True, highlight=False)
    console.print()
    console.print(summary(run), soft_wrap=True)


def details(file: FileResult) -> list[str]:
    """What is wrong with a file, in a few lines."""
    lines = [f"not ok {one.number} - {one.description}".rstrip(" -") for one in file.failures[:SHOWN]]
    if (more := len(file.failures) - SHOWN) > 0:
        lines.append(f"and {more} more that are not ok")
    lines.extend(file.problems)
    if not file.assertions and (said := file.output.strip()):
        lines.extend(f"it said: {text}" for text in said.split("\n")[-SHOWN:])
    return lines


def summary(run: RunResult) -> Text:
    """The run in one line."""
    bad = len(run.bad_files)
    text = Text(f"{_counted(len(run.files), 'file')}, {_counted(run.assertions, 'assertion')}, ")
    text.append(_counted(run.failures, "failure"), "bold red" if run.failures else "green")
    if bad:
        text.append(f", {_counted(bad, 'file')} failed", "bold red")
    if skipped := run.count(Outcome.SKIPPED):
        text.append(f", {_counted(skipped, 'file')} skipped")
    if run.not_run:
        text.append(f", {_counted(len(run.not_run), 'file')} not run", "yellow")
    return text.append(f", {run.seconds:.1f} s with {_counted(run.jobs, 'job')}, in {run.target}")


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def _printable(text: str) -> str:
    """Nothing that a file says may move the cursor or change colours."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown


def _table(run: RunResult) -> Table:
    table = Table(title=None)
    table.add_column("group")
    for heading in ("files", "failed", "skipped", "assertions", "failures", "seconds"):
        table.add_column(heading, justify="right")
    groups: dict[str, list[FileResult]] = {}
    for file in run.files:
        groups.setdefault(file.group, []).append(file)
    for group, files in groups.items():
        table.add_row(group, *_row(files))
    table.add_section()
    table.add_row("all", *_row(run.files), style="bold")
    return table


def _row(files: Sequence[FileResult]) -> list[Text]:
    bad = sum(file.outcome.bad for file in files)
    failures = sum(len(file.failures) for file in files)
    return [
        Text(str(len(files))),
        Text(str(bad), "bold red" if bad else ""),
        Text(str(sum(file.outcome is Outcome.SKIPPED for file in files))),
        Text(f"{sum(len(file.assertions) for file in files):,}"),
        Text(f"{failures:,}", "bold red" if failures else ""),
        Text(f"{sum(file.seconds for file in files):.1f}"),
    ]
