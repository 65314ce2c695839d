"""Filesystems below a volume that are full, over quota, read-only or failing, and mounts on top of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.faults import failingfs
from tests.mount import children, mounttable
from tests.mount.harness import Mount, Watchdog
from tests.support.program import REPOSITORY

WATCHDOG = 90.0

MountOn = Callable[..., Mount]


def run(*command: str | Path) -> None:
    """Run a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{command}: {done.stderr}"


@contextmanager
def loop_mounted(image: Path, path: Path, options: str = "loop") -> Iterator[Path]:
    """An image as a filesystem at `path`."""
    path.mkdir(exist_ok=True)
    run("mount", "-o", options, image, path)
    try:
        yield path
    finally:
        mounttable.umount(path)


def make_image(image: Path, mebibytes: int, *mkfs: str) -> Path:
    """A new image with a filesystem on it."""
    with image.open("wb") as file:
        file.truncate(mebibytes << 20)
    run(*mkfs, image)
    return image


@pytest.fixture(params=["off", "auto"])
def native(request: pytest.FixtureRequest) -> str:
    """How requests are answered."""
    return str(request.param)


@pytest.fixture(params=["ttl:1", "exclusive"])
def cache(request: pytest.FixtureRequest) -> str:
    """What the guest keeps."""
    return str(request.param)


@pytest.fixture
def mount_on(fuse: None, native: str, cache: str) -> Iterator[MountOn]:
    """mount_on(directory, *options): `bind` of it; ends with the test, and its log must be clean."""
    with ExitStack() as stack:

        def make(source: Path, *options: str, **more: object) -> Mount:
            mount = Mount("bind", source, options=("--native", native, "--cache", cache, *options), **more)  # type: ignore[arg-type]  # checked by the tests' use
            stack.enter_context(mount)
            stack.enter_context(Watchdog(mount, WATCHDOG))
            return mount

        yield make


class Failing:
    """The filesystem of failingfs.py."""

    def __init__(self, process: subprocess.Popen[str], path: Path) -> None:
        self.path = path
        self._process = process

    def fail(self, operation: str, number: int) -> None:
        """From now on every request of that operation fails with that errno."""
        self._say(f"fail {operation} {number}")

    def heal(self) -> None:
        """Nothing fails any more."""
        self._say("heal")

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        assert children.read_line(self._process) == "done"


@pytest.fixture
def failing(fuse: None, open_path: Path) -> Iterator[Failing]:
    """A filesystem that fails on command, with an empty folder."""
    path = open_path / "failing"
    path.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", failingfs.__name__, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    with process:
        try:
            assert children.read_line(process, 30) == "ready"
            yield Failing(process, path)
            assert process.stdin is not None
            process.stdin.write("end\n")
            process.stdin.flush()
            assert process.wait(30) == 0
        finally:
            process.kill()
