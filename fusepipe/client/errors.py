"""How a mount can fail or end, each with its exit code, and how a single request fails."""

from enum import Enum


class MountError(Exception):
    """No mount.  `cause` says why, `remedy` what to do; the text of the exception has both."""

    exit_code = 1

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(f"{cause}; {remedy}")
        self.cause = cause
        self.remedy = remedy


class InternalError(MountError):
    """Something failed that never should; it has been logged."""

    exit_code = 1


class MountPointError(MountError):
    """The mount point is missing, no directory, not empty, or busy."""

    exit_code = 3


class VolumeError(MountError):
    """The server has no such volume, or cannot serve it."""

    exit_code = 4


class RefusedError(MountError):
    """The server refused this client: its version, its access, a limit."""

    exit_code = 6


class PermissionDeniedError(MountError):
    """This user or this machine may not mount like that."""

    exit_code = 7


class LinkLostError(MountError):
    """The connection broke before there was a mount."""

    exit_code = 8


class StaleError(MountError):
    """The server does not know the session any more, or somebody else goes on with it."""

    exit_code = 9


class MountEnd(Enum):
    """How a mount ended by itself."""

    UNMOUNTED = (0, "unmounted")
    CONNECTION_LOST = (8, "the connection to the server was lost")
    STALE = (9, "the session is stale: the server does not know it any more, or somebody else goes on with it")

    @property
    def exit_code(self) -> int:
        """The exit code of the command."""
        return self.value[0]

    @property
    def text(self) -> str:
        """One line for people."""
        return self.value[1]


class CallError(Exception):
    """A request ended with an errno, which the program that made it is to see."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.errno = number
