"""The guest's side: mounts a volume of a server, and answers the kernel with what the server says."""

import fusepipe.device  # noqa: F401 - before pyfuse3, or the filter cannot take hold
from fusepipe.client.errors import (
    InternalError,
    LinkLostError,
    MountEnd,
    MountError,
    MountPointError,
    PermissionDeniedError,
    RefusedError,
    VolumeError,
)
from fusepipe.client.mount import run_mount
from fusepipe.client.options import MAX_READERS, Cache, MountOptions
from fusepipe.client.permissions import Missing, missing, user_may_allow_other
from fusepipe.client.unmounting import unmount

__all__ = [
    "MAX_READERS",
    "Cache",
    "InternalError",
    "LinkLostError",
    "Missing",
    "MountEnd",
    "MountError",
    "MountOptions",
    "MountPointError",
    "PermissionDeniedError",
    "RefusedError",
    "VolumeError",
    "missing",
    "run_mount",
    "unmount",
    "user_may_allow_other",
]
