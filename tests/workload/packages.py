"""A virtual environment on the mount, pyfuse3 installed into it by pip, and its import."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.workload.jobs import Context, check


def run(job: Context) -> dict[str, object]:
    """venv, pip install, import, pip check, and uninstall."""
    environment = job.work / "venv"
    python = environment / "bin" / "python"
    pip: list[str | Path]
    temporary = (job.work if job.size.build_on_mount else job.host) / "tmp"
    temporary.mkdir()
    if job.size.build_on_mount:
        job.run(sys.executable, "-m", "venv", environment)
        pip = [python, "-m", "pip"]
    else:
        job.run(sys.executable, "-m", "venv", "--without-pip", environment)
        pip = [sys.executable, "-m", "pip", "--python", python]
    job.run(*pip, "install", "--no-cache-dir", "pyfuse3", env={"TMPDIR": str(temporary)})
    version = job.run(python, "-c", "import pyfuse3, trio; print(pyfuse3.__version__)").strip()
    path = job.run(python, "-c", "import pyfuse3; print(pyfuse3.__file__)").strip()
    check(path.startswith(str(environment)), f"pyfuse3 was imported from {path}, not from the mount")
    job.run(*pip, "check")
    job.run(*pip, "uninstall", "-q", "-y", "pyfuse3")
    job.run(python, "-c", "import pyfuse3", accept=(1,))
    return {"version": version}
