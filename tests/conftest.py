"""What holds for every test: a temporary folder of the run's own, and a world that is afterwards as it was before.

A test that leaves a mount, a process, an open file descriptor or a temporary file fails, and what it left is taken
away.  `program` runs fusepipe itself in a child process whose log must be clean.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.support import world
from tests.support.program import Programs

# The same examples each time: a failure is then the change's that is being tested.  `long` is for searching.
hypothesis.settings.register_profile("fusepipe", deadline=None, derandomize=True)
hypothesis.settings.register_profile("long", deadline=None, max_examples=5000, stateful_step_count=100)
hypothesis.settings.load_profile("fusepipe")

ROOT = pytest.StashKey[Path]()
WORLD = pytest.StashKey[world.Before]()


def pytest_configure(config: pytest.Config) -> None:
    root = Path(tempfile.mkdtemp(prefix="fusepipe-"))
    root.chmod(0o755)  # tests run programs as other users, who must be able to pass
    (root / "t").mkdir(mode=0o1777)
    (root / "t").chmod(0o1777)
    (root / "open").mkdir()
    config.stash[ROOT] = root
    os.environ["TMPDIR"] = str(root / "t")
    tempfile.tempdir = None
    config.option.basetemp = root / "pytest"


def pytest_sessionstart(session: pytest.Session) -> None:
    world.adopt_orphans()
    root = session.config.stash[ROOT]
    session.config.stash[WORLD] = world.Before(root, root / "t")


def pytest_sessionfinish(session: pytest.Session) -> None:
    root = session.config.stash[ROOT]
    if leaks := session.config.stash[WORLD].leaks():
        if reporter := session.config.pluginmanager.get_plugin("terminalreporter"):
            reporter.write_line(f"\nThe test run leaves behind:\n{leaks}", red=True)
        world.clean_up(leaks, root / "t")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_unconfigure(config: pytest.Config) -> None:
    if root := config.stash.get(ROOT, None):
        world.remove(root)
        os.environ.pop("TMPDIR", None)
        tempfile.tempdir = None


@pytest.fixture(autouse=True)
def _world_as_before(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> Iterator[None]:
    """Nothing that a test made outlives it.  Autouse, so it is set up first and torn down last."""
    folders = [request.getfixturevalue(name) for name in ("tmp_path", "open_path") if name in request.fixturenames]
    root = pytestconfig.stash[ROOT]
    before = world.Before(root, root / "t")
    yield
    leaks = before.leaks()
    if leaks:
        world.clean_up(leaks, root / "t")
    for folder in folders:
        world.remove(folder)
    if leaks:
        pytest.fail(f"the test leaves behind:\n{leaks}", pytrace=False)


@pytest.fixture
def open_path(pytestconfig: pytest.Config) -> Path:
    """Like tmp_path, in a place that other users can reach too."""
    path = Path(tempfile.mkdtemp(dir=pytestconfig.stash[ROOT] / "open"))
    path.chmod(0o755)
    return path


@pytest.fixture
def program(pytestconfig: pytest.Config) -> Iterator[Programs]:
    """Runs the command `fusepipe`: `program("bind", src, mnt)` starts one, `program.run(...)` waits for its end."""
    logs = Path(tempfile.mkdtemp(dir=pytestconfig.stash[ROOT] / "open"))
    programs = Programs(logs)
    try:
        yield programs
        programs.finish()
    finally:
        programs.kill()
        shutil.rmtree(logs)


@pytest.fixture
def fuse() -> None:
    """For tests that mount: skipped where FUSE cannot be used at all."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        pytest.skip(f"/dev/fuse cannot be opened here: {error.strerror}")
