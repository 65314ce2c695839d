"""Many jobs of the suite at once on one mount, again and again, and what the mount holds afterwards.

    python -m tests.pjdfstest.parallel --target bind --jobs 85 --repeat 3

The cases are dealt out to the jobs, each a process with its own helper processes.  Before the first and after each
repetition the kernel is told to forget the mount's names; then the session must know as many inodes and handles and
have as many descriptors open as at the beginning, and its memory must not grow from one repetition to the next.
Arguments that are not known go to pytest.  The exit status is 0 if all was well.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.mount import children, mounttable

from .harness.targets import Wanted, default_command, open_target

SETTLE_SECONDS = 60.0
GROWTH = 1.25
"""How much memory the last repetition may leave, as a multiple of what the first left: allocators keep some."""
_SUITE = Path(__file__).parent
_STATISTICS = re.compile(r"statistics of a session.* inodes=(?P<inodes>\d+) handles=(?P<handles>\d+) .*\n")


@dataclass(frozen=True)
class Held:
    """What the processes of a mount hold at one moment."""

    inodes: int
    handles: int
    session_fds: int
    client_fds: int
    session_mib: float
    client_mib: float

    def numbers(self) -> tuple[int, ...]:
        """What must be as before; memory is judged apart."""
        return self.inodes, self.handles, self.session_fds, self.client_fds

    def __str__(self) -> str:
        return (
            f"{self.inodes} inodes, {self.handles} handles, {self.session_fds} fds and {self.session_mib:.1f} MiB"
            f" in the session, {self.client_fds} fds and {self.client_mib:.1f} MiB in the client"
        )


class Watched:
    """One mount, and the processes behind it."""

    def __init__(self, path: str, running: Sequence[int], log: Path) -> None:
        self._path = Path(path)
        self._log = log
        self._client = running[-1]  # `serve` starts before `mount`; `bind` is alone
        (self._session,) = [pid for started in running for pid in children.sessions_below(started)]

    def held(self) -> Held:
        """After the kernel has forgotten all names that nobody uses."""
        mounttable.drop_dentries(self._path)
        inodes, handles = self._statistics()
        return Held(
            inodes,
            handles,
            len(os.listdir(f"/proc/{self._session}/fd")),
            len(os.listdir(f"/proc/{self._client}/fd")),
            _mebibytes(self._session),
            _mebibytes(self._client),
        )

    def settled(self, like: Held) -> Held:
        """The same, as soon as the numbers are those of `like`, else after SETTLE_SECONDS."""
        end = time.monotonic() + SETTLE_SECONDS
        while (now := self.held()).numbers() != like.numbers() and time.monotonic() < end:
            time.sleep(0.5)
        return now

    def _statistics(self) -> tuple[int, int]:
        before = self._log.stat().st_size
        os.kill(self._session, signal.SIGUSR2)
        end = time.monotonic() + SETTLE_SECONDS
        while not (found := _STATISTICS.search(self._log.read_text()[before:])):
            if time.monotonic() > end:
                raise TimeoutError("the session does not say what it holds")
            time.sleep(0.02)
        return int(found["inodes"]), int(found["handles"])


def _mebibytes(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def run(target: str, jobs: int, repeat: int, arguments: Sequence[str] = ()) -> list[str]:
    """Do it, and say on standard output what is seen.  Returns what was wrong; nothing is best."""
    problems: list[str] = []
    with ExitStack() as stack:
        log = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="posix-parallel-"))) / "log"
        log.touch()
        logging = ("--log-level", "info", "--log-file", str(log))
        opened = stack.enter_context(open_target(Wanted.parse(target), None, default_command(), (), logging))
        assert opened.mounter is not None and opened.behind is not None, f"{target} is no mount of fusepipe"
        watched = Watched(opened.path, opened.mounter.running, log)
        begun = watched.held()
        print(f"at the beginning: {begun}", flush=True)
        first = begun
        for number in range(1, repeat + 1):
            started = time.monotonic()
            status = _suite(opened.path, opened.behind, jobs, arguments)
            seconds = time.monotonic() - started
            now = watched.settled(begun)
            print(f"after repetition {number} ({seconds:.0f} s): {now}", flush=True)
            if status:
                problems.append(f"repetition {number}: pytest ended with {status}")
            if now.numbers() != begun.numbers():
                problems.append(f"repetition {number}: there are {now}; at the beginning: {begun}")
            if number == 1:
                first = now
            for name, was, became in (
                ("session", first.session_mib, now.session_mib),
                ("client", first.client_mib, now.client_mib),
            ):
                if became > was * GROWTH:
                    problems.append(f"repetition {number}: the {name} grew from {was:.1f} to {became:.1f} MiB")
        complaints = [line for line in log.read_text().splitlines() if re.match(r"\S+Z (warning|error) ", line)]
        problems += [f"logged: {line}" for line in complaints]
    return problems


def _suite(path: str, behind: str, jobs: int, arguments: Sequence[str]) -> int:
    patience = 60 + 10 * jobs
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--timeout={3 * patience}"]
    options = [f"--posix-target={path}", f"--posix-source={behind}", f"--posix-jobs={jobs}"]
    selected = arguments or [str(_SUITE)]
    done = subprocess.run(
        [*command, *options, f"--posix-patience={patience}", *selected], cwd=_SUITE.parents[1], check=False
    )
    return done.returncode


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="bind", help="a mount as --posix-target names them (default: bind)")
    parser.add_argument("--jobs", type=int, default=85, help="how many processes (default: 85)")
    parser.add_argument("--repeat", type=int, default=3, help="how often (default: 3)")
    options, arguments = parser.parse_known_args()
    problems = run(options.target, options.jobs, options.repeat, arguments)
    for problem in problems:
        print(f"parallel: {problem}", file=sys.stderr)
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
