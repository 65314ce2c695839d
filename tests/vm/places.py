"""Where things are: what is downloaded and built is kept outside of the repository, for all work trees."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
KERNELS = ("bookworm", "trixie", "sid")
"""Debian suites whose cloud kernels are tried: 6.1, 6.12 and the newest."""
SUITE = "bookworm"
"""The suite of the guest's programs."""


def cache() -> Path:
    """The directory of what is kept: $FUSEPIPE_VM_CACHE, else below the user's own cache directory."""
    if chosen := os.environ.get("FUSEPIPE_VM_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fusepipe" / "vm"


@contextmanager
def locked() -> Iterator[Path]:
    """The cache directory, for one preparation at a time; waits for another one to end."""
    place = cache()
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield place
