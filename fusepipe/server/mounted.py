"""What is mounted below a volume's directory: filesystems whose inodes another process may have known."""

import os
import re


def mounts_below(root: int) -> list[bytes]:
    """Paths of the mount points below this directory, relative to it.  Empty where /proc does not say."""
    try:
        top = os.readlink(os.fsencode(f"/proc/self/fd/{root}")).rstrip(b"/") + b"/"
        with open("/proc/self/mountinfo", "rb") as file:
            points = [line.split(b" ")[4] for line in file]
    except OSError:
        return []
    # proc_pid_mountinfo(5): octal for space, tab, newline and backslash.
    paths = [re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), point) for point in points]
    return [path[len(top) :] for path in paths if path.startswith(top) and path != top]
