"""The place where the mount is to be, checked before anything else happens."""

import os
import stat

from fusepipe.client.errors import MountPointError, PermissionDeniedError
from fusepipe.client.mounttable import mount_at, resolved
from fusepipe.client.unmounting import Condition, condition, detach


def prepared(path: str, *, nonempty: bool) -> str:
    """The path without symlinks of a directory that can be mounted on.

    A mount of fusepipe there whose process is dead is taken away.  Raises MountError.
    """
    try:
        place = resolved(path)
        _take_stale_away(path, place)
        _check(path, place, nonempty)
    except FileNotFoundError as error:
        raise MountPointError(f"the mount point {path} does not exist", f"create it: mkdir -p {path}") from error
    except PermissionError as error:
        raise PermissionDeniedError(
            f"the mount point {path} may not be used: {error.strerror}", "choose another"
        ) from error
    except OSError as error:
        raise MountPointError(f"the mount point {path} cannot be used: {error.strerror}", "choose another") from error
    return place


def _take_stale_away(path: str, place: str) -> None:
    while (entry := mount_at(place)) is not None and entry.is_ours:
        match condition(place):
            case Condition.DEAD:
                detach(place, lazy=True)
            case Condition.SILENT:
                raise MountPointError(
                    f"{path} is mounted already, and its server does not answer",
                    f"end it first: fusepipe umount {path}",
                )
            case Condition.ALIVE:
                raise MountPointError(f"{path} is mounted already", f"unmount it first: fusepipe umount {path}")


def _check(path: str, place: str, nonempty: bool) -> None:
    if not stat.S_ISDIR(os.stat(place).st_mode):
        raise MountPointError(f"the mount point {path} is not a directory", "choose an empty directory")
    if os.geteuid() != 0 and not os.access(place, os.W_OK):
        raise PermissionDeniedError(f"you may not write to the mount point {path}", "choose a directory of your own")
    if not nonempty and os.listdir(place):
        raise MountPointError(
            f"the mount point {path} is not empty", "choose an empty directory, or hide what is in it with -o nonempty"
        )
