"""What mounting needs from the machine and from its administrator."""

import os
import re
import shutil
from typing import NamedTuple

from fusepipe.client.errors import PermissionDeniedError
from fusepipe.client.options import MountOptions
from fusepipe.client.unmounting import FUSERMOUNT

DEVICE = "/dev/fuse"
FUSE_CONF = "/etc/fuse.conf"


class Missing(NamedTuple):
    """Something that is not there, and what to do about it."""

    what: str
    remedy: str


def missing() -> list[Missing]:
    """What this user on this machine lacks for mounting."""
    found = []
    if not os.path.exists(DEVICE):
        remedy = "load the kernel's module (modprobe fuse), or give the device to the container"
        found.append(Missing(f"there is no {DEVICE}", remedy))
    elif error := _opening_error():
        remedy = f"let this user read and write {DEVICE} (chmod 666 {DEVICE} is usual), or give it to the container"
        found.append(Missing(f"{DEVICE} cannot be opened: {error}", remedy))
    if os.geteuid() != 0 and shutil.which(FUSERMOUNT) is None:
        found.append(Missing(f"{FUSERMOUNT} is not installed", "install it (Debian: package fuse3), or run as root"))
    return found


def _opening_error() -> str:
    """Why the device cannot be opened, or ""; an fd of it that is never used does nothing."""
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return error.strerror or str(error)
    return ""


def user_may_allow_other() -> bool:
    """Whether users other than root may let other users into their mounts (mount.fuse3(8), fuse.conf)."""
    try:
        with open(FUSE_CONF) as lines:
            return any(re.fullmatch(r"\s*user_allow_other\s*", line) for line in lines)
    except OSError:
        return False


def check(options: MountOptions) -> None:
    """Raises PermissionDeniedError for what this user may not do."""
    for what, remedy in missing():
        raise PermissionDeniedError(what, remedy)
    if os.geteuid() == 0:
        return
    for name in ("suid", "dev"):
        if getattr(options, name):
            raise PermissionDeniedError(f"only root may mount with {name}", f"leave {name} out, or run as root")
    if options.allow_other and not user_may_allow_other():
        raise PermissionDeniedError(
            "only root may mount with allow_other here",
            f"add the line user_allow_other to {FUSE_CONF}, or leave it out",
        )
