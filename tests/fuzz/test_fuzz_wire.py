"""A short run of the fuzzer of the wire, always the same one."""

import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from .fuzz_wire import PARTS, corpus, loop, mutate, one

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("seed", range(4))
def test_mutated_vectors(seed: int) -> None:
    count, refused = loop(runs=2500, seconds=None, seed=seed)
    assert count == 2500
    assert 500 < refused < 2500, "both accepted and refused"


def test_every_part_is_reached() -> None:
    assert {data[0] for data in corpus()} == set(range(len(PARTS)))
    one(b"")


def test_a_seed_names_a_run() -> None:
    inputs = corpus()
    assert mutate(inputs[3], inputs, Random(5)) == mutate(inputs[3], inputs, Random(5))


def test_alone() -> None:
    done = subprocess.run(
        [sys.executable, "tests/fuzz/fuzz_wire.py", "--runs", "300", "--seed", "9"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith("300 inputs, ")
    single = subprocess.run(
        [sys.executable, "tests/fuzz/fuzz_wire.py", "--input", "02" + "93" * 3],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert single.returncode == 1
    assert "RemoteProtocolError" in single.stderr
