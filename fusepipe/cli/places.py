"""Where a mount may lie: not in the directory that it shows, and not over the Python that serves it."""

import os
import sys
from collections.abc import Iterator

from fusepipe.cli.exits import CommandError, ExitCode


def absolute(path: str) -> str:
    """The path from the root, so that it stays right when the process changes its directory.

    Unlike os.path.abspath(3) it keeps `..`, which after a symlink leads elsewhere than the text says.
    """
    return os.path.join(os.getcwd(), path)


def check_source(source: str) -> None:
    """Raises CommandError unless `source` is a directory that can be served."""
    what = f"cannot serve {source}"
    try:
        with os.scandir(source):
            return
    except FileNotFoundError:
        raise CommandError(what, "it does not exist", "give the directory to mount", ExitCode.VOLUME) from None
    except NotADirectoryError:
        raise CommandError(what, "it is not a directory", "give a directory, not a file", ExitCode.VOLUME) from None
    except OSError as error:
        raise CommandError(what, str(error.strerror), "give a directory that you may read", ExitCode.VOLUME) from None


def check_apart(source: str, mountpoint: str) -> None:
    """Raises CommandError where the mount point lies inside the source.

    The server's own walk through the source would then enter the mount that it serves: each level of a recursive
    listing asks one level deeper, without end, and a request that needs a worker waits for another one that does.  The
    reverse, a source inside the mount point or at it, is fine: the server holds the source open from before.
    """
    try:
        inner = os.stat(source)
    except OSError:
        return  # check_source said so, or it has just gone and the server will say so
    for folder in _upwards(os.path.realpath(mountpoint)):
        try:
            here = os.stat(folder)
        except OSError:
            continue  # the mount point does not exist, or is a dead mount: whoever mounts deals with that
        if (here.st_dev, here.st_ino) == (inner.st_dev, inner.st_ino) and folder != os.path.realpath(mountpoint):
            raise CommandError(
                f"cannot mount at {mountpoint}",
                f"it lies inside {source}, and the mount would contain itself without end",
                f"choose a mount point outside {source}",
                ExitCode.MOUNT_POINT,
            )


def check_python(mountpoint: str) -> None:
    """Raises CommandError where the mount would hide the Python installation that serves it.

    A module that is loaded later would then be looked for in the mount, by the process that the mount waits for.
    """
    place = os.path.realpath(mountpoint)
    for path in (sys.prefix, sys.base_prefix, *filter(None, sys.path)):
        if os.path.commonpath([place, os.path.realpath(path)]) == place:
            raise CommandError(
                f"cannot mount at {mountpoint}",
                f"the mount would hide {path}, where the running fusepipe is installed",
                "choose another mount point, or install fusepipe elsewhere",
                ExitCode.MOUNT_POINT,
            )


def _upwards(path: str) -> Iterator[str]:
    yield path
    while path != (path := os.path.dirname(path)):
        yield path
