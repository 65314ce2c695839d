"""Tables of the results, in Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import rich.table
from rich.console import Console

from bench.goals import BEST_OF, outcomes
from bench.places import HOST, READERS, fusepipe
from bench.results import Line, Results

Table = list[list[str]]
"""Rows of cells; the first is the head."""

REFERENCE = re.compile(r"(read 4 KiB files|write 4 KiB files with fsync), 64 threads")
BEGIN, END = "<!-- figures: written by `python -m bench report --readme` -->", "<!-- end of figures -->"


def milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1000:.1f}"


def ratio(one: float | None, other: float | None) -> str:
    return "" if one is None or not other else f"{one / other:.2f}"


def readers_of(system: str) -> int | None:
    """The readers of a plain fusepipe, by its name; None for anything else."""
    if system == fusepipe().name:
        return READERS
    found = re.fullmatch(r"fusepipe (\d+)", system)
    return int(found[1]) if found else None


def scaling(results: Results) -> list[tuple[int, str]]:
    """Readers and system names of everything that belongs into the reference's table, fewest readers first."""
    return sorted((readers, name) for name in results.samples if (readers := readers_of(name)) is not None)


def reference_lines(results: Results) -> list[Line]:
    """The lines of the reference's table."""
    return [line for line in results.lines([HOST]) if REFERENCE.match(line.title)]


def reference(results: Results, line: Line) -> Table:
    """The reference's own table: host, then by readers: time, times the host's, speed-up over one reader."""
    host = results.median(HOST, line)
    rows = [["", "time, ms", "times the host's", "speed-up over 1 reader"], [HOST, milliseconds(host), "1.00", ""]]
    times = {readers: results.median(name, line) for readers, name in scaling(results)}
    for readers, seconds in times.items():
        if seconds is not None:
            rows.append(
                [f"--readers {readers}", milliseconds(seconds), ratio(seconds, host), ratio(times.get(1), seconds)]
            )
    return rows


def compared(results: Results) -> list[str]:
    """The systems that stand side by side: all but fusepipe with other numbers of readers than the default."""
    return [name for name in results.samples if readers_of(name) in (None, READERS)]


def comparison(results: Results, group: str) -> Table:
    """Milliseconds of all systems, and fusepipe's ratio to the host and to the best of bindfs and mergerfs."""
    names = compared(results)
    ours = fusepipe().name
    rows = [["", *(f"{name}, ms" for name in names), "to host", "to best of bindfs, mergerfs"]]
    for line in results.lines(names):
        if line.group == group:
            times = [results.median(name, line) for name in names]
            own = results.median(ours, line)
            best = results.best(BEST_OF, line)
            rows.append(
                [line.title, *map(milliseconds, times), ratio(own, results.median(HOST, line)), ratio(own, best)]
            )
    return rows


def goals(results: Results) -> Table:
    """What is to be reached, and what was."""
    rows = [["", "at most", "measured", "reached"]]
    for one in outcomes(results):
        rows.append(
            [one.what, f"{one.limit:g}{one.unit}", f"{one.measured:.2f}{one.unit}", "yes" if one.reached else "no"]
        )
    return rows


def costs(results: Results) -> Table:
    """CPU microseconds and system calls for each unit of work, where calls were counted."""
    rows = [["", "system", "CPU client, us", "CPU server, us", "both, us", "calls client", "calls server"]]
    for line in results.lines():
        for name in compared(results):
            sample = results.samples[name].get(line)
            if sample is None or sample.calls is None or not sample.cpu:
                continue
            cpu = [sample.cpu_median(side) / line.work * 1e6 for side in (0, 1)]
            calls = [f"{count / line.work:.1f}" for count in sample.calls]
            rows.append([line.title, name, *(f"{us:.1f}" for us in (*cpu, sum(cpu))), *calls])
    return rows


def markdown(table: Table) -> str:
    head, *rows = table
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def groups(results: Results) -> list[str]:
    """The groups of lines, in the order in which they were measured."""
    return list(dict.fromkeys(line.group for line in results.lines()))


def titled(results: Results) -> list[tuple[str, Table]]:
    """All tables with their headings."""
    found = [("Goals", goals(results))]
    found += [(f"{line.title}, by readers", reference(results, line)) for line in reference_lines(results)]
    found += [(group.capitalize(), comparison(results, group)) for group in groups(results)]
    found.append(("Costs of one file or request", costs(results)))
    return [(title, table) for title, table in found if len(table) > 1]


def caption(results: Results) -> str:
    """What the tables are of."""
    fewer = {
        name: rounds
        for name in results.samples
        if (rounds := max(len(sample.seconds) for sample in results.samples[name].values())) < results.rounds
    }
    but = "".join(f" ({name}: {rounds})" for name, rounds in fewer.items())
    return f"Medians of {results.rounds} rounds{but}; {results.machine}; size {results.size}."


def everything(results: Results, plots: Sequence[Path] = ()) -> str:
    """All tables as they stand in the README, and links to pictures."""
    parts = [caption(results)]
    for title, table in titled(results):
        parts += [f"### {title}", markdown(table)]
    parts += [f"![{path.stem.replace('-', ' ')}]({path.parent.name}/{path.name})" for path in plots]
    return "\n\n".join(parts)


def show(console: Console, results: Results) -> None:
    """Prints all tables."""
    for title, table in titled(results):
        drawn = rich.table.Table(*table[0], title=title)
        for column in drawn.columns[1:]:
            column.justify = "right"
        drawn.columns[0].no_wrap = True
        for row in table[1:]:
            drawn.add_row(*row)
        console.print(drawn)
    console.print(caption(results))


def put_into(readme: Path, text: str) -> None:
    """Replaces what stands between the marks of a page.  Raises ValueError where they are missing."""
    page = readme.read_text()
    if BEGIN not in page or END not in page:
        raise ValueError(f"{readme} has not both lines {BEGIN} and {END}")
    before, rest = page.split(BEGIN, 1)
    readme.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END, 1)[1]}")
