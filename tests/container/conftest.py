"""The image, built once for all tests, from a base system that debootstrap makes.

Base system and image layers are kept in .cache/container/ (about 2 GB; remove it at will), so that only the first run
is long.  Nothing else is left.
"""

import faulthandler
import fcntl
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.container.debian import base_archive
from tests.container.pip import directory_for_a_build
from tests.container.podman import LIMITS, Podman, Ran
from tests.support import world
from tests.support.program import REPOSITORY

CACHE = REPOSITORY / ".cache" / "container"
BASE, IMAGE = "localhost/fusepipe-base", "localhost/fusepipe"


@dataclass(frozen=True)
class Image:
    """The image, and ways to run it."""

    podman: Podman
    state: Path

    def options(self, *more: str | Path) -> list[str | Path]:
        """The options of `podman run` that every container here has."""
        return ["run", "--rm", "--network=host", "--log-driver=none", *LIMITS, *more]

    def run(self, *arguments: str, options: tuple[str | Path, ...] = ("--privileged",), seconds: float = 180) -> Ran:
        """Run the image with a command and its arguments to the end."""
        name = self.podman.new_name()
        ran = self.podman(*self.options("--name", name, *options, IMAGE), *arguments, seconds=seconds)
        self.podman("rm", "--force", "--ignore", "--volumes", "--time", "5", name)
        return ran


@pytest.fixture(scope="session")
def image() -> Iterator[Image]:
    CACHE.mkdir(parents=True, exist_ok=True)
    # always the same for this cache, since podman notes it there; and short, since there are sockets in it
    state = Path(f"/run/fusepipe-{zlib.crc32(os.fsencode(CACHE)):08x}")
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            state.mkdir(mode=0o700, exist_ok=True)
            podman = Podman(CACHE / "storage", state)
            faulthandler.cancel_dump_traceback_later()  # a build takes minutes, and has an end of its own
            podman.clean_up()  # what a run that was killed has left
            _build(podman, state)
            yield Image(podman, state)
            left = podman.clean_up()
            assert not left, f"the tests leave behind: {', '.join(left)}"
        finally:
            world.end_mounts_below(CACHE)
            world.remove(state)


def _build(podman: Podman, state: Path) -> None:
    """Build the image, or find that it is the same as before."""
    archive = base_archive(CACHE)
    tag = f"{BASE}:{int(archive.stat().st_mtime)}"
    if podman("image", "exists", tag).code:
        podman("system", "prune", "--all", "--force", "--volumes", seconds=300)  # whatever was built on an older one
        podman.ok("import", archive, tag, seconds=300)
    settings = state / "pip"
    settings.mkdir(exist_ok=True)
    podman.ok(
        "build", "--isolation=chroot", "--network=host", *LIMITS, "--build-arg", f"BASE={tag}",
        *directory_for_a_build(settings), "--tag", IMAGE, REPOSITORY, seconds=1500,
    )  # fmt: skip
    podman("image", "prune", "--force")


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    """A built checkout in the layout of the upstream suite, with two files that pass."""
    (tmp_path / "pjdfstest").write_text("#!/bin/sh\necho usage >&2\nexit 1\n")
    (tmp_path / "pjdfstest").chmod(0o755)
    for name, lines in {
        "mkdir/00.t": "echo 1..2\nmkdir d && echo ok 1\n[ -d d ] && rmdir d && echo ok 2\n",
        "rename/00.t": "echo 1..1\ntouch a && mv a b && [ -e b ] && echo ok 1\n",
    }.items():
        path = tmp_path / "tests" / name
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/sh\n{lines}")
    return tmp_path
