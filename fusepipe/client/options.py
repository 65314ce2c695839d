"""What a mount is asked to be."""

import math
import re
from dataclasses import dataclass

from fusepipe.wire import KEEP_ALWAYS

MAX_READERS = 256

FOR_GOOD = 365.0 * 86400
"""Seconds; longer than a mount lasts, and no number that the kernel's clock overflows with."""


@dataclass(frozen=True, slots=True)
class Cache:
    """What the guest may keep, and for how long: docs/cache.md.

    seconds     for names and attributes, and for contents past an open; 0 where the guest keeps nothing
    write_back  nobody else writes to the volume: the kernel keeps everything, and sends what is written later
    """

    seconds: float = 1.0
    write_back: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.seconds) and self.seconds >= 0):
            raise ValueError(f"a cache time of {self.seconds} seconds: it must be 0 or more")

    @property
    def keep(self) -> int:
        """For how long pages may be kept past an open, in milliseconds, as OPEN says it."""
        return KEEP_ALWAYS if self.write_back else min(int(self.seconds * 1000), KEEP_ALWAYS - 1)

    @classmethod
    def parse(cls, text: str) -> "Cache":
        """A cache mode as the command line writes it.  Raises ValueError."""
        if text == "none":
            return cls(0.0)
        if text == "exclusive":
            return cls(FOR_GOOD, write_back=True)
        if (found := re.fullmatch(r"ttl:(\d+(?:\.\d*)?|\.\d+)", text)) and float(found[1]) > 0:
            return cls(float(found[1]))
        raise ValueError(
            f"unknown cache mode {text!r}: use none, exclusive, or ttl:SECONDS with more than 0 seconds, as in ttl:1"
        )

    def __str__(self) -> str:
        if self.write_back:
            return "exclusive"
        return f"ttl:{self.seconds:g}" if self.seconds else "none"


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How to mount.  Raises ValueError where a value makes no sense."""

    mountpoint: str
    readers: int = 64
    """How many requests are in service at once, from 1 to MAX_READERS."""
    cache: Cache = Cache()
    shared_locks: bool = False
    """Whether locks are held on the host, for its programs and other guests to see; else by the guest's kernel."""
    read_only: bool = False
    allow_other: bool | None = None
    """Whether other users may use the mount; None: as root yes, else no."""
    suid: bool = False
    """Whether set-uid and set-gid programs on the mount take effect; only root may ask for it."""
    dev: bool = False
    """Whether device nodes on the mount work; only root may ask for it."""
    fsname: str = "fusepipe"
    """The source that mount tables show."""
    nonempty: bool = False
    """Whether the mount may hide files that are in the mount point's directory."""
    device_filter: bool = True
    """False mounts as if the filter on /dev/fuse could not be used: for tests, and to find faults."""

    native: bool = True
    """Whether threads in C answer what is hot, where that is possible; else Python does it alone."""

    on_disconnect: float = 0.0
    """How many seconds requests wait for a connection that was lost: math.inf for as long as it takes, 0 not at all."""

    def __post_init__(self) -> None:
        if not self.on_disconnect >= 0:
            raise ValueError(f"{self.on_disconnect} seconds to wait after a loss: it must be 0 or more")
        if not 1 <= self.readers <= MAX_READERS:
            raise ValueError(f"{self.readers} readers: use 1 to {MAX_READERS}")
        if self.shared_locks and self.cache.write_back:
            raise ValueError("locks cannot be shared where the cache is exclusive: nobody else may use the volume then")
