"""What concerns the process as a whole: the signal that ends a waiting call, and what this process may do."""

import os
from typing import NamedTuple

from ._syscalls import ffi, lib
from .check import check

CAPABILITIES = {
    0: "chown",
    1: "dac_override",
    2: "dac_read_search",
    3: "fowner",
    4: "fsetid",
    6: "setgid",
    7: "setuid",
    9: "linux_immutable",
    21: "sys_admin",
    27: "mknod",
    31: "setfcap",
}
"""Those of capabilities(7) that serving a directory uses, by their numbers in linux/capability.h."""


class Facts(NamedTuple):
    """What the kernel says about this process: its user ids and which of CAPABILITIES are effective."""

    uid: int
    euid: int
    capabilities: frozenset[str]


def facts() -> Facts:
    """For logs and `doctor`.  Of the calling thread; raises OSError where the kernel does not tell."""
    bits = ffi.new("uint64_t *")
    check(lib.effective_capabilities(bits))
    held = frozenset(name for number, name in CAPABILITIES.items() if bits[0] >> number & 1)
    return Facts(os.getuid(), os.geteuid(), held)


def install_interrupt_handler(signum: int) -> None:
    """Makes a signal end the waiting call of the thread it is sent to (`signal.pthread_kill`) with EINTR.

    The handler is C, does nothing and has no SA_RESTART (signal(7)); Python's own would run in the main thread only.  A
    signal that comes before the call is entered is lost, so whoever sends it repeats it.  Raises OSError.
    """
    check(lib.install_interrupt_handler(signum))
