"""A short run of each target under libFuzzer, which follows what the inputs reach."""

import re
from pathlib import Path

import pytest

from tests.fuzz import running
from tests.fuzz.running import TARGETS, Fuzzer

SECONDS = 20
LEAST = {"native": 10_000, "requests": 30, "wire": 500}
"""Inputs that even a slow machine manages in that time."""


@pytest.mark.timeout(400)
@pytest.mark.parametrize("target", TARGETS)
def test_nothing_but_what_may_come(target: str, tmp_path: Path) -> None:
    done = Fuzzer(target, tmp_path).fuzz(SECONDS, 1, tmp_path, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-5000:]
    ran = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    assert ran is not None and int(ran[1]) > LEAST[target]
    assert "NEW " in done.stderr, "nothing that was tried led anywhere"


@pytest.mark.parametrize("target", TARGETS)
def test_the_kept_corpus_is_well(target: str) -> None:
    lines = running.kept(target).read_text().splitlines()
    assert lines == sorted(set(lines), key=lambda line: (len(line), line))
    assert all(len(data) <= running.LONGEST[target] for data in running.inputs(target))
