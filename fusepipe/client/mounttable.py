"""The mounts that this process sees, from /proc/self/mountinfo (proc(5)).  Reading it touches no mount."""

import os
import re
from typing import NamedTuple

SUBTYPE = "fusepipe"


class MountEntry(NamedTuple):
    """One mount: the device's number as "MAJOR:MINOR", where it is mounted, the type and the source."""

    device: str
    mountpoint: str
    fstype: str
    source: str

    @property
    def is_ours(self) -> bool:
        """Whether it is a mount of fusepipe."""
        return self.fstype == f"fuse.{SUBTYPE}"

    @property
    def connection(self) -> str:
        """The folder of this FUSE connection's controls; named by the minor number (the kernel's fuse.rst)."""
        return f"/sys/fs/fuse/connections/{self.device.partition(':')[2]}"


def _unescaped(field: str) -> str:
    """Undoes the octal escapes of blanks and backslashes."""
    raw = re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), os.fsencode(field))
    return os.fsdecode(raw)


def mounts() -> list[MountEntry]:
    """All mounts, in the order in which they were made: of several at one place the last one is on top."""
    entries = []
    with open("/proc/self/mountinfo", errors="surrogateescape") as lines:
        for line in lines:
            before, _, after = line.rstrip("\n").partition(" - ")
            fields, (fstype, source, *_) = before.split(" "), after.split(" ")
            entries.append(MountEntry(fields[2], _unescaped(fields[4]), fstype, _unescaped(source)))
    return entries


def mount_at(path: str) -> MountEntry | None:
    """The uppermost mount at exactly this path, or None."""
    return next((entry for entry in reversed(mounts()) if entry.mountpoint == path), None)


def resolved(path: str) -> str:
    """The path without symlinks, as the mount table shows it.

    Nothing is asked of a mount that is at `path` itself, which may be dead or silent.  Raises OSError.
    """
    folder, name = os.path.split(os.path.abspath(path))
    place = os.path.join(os.path.realpath(folder), name) if name else folder
    return place if mount_at(place) else os.path.realpath(place)
