"""What is asked of the guest's kernel: the flags and limits of INIT, the mount's options, read-ahead."""

import os

from fusepipe import log
from fusepipe.client.mounttable import SUBTYPE, mount_at
from fusepipe.client.options import MountOptions
from fusepipe.device import InitFlag, Wishes

logger = log.get_logger("client")

READ_AHEAD = 1 << 20
LEAST_BACKGROUND = 12
"""Read-ahead and other requests that no program waits for: the kernel's own number, where there are fewer readers."""

WANTED = (
    InitFlag.ASYNC_READ
    | InitFlag.ATOMIC_O_TRUNC
    | InitFlag.BIG_WRITES
    | InitFlag.AUTO_INVAL_DATA
    | InitFlag.ASYNC_DIO
    | InitFlag.DO_READDIRPLUS
    | InitFlag.MAX_PAGES
    | InitFlag.DONT_MASK  # the host applies the umask, which a default ACL replaces
    | InitFlag.PARALLEL_DIROPS  # without it lookups in a directory wait for each other
    | InitFlag.HANDLE_KILLPRIV_V2  # without it every write asks for security.capability first
    | InitFlag.SETXATTR_EXT  # says when a new ACL has to clear set-gid
    | InitFlag.CREATE_SUPP_GROUP
    | InitFlag.DIRECT_IO_ALLOW_MMAP
)
WRITTEN_BACK = InitFlag.WRITEBACK_CACHE
"""Where nobody else writes to the volume.  Elsewhere it would undo what others did: the kernel then believes nothing
that the server says of a file's size and times, and sends whole pages (fs/fuse/inode.c, fuse_change_attributes)."""
LOCKS = InitFlag.POSIX_LOCKS | InitFlag.FLOCK_LOCKS
"""Where locks are shared.  Elsewhere the kernel keeps them itself, and asks nobody."""
REFUSED = (
    InitFlag.HANDLE_KILLPRIV  # replaced by its second version
    | InitFlag.READDIRPLUS_AUTO  # pyfuse3 answers no plain READDIR
    | InitFlag.SPLICE_READ
    | InitFlag.SPLICE_WRITE
    | InitFlag.SPLICE_MOVE
)


def wishes(options: MountOptions, max_transfer: int) -> Wishes:
    """What INIT is to agree on; `max_transfer` is the most that the server takes or gives in one request, in bytes."""
    background = max(options.readers, LEAST_BACKGROUND)
    wanted, refused = WANTED, REFUSED
    if options.cache.write_back:
        wanted |= WRITTEN_BACK
    else:
        refused |= WRITTEN_BACK
    if options.shared_locks:
        wanted |= LOCKS
    else:
        refused |= LOCKS
    return Wishes(wanted, refused, READ_AHEAD, max_transfer, background, background * 3 // 4)


def mount_options(options: MountOptions) -> set[str]:
    """The options for libfuse, which makes what mount(2) or fusermount3 need of them."""
    as_root = os.geteuid() == 0
    source = options.fsname.encode("ascii", "replace").decode().replace("\\", "\\\\").replace(",", "\\,")
    chosen = {f"fsname={source}", f"subtype={SUBTYPE}", "default_permissions"}
    allow_other = as_root if options.allow_other is None else options.allow_other
    wanted = {"allow_other": allow_other, "ro": options.read_only, "suid": options.suid, "dev": options.dev}
    return chosen | {name for name, on in wanted.items() if on}


def set_read_ahead(mountpoint: str) -> None:
    """Raises the kernel's read-ahead, which stays at 128 KiB whatever INIT says.  Without the right to, it stays so."""
    entry = mount_at(mountpoint)
    if entry is None:
        return
    try:
        with open(f"/sys/class/bdi/{entry.device}/read_ahead_kb", "w") as control:
            control.write(str(READ_AHEAD // 1024))
    except OSError as error:
        logger.info("read-ahead stays as the kernel has it", error=error)
