"""podman with a storage of its own, and everything that it starts with an end."""

import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

LIMITS = ("--ulimit", "nofile=16384:16384", "--ulimit", "nproc=8192:8192")
"""Within the hard limits of a machine that is itself confined: podman asks for more by default, and then fails."""


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    def __str__(self) -> str:
        return f"exit code {self.code}\n--- stdout:\n{self.stdout[-6000:]}\n--- stderr:\n{self.stderr[-3000:]}"


class Podman:
    """podman with images in `storage`, which is kept, and its state in `state`, which is not.

    runc, because crun wants cgroups as systemd makes them; --network=host, because no network needs to be made then.
    """

    def __init__(self, storage: Path, state: Path) -> None:
        self._command = [
            "podman", "--root", str(storage), "--runroot", str(state / "run"), "--tmpdir", str(state / "tmp"),
            "--runtime", "runc", "--cgroup-manager", "cgroupfs", "--events-backend", "none",
        ]  # fmt: skip
        self._number = 0

    def __call__(self, *arguments: str | Path, seconds: float = 120) -> Ran:
        """Run `podman ARGUMENTS` to its end; at `seconds` it is killed with all that it started."""
        process = self.start(*arguments)
        try:
            stdout, stderr = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            stdout, stderr = process.communicate()
            stderr += f"\nended after {seconds:.0f} s"
        return Ran(process.returncode, stdout, stderr)

    def start(self, *arguments: str | Path) -> "subprocess.Popen[str]":
        """Start `podman ARGUMENTS`."""
        return subprocess.Popen(
            [*self._command, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )

    def ok(self, *arguments: str | Path, seconds: float = 120) -> str:
        """Run `podman ARGUMENTS`, which must succeed, and return what it printed."""
        ran = self(*arguments, seconds=seconds)
        assert ran.code == 0, f"podman {' '.join(map(str, arguments))}: {ran}"
        return ran.stdout

    def new_name(self) -> str:
        """A name for a container."""
        self._number += 1
        return f"fusepipe-{os.getpid()}-{self._number}"

    def clean_up(self) -> list[str]:
        """Remove every container and volume, and say which there were."""
        left = self.ok("ps", "--all", "--quiet").split()
        for container in left:
            self("rm", "--force", "--volumes", "--time", "5", container)
        volumes = self.ok("volume", "ls", "--quiet").split()
        for volume in volumes:
            self("volume", "rm", "--force", volume)
        return [*(f"container {name}" for name in left), *(f"volume {name}" for name in volumes)]
