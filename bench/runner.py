"""Runs the measures: every one on all systems in turn, round after round, each round in another order."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.costs import can_count_calls, counted, cpu_seconds
from bench.places import Place, System, placed
from bench.profiles import Profile, Side, named_calls, observed, requests
from bench.results import Line, Results
from bench.scenarios import COLD, GUEST, WARM, Measure

Profiled = tuple[System, Measure, Profile]

Report = Callable[[str], None]
"""Told, before each run, what is measured now."""


class Runner:
    """Systems that are mounted, and what was prepared in them."""

    def __init__(self, results: Results, report: Report) -> None:
        self._results = results
        self._report = report
        self._prepared: set[tuple[str, str]] = set()
        self._settled: set[tuple[str, Measure]] = set()
        self._number = 0

    def run(
        self,
        plan: Sequence[tuple[Measure, Sequence[System]]],
        rounds: int,
        scratch: Path,
        after_round: Callable[[], None],
    ) -> None:
        """Mounts all systems of the plan below `scratch`, runs each measure on its systems, and unmounts.

        `after_round` is called when the results have another round.  Raises LoadError and OSError.
        """
        systems = list(dict.fromkeys(system for _, of_measure in plan for system in of_measure))
        with ExitStack() as stack:
            places = {system: stack.enter_context(placed(system, scratch)) for system in systems}
            for turn in range(rounds):
                for measure, of_measure in plan:
                    first = turn % len(of_measure)
                    for system in [*of_measure[first:], *of_measure[:first]]:
                        place = places[system]
                        self._report(f"round {turn + 1} of {rounds}: {measure.title}: {place.system.name}")
                        self._time(measure, place)
                self._results.rounds += 1
                after_round()
        self._prepared.clear()
        self._settled.clear()

    def count_calls(self, systems: Sequence[System], measures: Sequence[Measure], scratch: Path) -> None:
        """Counts the system calls of one more run of each measure, where that is possible."""
        if not can_count_calls():
            return
        for system in systems:
            with placed(system, scratch) as place:
                for measure in measures:
                    self._report(f"system calls: {measure.title}: {system.name}")
                    directory = self._directory(measure, place)
                    self._bring_about(measure, place, directory)
                    with counted(place.client) as client, counted(place.server) as server:
                        measure.run(directory)
                    self._results.sample(system.name, line_of(measure)).calls = (client.count, server.count)
        self._prepared.clear()

    def profile(self, systems: Sequence[System], measures: Sequence[Measure], scratch: Path) -> Iterator[Profiled]:
        """Where the time of each measure goes: two runs of each, the second one observed more closely, and slower."""
        for system in systems:
            with placed(system, scratch) as place:
                for measure in measures:
                    self._report(f"profile: {measure.title}: {system.name}")
                    yield system, measure, self._profile(measure, place)
        self._prepared.clear()

    def _profile(self, measure: Measure, place: Place) -> Profile:
        client, server = Side(place.client), Side(place.server)
        directory = self._directory(measure, place)
        if measure.settle:
            measure.run(directory)
        self._bring_about(measure, place, directory)
        with requests(place) as asked, observed(client), observed(server):
            seconds = measure.run(directory)
        directory = self._directory(measure, place)
        self._bring_about(measure, place, directory)
        with named_calls((client, server)):
            measure.run(directory)
        return Profile(seconds, asked, client, server)

    def _time(self, measure: Measure, place: Place) -> None:
        directory = self._directory(measure, place)
        if measure.settle and (place.system.name, measure) not in self._settled:
            measure.run(directory)
            self._settled.add((place.system.name, measure))
        self._bring_about(measure, place, directory)
        before = cpu_seconds(place.client), cpu_seconds(place.server)
        seconds = measure.run(directory)
        after = cpu_seconds(place.client), cpu_seconds(place.server)
        cpu = max(0.0, after[0] - before[0]), max(0.0, after[1] - before[1])
        self._results.add(place.system.name, line_of(measure), seconds, cpu)
        if measure.fresh:
            shutil.rmtree(place.source / directory.name)

    def _directory(self, measure: Measure, place: Place) -> Path:
        """The directory of a run, seen through the mount; its name was never used before where it is a new one."""
        name = measure.data
        if measure.fresh:
            self._number += 1
            name = f"{measure.data}-{self._number}"
        if (place.path.as_posix(), name) not in self._prepared:
            (place.source / name).mkdir()
            measure.prepare(place.source / name)
            self._prepared.add((place.path.as_posix(), name))
        return place.path / name

    @staticmethod
    def _bring_about(measure: Measure, place: Place, directory: Path) -> None:
        """The caches as the measure wants them."""
        if measure.state == COLD:
            os.sync()
            Path("/proc/sys/vm/drop_caches").write_text("3")
        elif measure.state == GUEST:
            place.forget()
        elif measure.state == WARM:
            measure.run(directory)


def line_of(measure: Measure) -> Line:
    """What is kept of a measure."""
    return Line(measure.group, measure.title, measure.state, measure.threads, measure.work)
