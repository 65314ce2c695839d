"""What a listener keeps of a session beside its process: descriptors, which are only handed on, never looked at.

A guest may have broken into the process that sent them.
"""

import os
import resource
import socket
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from fusepipe import log
from fusepipe.server.broker import Authority
from fusepipe.server.control import MAX_FDS
from fusepipe.wire import ServerLimits

LEAST_PINS, MOST_PINS = 64, 4096
"""Descriptors that are kept for one session: a sixteenth of what this process may open, within these bounds."""

MOST_PACKETS: Final = 8192
"""Of one session; far more than the locks of one can fill."""

_PACKET: Final = 4096  # 512 numbers: pins.c

_logger = log.get_logger("server")


class Room:
    """What all sessions together may have kept: half of what this process may open."""

    def __init__(self) -> None:
        _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.most_of_one = max(LEAST_PINS, min(MOST_PINS, hard // 16))
        self.left = hard // 2


class Pins:
    """Descriptors of inodes without a name, by the numbers of their nodes.  For one trio loop."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._fds: dict[int, int] = {}
        self._complain = log.Sparing(_logger.warning)

    def __len__(self) -> int:
        return len(self._fds)

    def receive(self, ours: socket.socket) -> bool:
        """Take one packet; False where there is none."""
        fds = array("i")
        try:
            data, ancillary, _flags, _address = ours.recvmsg(
                _PACKET, socket.CMSG_LEN(fds.itemsize), socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
            )
        except OSError:
            return False
        for _level, _kind, rights in ancillary:
            fds.frombytes(rights[: len(rights) // fds.itemsize * fds.itemsize])
        if not data:
            for fd in fds:
                os.close(fd)
            return False
        nodes = array("Q", data[: len(data) // 8 * 8])
        if fds and len(nodes) == 1 and nodes[0] not in self._fds and self._room.left:
            self._room.left -= 1
            self._fds[nodes[0]] = fds[0]
            self._limit()
        elif fds:
            for fd in fds:
                os.close(fd)
        else:
            for node in nodes:
                self._drop(node)
        return True

    def _limit(self) -> None:
        """The oldest goes where there are too many."""
        most = self._room.most_of_one
        if len(self._fds) > most:
            self._drop(next(iter(self._fds)))
            self._complain("a session has more open files without a name than are kept for it", kept=most)

    def _drop(self, node: int) -> None:
        fd = self._fds.pop(node, None)
        if fd is not None:
            self._room.left += 1
            os.close(fd)

    def parts(self) -> list[tuple[list[int], list[int]]]:
        """Numbers and descriptors, as many together as one message takes."""
        items = list(self._fds.items())
        return [
            ([node for node, _ in part], [fd for _, fd in part])
            for part in (items[start : start + MAX_FDS] for start in range(0, len(items), MAX_FDS))
        ]

    def add(self, nodes: list[int], fds: list[int]) -> None:
        """Take what another Pins had; for what there is no room is closed, and lost."""
        for node, fd in zip(nodes, fds, strict=True):
            if node in self._fds or not self._room.left:
                os.close(fd)
                self._complain("there is no room for all open files without a name that were kept", node=node)
            else:
                self._room.left -= 1
                self._fds[node] = fd

    def close(self) -> None:
        """Close all of them."""
        for node in list(self._fds):
            self._drop(node)


class Packets:
    """What a process left for the one after it: packets with descriptors, which are only handed on.  For one loop."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._packets: list[tuple[bytes, list[int]]] = []
        self._complain = log.Sparing(_logger.warning)

    def __len__(self) -> int:
        return len(self._packets)

    def __iter__(self) -> Iterator[tuple[bytes, list[int]]]:
        return iter(self._packets)

    def add(self, packet: bytes, fds: list[int]) -> None:
        """Keep one; where there is no room, its descriptors are closed and it is lost."""
        if len(fds) > self._room.left or len(self._packets) >= MOST_PACKETS:
            for fd in fds:
                os.close(fd)
            self._complain("there is no room for the locks of a session", files=len(fds))
            return
        self._room.left -= len(fds)
        self._packets.append((packet, fds))

    def close(self) -> None:
        """Close all descriptors."""
        for _, fds in self._packets:
            self._room.left += len(fds)
            for fd in fds:
                os.close(fd)
        self._packets.clear()


@dataclass
class Belongings:
    """All that a session is made of while no process serves it; the descriptors are the owner's.

    What a later version adds here has to be told by `handover.py`, too, and changes its VERSION.

    limits     as HELLO was granted and the memfd was made
    authority  its brokers'; None: it has none
    """

    session_id: bytes
    limits: ServerLimits
    memfd: int
    pins: list[tuple[list[int], list[int]]]
    locks: list[tuple[bytes, list[int]]]
    authority: Authority | None = None

    def close(self) -> None:
        """Close all descriptors."""
        for fd in (self.memfd, *(fd for _, fds in (*self.pins, *self.locks) for fd in fds)):
            os.close(fd)
