"""What a guest's root could leave on the host for its other users to find."""

import os
from pathlib import Path

from fusepipe.server.volumes import Volume


def exposed(volume: Volume, *, privileged: bool) -> list[str]:
    """What guests can leave in the volume that gives other users of this host rights: for people, empty if nothing.

    Only where those can reach it: every directory on the way lets somebody else through.  `privileged`: the server can
    act as other users.  Raises OSError.
    """
    policy = volume.policy
    if volume.read_only or not _reachable(Path(os.path.realpath(volume.path))):
        return []
    flags = os.statvfs(volume.path).f_flag
    found = []
    if not policy.no_setuid and not flags & (os.ST_NOSUID | os.ST_NOEXEC):
        found.append("set-uid programs")
    if privileged and not policy.no_devices and policy.root_on_host() and not flags & os.ST_NODEV:
        found.append("device nodes")
    return found


def _reachable(path: Path) -> bool:
    """Whether another user than this one, and root, may pass through each directory."""
    return all(_lets_others_through(os.stat(folder)) for folder in (path, *path.parents))


def _lets_others_through(status: os.stat_result) -> bool:
    others = status.st_mode & 0o001
    group = status.st_mode & 0o010 and status.st_gid not in (0, os.getegid())
    owner = status.st_mode & 0o100 and status.st_uid not in (0, os.geteuid())
    return bool(others or group or owner)
