"""A short run of each target under libFuzzer, which follows what the inputs reach."""

import re
from pathlib import Path

import pytest

from tests.fuzz import running
from tests.fuzz.running import TARGETS, Fuzzer

SECONDS = {"native": 20, "requests": 40, "wire": 40}
"""How long each is given, once it has run what is kept."""

REACHED = {"native": 500, "requests": 350, "wire": 350}
"""Places in the code that what is kept leads to, at least: where there are fewer, the fuzzer does not see the code."""


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("target", TARGETS)
def test_nothing_but_what_may_come(target: str, tmp_path: Path) -> None:
    done = Fuzzer(target, tmp_path).fuzz(SECONDS[target], 1, tmp_path, capture_output=True, timeout=1000)
    found = {path.name: path.read_bytes().hex() for path in tmp_path.glob("*-*")}
    assert done.returncode == 0, f"{done.stderr[-5000:]}\ninputs, in hex: {found}"
    begun = re.search(r"INITED cov: (\d+)", done.stderr)
    assert begun is not None and int(begun[1]) > REACHED[target], done.stderr[-5000:]
    ran = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    assert ran is not None and int(ran[1]) > len(running.inputs(target))


@pytest.mark.parametrize("target", TARGETS)
def test_the_kept_corpus_is_well(target: str) -> None:
    lines = running.kept(target).read_text().splitlines()
    assert lines == sorted(set(lines), key=lambda line: (len(line), line))
    assert all(len(data) <= running.LONGEST[target] for data in running.inputs(target))
