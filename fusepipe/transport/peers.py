"""Who is at the other end of a connected socket, as the kernel tells."""

import socket
import struct
from dataclasses import dataclass

_UCRED = struct.Struct("3i")  # unix(7): struct ucred, the pid, uid and gid of SO_PEERCRED


@dataclass(frozen=True)
class Peer:
    """The other end: pid, uid and gid for a Unix socket, cid and port for vsock; None where the kernel does not say.

    The ids of a Unix socket are those at the time of connect(2) or socketpair(2).  They are as seen from this process's
    namespaces: a pid of 0 means a process outside of them.
    """

    pid: int | None = None
    uid: int | None = None
    gid: int | None = None
    cid: int | None = None
    port: int | None = None

    def __str__(self) -> str:
        if self.cid is not None:
            return f"cid {self.cid} port {self.port}"
        if self.uid is not None:
            return f"pid {self.pid} uid {self.uid} gid {self.gid}"
        return "unknown"


def peer_of(sock: socket.socket) -> Peer:
    """Ask the kernel who is at the other end.  Raises OSError where the socket is not connected."""
    if sock.family == socket.AF_UNIX:
        pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        return Peer(pid=pid, uid=uid, gid=gid)
    if sock.family == socket.AF_VSOCK:
        cid, port = sock.getpeername()
        return Peer(cid=cid, port=port)
    return Peer()
