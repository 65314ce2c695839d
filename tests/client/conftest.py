"""Mounts in child processes, whose world is clean afterwards."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import world

REPOSITORY = Path(__file__).parents[2]


class Mounted:
    """A child process that serves a mount of a volume in memory."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self.path = folder / "mnt"
        with contextlib.suppress(FileExistsError):  # of a mount that is dead nothing more can be asked
            os.mkdir(self.path)
        self._errors = folder / "stderr"
        with self._errors.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.client.child", str(self.path), json.dumps(options)],
                cwd=REPOSITORY,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self._received = b""

    def heard(self, seconds: float = 15) -> Any:
        """The next line that the child says."""
        assert self.process.stdout is not None
        fd, deadline = self.process.stdout.fileno(), time.monotonic() + seconds
        while b"\n" not in self._received:
            if not select.select([fd], [], [], max(0, deadline - time.monotonic()))[0]:
                raise AssertionError(f"the child said nothing for {seconds} s: {self.log}")
            some = os.read(fd, 1 << 20)
            if not some:
                raise AssertionError(f"the child has ended: {self.log}")
            self._received += some
        line, self._received = self._received.split(b"\n", 1)
        return json.loads(line)

    def __call__(self, command: str, *arguments: Any) -> Any:
        """Gives a command and returns its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([command, *arguments]).encode() + b"\n")
        self.process.stdin.flush()
        return self.heard()[0]

    def eventually(self, condition: Callable[[Any], bool], seconds: float = 10) -> Any:
        """Waits until `stats` meet a condition, and returns them."""
        deadline = time.monotonic() + seconds
        while not condition(stats := self("stats")):
            assert time.monotonic() < deadline, stats
            time.sleep(0.02)
        return stats

    @property
    def log(self) -> str:
        """What the child wrote to its log."""
        return self._errors.read_text()

    def unmount(self) -> None:
        """An ordinary umount, after which the child ends."""
        subprocess.run(["umount", self.path], check=True, timeout=20)
        assert self.heard() == ["UNMOUNTED"]
        assert self.process.wait(10) == 0

    def terminate(self) -> None:
        """SIGTERM, upon which the child unmounts and ends."""
        self.process.send_signal(signal.SIGTERM)
        assert self.heard() == ["CANCELLED"]
        assert self.process.wait(10) == 0

    def finish(self) -> None:
        """Takes away whatever is left."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        for mount in world.mounts_below(self.path):
            world.end_mount(mount)


@pytest.fixture
def mounted(fuse: None, tmp_path: Path) -> Iterator[Callable[..., Mounted]]:
    """Mounts, with these options, and waits until the mount is ready."""
    if os.geteuid() != 0:
        pytest.skip("these tests mount as root")
    children: list[Mounted] = []

    def start(*, ready: bool = True, **options: Any) -> Mounted:
        child = Mounted(tmp_path, options)
        children.append(child)
        if ready:
            assert child.heard() == ["ready"]
        return child

    yield start
    for child in children:
        child.finish()
