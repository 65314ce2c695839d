"""Pictures of the results: how times scale with readers, and fusepipe beside the others."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib.figure import Figure  # it looks for a display unless told otherwise before

from bench.goals import BEST_OF
from bench.places import HOST
from bench.results import Results
from bench.tables import compared, groups, reference_lines, scaling


def draw(results: Results, folder: Path, kind: str) -> list[Path]:
    """Writes the pictures as files of a kind (svg or png) into `folder`, which is made; says which."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"scaling": _scaling(results)}
    for group in groups(results):
        figures[f"peers-{group.replace(' ', '-')}"] = _bars(results, group)
    paths = []
    for name, figure in figures.items():
        if figure is not None:
            paths.append(folder / f"{name}.{kind}")
            # without dates and random names two runs with the same figures give the same file
            figure.savefig(paths[-1], metadata={"Date": None} if kind == "svg" else None, bbox_inches="tight")
    return paths


def _scaling(results: Results) -> Figure | None:
    """Time over readers, both on a logarithmic scale, with the host as a level line."""
    lines, steps = reference_lines(results), scaling(results)
    if not lines or len(steps) < 2:
        return None
    figure = Figure(figsize=(7, 4.5))
    axes = figure.add_subplot()
    for line in lines:
        points = [(readers, seconds * 1000) for readers, name in steps if (seconds := results.median(name, line))]
        (drawn,) = axes.plot(*zip(*points, strict=True), marker="o", label=line.title)
        host = results.median(HOST, line)
        if host:
            axes.axhline(host * 1000, color=drawn.get_color(), linestyle=":", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([readers for readers, _ in steps], [str(readers) for readers, _ in steps])
    axes.set_xlabel("--readers")
    axes.set_ylabel("milliseconds (dotted: the host directory)")
    axes.set_title(f"{lines[0].work:,} files of 4 KiB, {lines[0].threads} threads")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return figure


def _bars(results: Results, group: str) -> Figure | None:
    """Each system's time as a multiple of the best of bindfs and mergerfs."""
    names = [name for name in compared(results) if name != HOST]
    lines = [line for line in results.lines(names) if line.group == group]
    bases = [results.best(BEST_OF, line) for line in lines]
    shown = [(line, base) for line, base in zip(lines, bases, strict=True) if base]
    if not shown:
        return None
    figure = Figure(figsize=(8, 1.2 + 0.16 * len(shown) * (len(names) + 1)))
    axes = figure.add_subplot()
    height = 0.8 / len(names)
    for index, name in enumerate(names):
        widths = [(results.median(name, line) or 0) / base for line, base in shown]
        axes.barh([row + index * height for row in range(len(shown))], widths, height, label=name)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks([row + 0.4 - height / 2 for row in range(len(shown))], [line.title for line, _ in shown])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("time, as a multiple of the better of bindfs and mergerfs (less is better)")
    axes.set_title(group.capitalize())
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
