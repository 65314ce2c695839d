"""Volumes: which directories a server offers, and under which names."""

import errno
import os
import stat
from dataclasses import dataclass

_READ_ONLY = ":ro"


class VolumeError(ValueError):
    """A volume that cannot be served.  `cause` says why, `remedy` what to do; the text of the exception has both."""

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(f"{cause}; {remedy}")
        self.cause = cause
        self.remedy = remedy


@dataclass(frozen=True)
class Volume:
    """A directory of this host and the name that clients ask for.  `path` may be relative to the working directory."""

    name: str
    path: str
    read_only: bool = False

    def __post_init__(self) -> None:
        if not self.name:
            raise VolumeError("the volume has no name", "write NAME=DIRECTORY, for example data=/srv/data")
        if "/" in self.name or "\0" in self.name:
            raise VolumeError(
                f"the volume's name {self.name!r} contains a slash or NUL",
                "choose a name without: clients ask ADDRESS/NAME",
            )
        if not self.path or "\0" in self.path:
            raise VolumeError(
                f"volume {self.name!r} has no directory", "write NAME=DIRECTORY, for example data=/srv/data"
            )

    @staticmethod
    def parse(text: str) -> "Volume":
        """Read NAME=DIRECTORY, or NAME=DIRECTORY:ro for a volume that no client can change.  Raises VolumeError.

        A directory whose own name ends in ":ro" is written with a slash at its end.
        """
        name, equals, path = text.partition("=")
        if not equals:
            raise VolumeError(f"{text!r} is not a volume", "write NAME=DIRECTORY, for example data=/srv/data")
        read_only = path.endswith(_READ_ONLY)
        return Volume(name, path.removesuffix(_READ_ONLY) if read_only else path, read_only)

    def __str__(self) -> str:
        return f"{self.name}={self.path}{_READ_ONLY if self.read_only else ''}"

    def open(self) -> int:
        """Open the directory (O_PATH) and return the file descriptor.  Raises VolumeError."""
        try:
            fd = os.open(self.path, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            raise self._explain(error) from error
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            os.close(fd)
            raise VolumeError(f"{self.path} is not a directory", "give a directory to be served")
        return fd

    def check(self) -> None:
        """See that the directory can be served at this moment.  Raises VolumeError."""
        os.close(self.open())

    def _explain(self, error: OSError) -> VolumeError:
        if error.errno == errno.ENOENT:
            return VolumeError(f"there is no directory {self.path}", "create it, or correct the path")
        if error.errno == errno.ENOTDIR:
            return VolumeError(f"a part of {self.path} is not a directory", "correct the path")
        if error.errno == errno.EACCES:
            return VolumeError(
                f"this user may not reach {self.path}", "grant search permission on its parents, or run as another user"
            )
        return VolumeError(f"{self.path} cannot be opened: {error.strerror}", "correct what the text names")
