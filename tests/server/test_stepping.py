"""A session process that is killed at every store that it makes to its tables (stepping.py)."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.stepping import SCENARIOS
from tests.support.program import REPOSITORY

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="opening by file handle needs CAP_DAC_READ_SEARCH"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="stores are counted by the processor's single step"),
]

LEAST = 3
"""Stores that any request makes: it runs, it does something, it is done."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stepping.c, compiled."""
    made = tmp_path_factory.mktemp("stepping") / "stepping.so"
    source = Path(__file__).with_name("stepping.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", made, source], check=True, timeout=60)
    return made


@pytest.mark.timeout(300)
@pytest.mark.parametrize("scenario", [*SCENARIOS, "secrets"])
def test_killed_at_every_store(library: Path, tmp_path: Path, scenario: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.server.stepping", library, tmp_path, scenario],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert int(done.stdout) >= LEAST
    print(f"{scenario}: {done.stdout.strip()} stores", file=sys.stderr)
