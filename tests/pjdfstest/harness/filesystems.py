"""Filesystems that are made for a run: in memory, or on a loop device over a sparse file."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

KINDS = ("tmpfs", "ext4", "xfs", "btrfs")
VOLUME_KIB = 4 << 20
"""Room for the whole suite; a sparse file, of which little is used."""
_MKFS = {"ext4": ("-q", "-F"), "xfs": ("-q", "-f"), "btrfs": ("-q", "-f")}
_SECONDS = 60.0


class Unavailable(RuntimeError):
    """Such a filesystem cannot be made here; the reason is in the message."""


def run(*command: str) -> None:
    """Run a command to its end.  Raises Unavailable with what it said where it fails or is not there."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    program = shutil.which(command[0], path=path)
    if program is None:
        raise Unavailable(f"no {command[0]} on this machine")
    done = subprocess.run(
        [program, *command[1:]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        timeout=_SECONDS,
    )
    if done.returncode:
        raise Unavailable(f"{' '.join(command)}: {done.stdout.decode(errors='replace').strip()}")


@contextmanager
def new_filesystem(kind: str, kib: int, scratch: str, *, inodes: int | None = None) -> Iterator[str]:
    """Mount a new, empty filesystem of that kind and size in KiB below `scratch`: its mount point.

    `inodes` is how many a tmpfs may have.  Raises Unavailable.
    """
    point = os.path.join(scratch, kind)
    image = os.path.join(scratch, f"{kind}.image")
    os.mkdir(point)
    if kind == "tmpfs":
        limit = "" if inodes is None else f",nr_inodes={inodes}"
        run("mount", "-t", "tmpfs", "-o", f"size={kib}k,mode=755{limit}", "posix-suite", point)
    else:
        with open(image, "wb") as file:
            file.truncate(kib * 1024)
        run(f"mkfs.{kind}", *_MKFS[kind], image)
        run("mount", "-o", "loop", image, point)
    try:
        os.chmod(point, 0o755)
        yield point
    finally:
        run("umount", "--lazy", point)  # callers may still stand in it; they leave with their case
        os.rmdir(point)
        if kind != "tmpfs":
            os.unlink(image)
