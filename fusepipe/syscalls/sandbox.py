"""The typed face of sandbox.c: each function builds one wall around this process, for good.  They raise OSError."""

from collections.abc import Iterable

from ._syscalls import ffi, lib
from .check import check
from .process import CAPABILITIES


def part_children() -> None:
    """The processes that this thread starts from now on are in a pid namespace of their own."""
    check(lib.sandbox_part_children())


def confine_to(root: int, *, read_only: bool) -> int:
    """A mount namespace in which there is this directory alone, with what is mounted below it.

    Returns a descriptor of /proc/self/fd, which is the working directory from then on.
    """
    proc_fd = ffi.new("int *")
    check(lib.sandbox_volume(root, read_only, proc_fd))
    return int(proc_fd[0])


def leave_network() -> None:
    """A network namespace of its own, without any device, and an IPC namespace."""
    check(lib.sandbox_network())


def keep_capabilities(names: Iterable[str]) -> None:
    """Give up every capability but these of CAPABILITIES."""
    numbers = {name: number for number, name in CAPABILITIES.items()}
    check(lib.sandbox_capabilities(sum(1 << numbers[name] for name in names)))


def renounce_privileges() -> None:
    """No new privileges for this process, and no look into it for others: prctl(2)."""
    check(lib.sandbox_privileges())


def filter_calls(program: bytes) -> None:
    """Let only those system calls pass that this program of struct sock_filter allows, in all threads."""
    check(lib.sandbox_filter(program, len(program)))
