"""Fixtures for tests of tables and handlers."""

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fusepipe import log
from tests.server.processes import Sessions
from tests.server.volume import Volume, in_thread
from tests.support import world

SYS_SETRESUID = 117  # of x86-64
NOBODY = 65534


@pytest.fixture
def lines(capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """What has been logged since the last call, warnings and information too."""
    before = log.current()
    log.configure("info")
    yield lambda: capfd.readouterr().err
    log.apply(before)


def _all_sessions() -> set[int]:
    return {process.pid for process in world.processes() if "session_process" in process.command}


@pytest.fixture
def sessions() -> Sessions:
    """Finds those of this test only: the mounts that several tests share have theirs, which nobody else may touch."""
    others = _all_sessions()
    return lambda: sorted(_all_sessions() - others)


@pytest.fixture
def memory() -> Iterator[Path]:
    """An empty directory on a tmpfs, where many files are made quickly."""
    path = Path(tempfile.mkdtemp(prefix="fusepipe-", dir="/dev/shm"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@pytest.fixture(params=["open_path", "memory"], ids=["disk", "tmpfs"])
def directory(request: pytest.FixtureRequest) -> Path:
    """An empty directory that others can reach, on the disk's filesystem and on a tmpfs."""
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture
def serve() -> Iterator[Callable[..., Volume]]:
    """Makes volumes, which end with the test."""
    with ExitStack() as stack:

        def make(path: Path, **options: Any) -> Volume:
            return stack.enter_context(Volume(path, **options))

        yield make


@pytest.fixture
def volume(directory: Path, serve: Callable[..., Volume]) -> Volume:
    """A volume over an empty directory."""
    return serve(directory)


@pytest.fixture
def disk(open_path: Path, serve: Callable[..., Volume]) -> Volume:
    """The same, on the disk's filesystem only."""
    return serve(open_path)


@pytest.fixture
def as_user() -> Callable[[Callable[[], None]], None]:
    """Runs a function in a thread whose effective user is nobody, with no capability, as a server may be."""
    libc = ctypes.CDLL(None, use_errno=True)

    def run(function: Callable[[], None]) -> None:
        def change() -> None:
            # The bare call: glibc's would change every thread.
            if libc.syscall(SYS_SETRESUID, -1, NOBODY, -1):
                raise OSError(ctypes.get_errno(), "setresuid")
            function()

        in_thread(change)

    return run


@pytest.fixture
def mounted() -> Iterator[Callable[[str, Path], None]]:
    """Mounts a filesystem that needs no device; everything is unmounted with the test."""
    with ExitStack() as stack:

        def mount(kind: str, path: Path) -> None:
            subprocess.run(["mount", "-t", kind, "fusepipe-test", path], check=True)
            stack.callback(lambda: subprocess.run(["umount", "-l", path], check=True))

        yield mount
