"""The sandbox of a session process: walls that it builds around itself before its first request.

docs/security.md says what each wall stops.  What is imported here is loaded in every session process.
"""

import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fusepipe import syscalls
from fusepipe.server.options import SandboxLevel

KEPT: Final = frozenset(
    {
        "chown",  # give files to others, as the guest's root may
        "dac_override",  # the guest's kernel has checked permissions
        "fowner",  # change modes and times of others' files
        "fsetid",  # keep set-group-id bits
        "linux_immutable",  # set the flags immutable and append-only
        "mknod",  # make device nodes, which cannot be opened here
        "setfcap",  # set the capabilities of files
        "setgid",  # create files as the caller
        "setuid",
        "sys_admin",  # extended attributes of trusted.* and security.*
    }
)
"""The capabilities that requests of a guest need."""

BY_HANDLE: Final = "dac_read_search"
"""And the one that opens inodes by their handles, where no broker does it."""

_ROOT: Final = "run as root, in a container with --cap-add SYS_ADMIN"
MOUNTS_REMEDY: Final = (
    f"{_ROOT}, and with --security-opt apparmor=unconfined where AppArmor confines it; the kernel must be 5.12 or newer"
)


@dataclass(frozen=True)
class Missing:
    """A wall that cannot be had: why, and what to do about it."""

    wall: str
    cause: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.wall}: {self.cause}"


@dataclass(frozen=True)
class Report:
    """What took hold, by the names of the walls, and what did not."""

    held: tuple[str, ...] = ()
    missing: tuple[Missing, ...] = ()


@dataclass
class Sandbox:
    """The volume's directory as it is seen inside, which the caller closes, and /proc/self/fd; -1: by its path."""

    root: int
    report: Report = Report()
    proc_fd: int = -1
    handles: bool = False
    """Whether there is the wall `handles`: inodes can be opened by handle by the session's broker alone."""


@dataclass(frozen=True)
class Prepared:
    """What only the launcher can do: filters for system calls, or why there are none; why there is no pid namespace.

    Causes are empty where all is well.
    """

    filter: bytes = b""
    filter_by_handle: bytes = b""
    """For who opens inodes by handle himself."""
    no_filter: str = ""
    no_processes: str = ""


def enter(root: int, prepared: Prepared, *, level: SandboxLevel, read_only: bool) -> Sandbox:
    """Build what walls can be had around this process, which must have no other thread.  Takes `root`.

    Where `level` is "require" the first that cannot be had is also the last that is tried.
    """
    sandbox = Sandbox(root=root)
    if level == "none":
        return sandbox
    _warm_up()

    def own_mounts() -> None:
        sandbox.proc_fd = syscalls.confine_to(root, read_only=read_only)
        os.close(root)
        sandbox.root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def no_handles() -> None:
        # The broker wants the mount; who has not the right anyway needs neither.
        if sandbox.proc_fd < 0 and BY_HANDLE in syscalls.facts().capabilities:
            raise OSError(0, "the volume has no mount of its own")
        sandbox.handles = True

    def few_capabilities() -> None:
        syscalls.keep_capabilities(KEPT if sandbox.handles else KEPT | {BY_HANDLE})

    def own_processes() -> None:
        if prepared.no_processes:
            raise OSError(0, prepared.no_processes)

    def filtered() -> None:
        if prepared.no_filter:
            raise OSError(0, prepared.no_filter)
        syscalls.filter_calls(prepared.filter if sandbox.handles else prepared.filter_by_handle)

    held: list[str] = []
    missing: list[Missing] = []
    walls: list[tuple[str, Callable[[], None], str]] = [
        ("processes", own_processes, _ROOT),
        ("mounts", own_mounts, MOUNTS_REMEDY),
        ("network", syscalls.leave_network, f"{_ROOT}; the kernel needs CONFIG_NET_NS and CONFIG_IPC_NS"),
        ("handles", no_handles, MOUNTS_REMEDY),
        ("capabilities", few_capabilities, "see capabilities(7)"),
        ("privileges", syscalls.renounce_privileges, "see prctl(2)"),
        ("calls", filtered, "install libseccomp2; the kernel needs CONFIG_SECCOMP_FILTER"),
    ]
    for name, build, remedy in walls:
        try:
            build()
        except OSError as error:
            missing.append(Missing(name, error.strerror or str(error), remedy))
            if level == "require":
                break
        else:
            held.append(name)
    sandbox.report = Report(tuple(held), tuple(missing))
    return sandbox


def _warm_up() -> None:
    """Have loaded now what Python loads when it is first used: files of the host are out of reach afterwards."""
    time.tzset()
    try:
        raise ValueError
    except ValueError as error:
        traceback.format_exception(error)
    "".encode("unicode_escape").decode("ascii", "backslashreplace")
