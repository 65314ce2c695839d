"""The workload at its small size, through both ways to mount, one natively."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mount.harness import REPOSITORY
from tests.workload.script import JOBS, NEEDED


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("target", "native"), [("--bind", "auto"), ("--serve", "off")])
def test_small_workload(fuse: None, target: str, native: str) -> None:
    # pip builds a package, which takes half of the time: once is enough at this size.
    jobs = [job for job in JOBS if job != "pip" or target == "--bind"]
    if os.geteuid() != 0:
        pytest.skip("needs root: owners and device nodes are part of it")
    if missing := [name for name in NEEDED.values() if not any(Path(d, name).exists() for d in os.get_exec_path())]:
        pytest.skip(f"these programs are missing: {', '.join(missing)}")
    arguments = ["--size", "small", "--only", ",".join(jobs), "--native", native, target]
    done = subprocess.run(
        [sys.executable, "-m", "tests.workload", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=380,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["passed"]
    assert set(summary["jobs"]) == set(jobs)
