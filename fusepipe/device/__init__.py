"""The guest's kernel: a filter between libfuse and /dev/fuse.  Import this before pyfuse3.

It sets the flags and limits of INIT, shows fields of a request that pyfuse3 hides, tells inode numbers from node ids,
takes FORGET, RELEASE, RELEASEDIR and INTERRUPT out of the event loop's way, and hands requests that libfuse or pyfuse3
do not know to Python (`structures` has their form).  Where it cannot take hold, a mount works with what pyfuse3 has;
`unavailable()` says why.
"""

from fusepipe.device.filter import (
    BATCH,
    Agreed,
    Counters,
    CurrentRequest,
    Filter,
    FilterUnavailableError,
    TakenRequest,
    Wishes,
)
from fusepipe.device.flags import InitFlag, Ioctl, Opcode, OpenFlag, SetattrFlag, WriteFlag
from fusepipe.device.library import unavailable

__all__ = [
    "BATCH",
    "Agreed",
    "Counters",
    "CurrentRequest",
    "Filter",
    "FilterUnavailableError",
    "InitFlag",
    "Ioctl",
    "Opcode",
    "OpenFlag",
    "SetattrFlag",
    "TakenRequest",
    "Wishes",
    "WriteFlag",
    "unavailable",
]
