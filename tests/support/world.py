"""The state of the machine that a test must leave as it found it: mounts, processes, file descriptors, temporary files.

`Before()` notes it, `Before.leaks()` says what is there now that was not, and `clean_up` takes that away so that the
next tests run.  Nothing here touches a path below a mount, which may hang: mounts are found in /proc/self/mountinfo and
ended by their connection and a lazy umount2(2).
"""

import contextlib
import ctypes
import gc
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
MNT_FORCE, MNT_DETACH = 1, 2
GRACE_SECONDS = 5.0
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Mount:
    """A line of /proc/self/mountinfo (proc_pid_mountinfo(5)): id, device numbers and mount point."""

    id: int
    major: int
    minor: int
    point: str
    kind: str


@dataclass(frozen=True)
class Process:
    """A descendant of this process.  `started` (clock ticks after boot) tells a number that is used again."""

    pid: int
    started: int
    command: str


@dataclass(frozen=True)
class Descriptor:
    """An open file descriptor of this process and what it leads to."""

    number: int
    target: str


def adopt_orphans() -> None:
    """Make orphaned descendants children of this process, so that none escapes the search: prctl(2)."""
    if _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def mounts() -> set[Mount]:
    """All mounts of this mount namespace."""
    found = set()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, right = line.split(" - ", 1)
        number, _parent, device, _root, point = left.split(" ")[:5]
        major, minor = device.split(":")
        point = point.encode("latin-1").decode("unicode_escape")
        found.add(Mount(int(number), int(major), int(minor), point, right.split(" ")[0]))
    return found


def mounts_below(folder: Path) -> set[Mount]:
    """The mounts at or below a folder."""
    prefix = str(folder)
    return {m for m in mounts() if m.point == prefix or m.point.startswith(prefix + "/")}


def processes() -> set[Process]:
    """All living descendants of this process; those that ended unwaited for are reaped on the way."""
    if not _has_children():
        return set()
    parents: dict[int, tuple[int, int, str, str]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{entry}/stat").read_text()
            name = stat[stat.index("(") + 1 : stat.rindex(")")]
            fields = stat[stat.rindex(")") + 2 :].split()
            parents[int(entry)] = (int(fields[1]), int(fields[19]), fields[0], name)
    me = os.getpid()
    found = set()
    for pid, (parent, started, state, name) in parents.items():
        if state in "ZX":
            if parent == me:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            continue
        above = parent
        while above not in (0, 1, me) and above in parents:
            above = parents[above][0]
        if above == me:
            found.add(Process(pid, started, _command(pid) or name))
    return found


def _has_children() -> bool:
    """Whether any thread of this process has a child; orphans count, since this process adopts them."""
    for listing in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            if listing.read_text():
                return True
    return False


def descriptors() -> set[Descriptor]:
    """The open file descriptors of this process."""
    found = set()
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{entry}")
            if target != f"/proc/{os.getpid()}/fd":
                found.add(Descriptor(int(entry), target))
    return found


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    return ""


@dataclass
class Leaks:
    """What is there that was not there before."""

    mounts: set[Mount]
    processes: set[Process]
    descriptors: set[Descriptor]
    files: set[str]

    def __bool__(self) -> bool:
        return bool(self.mounts or self.processes or self.descriptors or self.files)

    def __str__(self) -> str:
        lines = [f"mount at {m.point} ({m.kind}, device {m.major}:{m.minor})" for m in self.mounts]
        lines += [f"process {p.pid}: {p.command}" for p in self.processes]
        lines += [f"file descriptor {d.number} -> {d.target}" for d in self.descriptors]
        lines += [f"temporary file {name}" for name in self.files]
        return "\n".join(sorted(lines))


class Before:
    """The state of the world at one moment: mounts at or below `root` (those elsewhere are other people's), the
    processes and descriptors of this process, the entries of the folder `temporary`."""

    def __init__(self, root: Path, temporary: Path) -> None:
        self._root = root
        self._temporary = temporary
        self._mounts = mounts_below(root)
        self._processes = processes()
        self._descriptors = descriptors()
        self._files = set(os.listdir(temporary))

    def leaks(self, grace: float = GRACE_SECONDS) -> Leaks:
        """What came and stayed.  What is about to end gets `grace` seconds for it."""
        deadline = time.monotonic() + grace
        while (found := self._now()) and time.monotonic() < deadline:
            gc.collect()  # a descriptor in a reference cycle is open until then
            time.sleep(0.05)
        return found

    def _now(self) -> Leaks:
        # multiprocessing keeps its tracker of shared resources until the interpreter ends, by design
        running = {p for p in processes() - self._processes if "multiprocessing.resource_tracker" not in p.command}
        return Leaks(
            mounts_below(self._root) - self._mounts,
            running,
            descriptors() - self._descriptors,
            set(os.listdir(self._temporary)) - self._files,
        )


def clean_up(leaks: Leaks, temporary: Path) -> None:
    """Take away what a test left: mounts first (programs that wait in one then go on), then processes, then files."""
    for mount in sorted(leaks.mounts, key=lambda m: m.id, reverse=True):
        end_mount(mount)
    for process in leaks.processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    pids = {process.pid for process in leaks.processes}
    wait_until(lambda: not pids.intersection(p.pid for p in processes()))
    for descriptor in leaks.descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor.number)
    for name in leaks.files:
        remove(temporary / name)


def end_mount(mount: Mount) -> None:
    """End a mount that may hang: abort its FUSE connection, then umount2(2) with MNT_FORCE, then with MNT_DETACH."""
    if mount.kind.startswith("fuse"):
        with contextlib.suppress(OSError):
            Path(f"/sys/fs/fuse/connections/{mount.minor}/abort").write_text("1")
    point = os.fsencode(mount.point)
    if _libc.umount2(point, MNT_FORCE) != 0:
        _libc.umount2(point, MNT_DETACH)


def end_mounts_below(folder: Path) -> list[Mount]:
    """End every mount at or below `folder`, newest first, and say which."""
    below = sorted(mounts_below(folder), key=lambda m: m.id, reverse=True)
    for mount in below:
        end_mount(mount)
    return below


def remove(path: Path) -> None:
    """Remove a file or folder with whatever names and modes, never reaching through a mount."""
    end_mounts_below(path)
    subprocess.run(["rm", "-rf", "--one-file-system", "--", str(path)], check=True, timeout=120)


def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Wait until something holds; False if it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
