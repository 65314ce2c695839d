"""What can be set about a server and its sessions."""

import os
import resource
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from fusepipe.wire import ServerLimits

FDS_PER_REQUEST = 4
"""Descriptors that a request may need while it runs, beside those of the tables."""

MOST_REQUESTS = 256

CANNOT_GO_ON: Final = 2
"""Exit status of a session process after which another one could do no better."""

LEFT: Final = 3
"""Exit status of a session process that has made room for the next one, as it was told."""

LEAST_DRAIN: Final = 2.0
"""Seconds that running calls get at least where another process goes on: one that is cut off may be EIO."""

SandboxLevel: TypeAlias = Literal["require", "prefer", "none"]
SANDBOX_LEVELS: Final[tuple[SandboxLevel, ...]] = ("require", "prefer", "none")


class ServerError(Exception):
    """A server that cannot start.  `cause` says why, `remedy` what to do; the text of the exception has both."""

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(f"{cause}; {remedy}")
        self.cause = cause
        self.remedy = remedy


def default_limits() -> ServerLimits:
    """As many requests in service as a quarter of what RLIMIT_NOFILE allows is enough for; tables get the rest."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return ServerLimits(request_slots=max(1, min(MOST_REQUESTS, hard // 4 // FDS_PER_REQUEST)))


def default_sandbox() -> SandboxLevel:
    """All walls for root, who can have them nearly everywhere; for others those that they can have."""
    return "require" if os.geteuid() == 0 else "prefer"


class SandboxError(ServerError):
    """A wall of the sandbox that is required and cannot be had."""


@dataclass(frozen=True)
class ServerOptions:
    """Limits and patience.  All have defaults that suit a server for many guests.

    limits        what HELLO may be granted at most; a session's memory is sized by its slots
    fd_budget     how many file descriptors of the host a session may hold for inodes that the guest knows; None: most
                  of what RLIMIT_NOFILE allows
    drain         seconds that running calls get to end when the server is told to stop; then they are interrupted
    session_grace seconds that a session is kept for its client after its last connection was lost; 0: it ends with that
    session_deaths  how many processes of one session may die within a minute; with the last of them the session ends.
                  One that is not kept for its client ends with the first
    native        hot requests run in C; off: every request in Python, with the same answers
    max_sessions  how many sessions may exist at once; one more is refused
    max_sessions_per_peer  how many of them one machine or user may have; one more is refused
    allowed_uids  the users of this host that may connect over Unix sockets; None: all that may open the socket
    allowed_cids  the context ids of machines that may connect over vsock; None: all that reach the port
    sandbox       what walls session processes have around them (docs/security.md): all, or they do not start
                  ("require"); those that can be had ("prefer"); none
    """

    limits: ServerLimits = field(default_factory=default_limits)
    fd_budget: int | None = None
    drain: float = 10.0
    session_grace: float = 0.0
    session_deaths: int = 3
    native: bool = True
    max_sessions: int = 1024
    max_sessions_per_peer: int = 128
    allowed_uids: tuple[int, ...] | None = None
    allowed_cids: tuple[int, ...] | None = None
    sandbox: SandboxLevel = field(default_factory=default_sandbox)
