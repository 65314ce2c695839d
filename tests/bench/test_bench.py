"""The benchmarks run: every scenario at a tiny size, and tables and plots of it.  Times say nothing here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench import goals, tables
from bench.load import Tools
from bench.places import HOST
from bench.results import Line, Results
from bench.scenarios import TINY, Scenarios
from tests.support import world

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE = 400  # seconds; on a busy machine


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs the command of the benchmarks."""
    return subprocess.run(
        [sys.executable, "-m", "bench", *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )


@pytest.mark.timeout(PATIENCE + 60)
def test_every_scenario_runs(tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    options = ("--size", "tiny", "--readers", "2", "--systems", "fusepipe,bindfs", "--no-costs", "--json", output)
    done = bench("run", *options, "--directory", tmp_path)
    assert done.returncode == 0, done.stderr
    results = Results.read(output)
    assert list(results.samples) == [HOST, "fusepipe", "bindfs", "fusepipe 2"]
    lines = results.lines([HOST])
    assert {line.group for line in lines} == {"small files", "names", "trees", "large files"}
    assert results.lines(["fusepipe"]) == results.lines(["bindfs"]) == lines
    assert results.lines(["fusepipe 2"]) == tables.reference_lines(results)
    for system in results.samples:
        for line in results.lines([system]):
            assert len(results.samples[system][line].seconds) == 1, (system, line)
    assert "Small files" in done.stdout
    assert os.listdir(tmp_path) == ["figures.json"]

    for kind in ("png", "svg"):
        drawn = bench("report", output, "--plots", tmp_path / kind, "--format", kind)
        assert drawn.returncode == 0, drawn.stderr
        assert drawn.stdout.count("### ") == 8
        assert len(list((tmp_path / kind).glob(f"*.{kind}"))) == 5


@pytest.mark.timeout(PATIENCE + 60)
def test_peers_and_costs(tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    options = ("--size", "tiny", "--readers", "", "--only", "16 threads, warm", "--json", output)
    done = bench("run", *options, "--directory", tmp_path)
    assert done.returncode == 0, done.stderr
    results = Results.read(output)
    assert {HOST, "fusepipe", "bindfs", "mergerfs", "sshfs"} <= set(results.samples)
    (line,) = (line for line in results.lines() if line.title == "read 4 KiB files, 16 threads, warm")
    added = bench("run", *options[:-2], "--systems", "bindfs", "--directory", tmp_path, "--json", output, "--add")
    assert added.returncode == 0, added.stderr
    rounds = {name: len(found[line].seconds) for name, found in Results.read(output).samples.items()}
    assert (rounds[HOST], rounds["bindfs"], rounds["mergerfs"]) == (2, 2, 1)
    assert "Medians of 2 rounds (fusepipe: 1) (fusepipe --native off: 1)" in added.stdout
    for name in ("fusepipe", "sshfs"):
        (client, server), *_ = results.samples[name][line].cpu
        assert client > 0
        assert server > 0


@pytest.mark.timeout(PATIENCE + 60)
def test_profiles(tmp_path: Path) -> None:
    options = ("--size", "tiny", "--only", "read 4 KiB", "--directory", tmp_path)
    done = bench("profile", *options)
    assert done.returncode == 0, done.stderr
    for system in ("fusepipe", "bindfs"):
        assert f"read 4 KiB files, cold: {system}: " in done.stdout
    assert "requests: LOOKUP 1" in done.stdout
    assert "client: CPU" in done.stdout and "server: CPU" in done.stdout
    assert os.listdir(tmp_path) == []
    assert not [name for name in os.listdir("/sys/kernel/tracing/instances") if name.startswith("fusepipe-bench")]


@pytest.mark.timeout(PATIENCE + 60)
def test_being_stopped_leaves_nothing_behind(tmp_path: Path) -> None:
    """Mounts, processes and files are gone; what is left anywhere else fails every test."""
    options = ("--size", "tiny", "--rounds", "1000", "--readers", "", "--systems", "fusepipe", "--directory", tmp_path)
    with subprocess.Popen([sys.executable, "-m", "bench", "run", *map(str, options)], cwd=REPOSITORY) as process:
        try:
            assert world.wait_until(lambda: any(tmp_path.glob("bench-*/measured/fusepipe/source/*")), PATIENCE)
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 128 + signal.SIGTERM
        finally:
            process.kill()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--systems", "ntfs"), "no such system: ntfs"),
        (("--readers", "0"), "readers are 1 to 256"),
        (("--readers", "many"), "no comma list of numbers"),
    ],
)
def test_wrong_options_are_explained(options: tuple[str, ...], said: str) -> None:
    done = bench("run", *options)
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_rounds_are_added_to_what_fits_only(tmp_path: Path) -> None:
    other = tmp_path / "figures.json"
    figures().write(other)
    (tmp_path / "none.json").write_text("{}")
    for options, said in (
        ((), "--add needs --json"),
        (("--json", tmp_path / "none.json"), "cannot be read"),
        (("--json", other), "has figures of a machine"),
    ):
        done = bench("run", "--add", *options)
        assert done.returncode != 0
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def figures() -> Results:
    """Some results, by hand: seconds are as easy to compare as they can be."""
    results = Results("a machine", "full", 3)
    read = Line("small files", "read 4 KiB files, 64 threads, cold", "cold", 64, 100)
    times = {HOST: 1.0, "fusepipe": 4.0, "bindfs": 2.0, "mergerfs": 5.0, "fusepipe 1": 16.0, "fusepipe 256": 3.0}
    for name, seconds in times.items():
        for factor in (1.0, 0.5, 3.0):
            results.add(name, read, seconds * factor, (seconds / 1000, seconds / 2000))
    results.sample("fusepipe", read).calls = (300, 200)
    return results


def test_the_reference_table() -> None:
    results = figures()
    (line,) = tables.reference_lines(results)
    assert tables.reference(results, line)[1:] == [
        [HOST, "1000.0", "1.00", ""],
        ["--readers 1", "16000.0", "16.00", "1.00"],
        ["--readers 64", "4000.0", "4.00", "4.00"],
        ["--readers 256", "3000.0", "3.00", "5.33"],
    ]


def test_the_comparison_is_with_the_better_peer() -> None:
    head, row = tables.comparison(figures(), "small files")
    assert head[1:5] == ["host, ms", "fusepipe, ms", "bindfs, ms", "mergerfs, ms"]
    assert row[1:] == ["1000.0", "4000.0", "2000.0", "5000.0", "4.00", "2.00"]


def test_goals_are_reached_or_not() -> None:
    results = figures()
    rows = tables.goals(results)[1:]
    assert rows == [["read 4 KiB files, 64 threads, cold: times bindfs or mergerfs", "1", "2.00", "no"]]
    warm = Line("small files", "read 4 KiB files, 16 threads, warm", "warm", 16, 100)
    for name, seconds in {"fusepipe": 1.0, "fusepipe --native off": 6.0, "bindfs": 2.0, "sshfs": 0.5}.items():
        results.add(name, warm, seconds, (seconds / 1000, seconds / 1000))
    assert tables.goals(results)[2:] == [
        ["read 4 KiB files, 16 threads, warm: times bindfs or mergerfs", "1", "0.50", "yes"],
        ["read 4 KiB files, 16 threads, warm: CPU of fusepipe for one file", "36 us", "20.00 us", "yes"],
        [
            "read 4 KiB files, 16 threads, warm: CPU of fusepipe --native off for one request",
            "60 us",
            "60.00 us",
            "yes",
        ],
        [
            "times sshfs, the most of all 1 scenarios (read 4 KiB files, 16 threads, warm); 1 are above 1",
            "1",
            "2.00",
            "no",
        ],
    ]


@pytest.mark.parametrize("goal", goals.GOALS, ids=lambda goal: goal.title)
def test_every_goal_is_one_of_a_measure(goal: goals.Goal, titles: set[str]) -> None:
    assert goal.title in titles


@pytest.fixture(scope="module")
def titles(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Of all measures."""
    folder = tmp_path_factory.mktemp("scenarios")
    return {measure.title for measure in Scenarios(Tools.build(folder), TINY, folder).all()}


def test_costs_are_of_one_file() -> None:
    _, row = tables.costs(figures())
    assert row[1:] == ["fusepipe", "40.0", "20.0", "60.0", "3.0", "2.0"]


def test_results_survive_as_json(tmp_path: Path) -> None:
    results = figures()
    results.write(tmp_path / "figures.json")
    assert Results.read(tmp_path / "figures.json") == results
    assert json.loads((tmp_path / "figures.json").read_text())["machine"] == "a machine"


def test_tables_take_the_place_of_the_last_ones(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    for _ in range(2):
        tables.put_into(page, "new")
        assert page.read_text() == f"before\n{tables.BEGIN}\n\nnew\n\n{tables.END}\nafter\n"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="has not both lines"):
        tables.put_into(page, "new")


def test_this_page_has_the_marks() -> None:
    text = (REPOSITORY / "bench" / "README.md").read_text()
    assert tables.BEGIN in text
    assert tables.END in text
