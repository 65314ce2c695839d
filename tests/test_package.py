"""The wheel: what is in it, and that it works where there are no sources."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.program import REPOSITORY

NEEDED = ("fusepipe", "protocol", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of these sources, built from a copy so that nothing is left among them."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    sources.mkdir()
    for name in NEEDED:
        path = REPOSITORY / name
        if path.is_dir():
            shutil.copytree(path, sources / name, ignore=shutil.ignore_patterns("*.so", "__pycache__", "_*.c"))
        else:
            shutil.copy(path, sources)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*command, "--wheel-dir", folder, sources], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the wheel's contents, as an installer lays them out."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with the wheel and without the sources."""
    return subprocess.run(
        [sys.executable, "-P", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"},
    )


def test_contents(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"fusepipe"}
    assert "fusepipe/py.typed" in names
    modules = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "fusepipe").rglob("*.py")}
    assert modules <= set(names)
    for compiled in ("fusepipe/syscalls/_syscalls.", "fusepipe/device/_device."):
        assert [name for name in names if name.startswith(compiled) and name.endswith(".so")]
    assert not [name for name in names if name.endswith((".c", ".h"))]


def test_metadata(installed: Path) -> None:
    [text] = [path.read_text() for path in installed.glob("*.dist-info/METADATA")]
    assert "\nRequires-Python: >=3.11\n" in text
    for minor in (11, 12, 13, 14):
        assert f"\nClassifier: Programming Language :: Python :: 3.{minor}\n" in text
    assert "\nLicense-Expression: MIT\n" in text or "\nLicense: MIT\n" in text
    assert [*installed.glob("*.dist-info/**/LICENSE")]


def test_it_runs_without_the_sources(installed: Path) -> None:
    where = run(installed, "-c", "import fusepipe.syscalls._syscalls as a, fusepipe.device._device as b; print(a, b)")
    assert where.returncode == 0, where.stderr
    assert where.stdout.count(str(installed)) == 2
    done = run(installed, "-m", "fusepipe", "version", "--format", "json")
    assert json.loads(done.stdout)["fusepipe"] != "0+unknown"


@pytest.mark.usefixtures("fuse")
def test_it_mounts(installed: Path) -> None:
    done = run(installed, "-m", "fusepipe", "doctor", "--format", "json")
    trial = next(finding for finding in json.loads(done.stdout) if finding["name"] == "trial mount")
    assert trial["status"] == "ok", done.stdout
