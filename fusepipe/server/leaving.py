"""A session process makes room for the next one while all is well, and the next one takes what it left: the locks.

Everything else that has to last is kept by the launcher all the time (keeping.py), or stands in the tables.
"""

import socket
from collections.abc import Iterator
from itertools import islice
from typing import Final

from fusepipe.server import control
from fusepipe.server.tables import HeldLocks, Range, Tables

MOST_RANGES: Final = 3000
"""Locked ranges in one message, each of at most 20 bytes: control.MAX_MESSAGE bounds it."""


def cannot_leave(tables: Tables) -> str:
    """Why another process could not go on with the session as it is; empty where it could."""
    if not tables.tree.opens_by_handle:
        return "its files cannot be opened again by file handle"
    if lost := tables.tree.without_handle:
        return f"{lost} of its files cannot be opened again: they are on a filesystem without file handles"
    return ""


def hand_in(channel: socket.socket, tables: Tables) -> None:
    """Send everything that the next process needs beside what is kept.  Nothing may be running.

    Raises OSError where the launcher does not take it.
    """
    tables.tree.sign()
    tables.tree.keep_nameless()
    held = tables.locks.held()
    while part := list(islice(held, control.MAX_FDS)):
        for some in _bounded(part):
            owners = [
                (one.node, one.owner, one.handle, one.pid, [(lock.start, lock.end, lock.type) for lock in one.ranges])
                for one in some
            ]
            control.send(channel, control.Locks(owners, []), [one.fd for one in some])
    flocked = tables.tree.flocked()
    while handles := list(islice(flocked, control.MAX_FDS)):
        control.send(channel, control.Locks([], [handle for handle, _ in handles]), [fd for _, fd in handles])


def take_over(message: control.Locks, fds: list[int], tables: Tables) -> None:
    """Hold the locks of such a message from now on; what the tables do not know stays lost, and they count it."""
    owners, flocks = fds[: len(message.owners)], fds[len(message.owners) :]
    for (node, owner, handle, pid, ranges), fd in zip(message.owners, owners, strict=True):
        tables.locks.restore(HeldLocks(node, owner, handle, pid, tuple(Range(*one) for one in ranges), fd))
    for handle, fd in zip(message.flocks, flocks, strict=True):
        tables.tree.restore_flock(handle, fd)


def _bounded(owners: list[HeldLocks]) -> Iterator[list[HeldLocks]]:
    """The same in parts that fit into a message.  (One owner with more ranges than that is a part, and fits.)"""
    part: list[HeldLocks] = []
    ranges = 0
    for one in owners:
        if part and ranges + len(one.ranges) > MOST_RANGES:
            yield part
            part, ranges = [], 0
        part.append(one)
        ranges += len(one.ranges)
    if part:
        yield part
