"""Whose the file of a listening Unix socket is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SocketFile:
    """Permissions and owner of a socket's file: who may write to it may connect (unix(7)).  None: as it is made."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
