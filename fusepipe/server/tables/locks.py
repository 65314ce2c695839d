"""The fcntl locks of a session: an open file of the host for each inode and lock owner.

They are held in the session process alone: they end with it, whatever becomes of the tables, unless it hands the open
files on to the process that comes after it (`held`, `restore`).  What is noted here of ranges and pids is for GETLK,
and tells when an owner has no lock left; who gets a lock is decided by the host's kernel.
"""

import errno
import os
import threading
from collections.abc import Iterator
from typing import NamedTuple

from ...syscalls import Tree
from .ranges import UNLOCK, Range, Ranges, changed

MAX_RANGES = 4096
"""Locked ranges of one session, all files and owners together.  The host's kernel keeps each in memory of its own, and
walks through those of a file for each that is set."""

AT_MOST = 2
"""Ranges that one lock can add: in the middle of another of the other type, which it splits."""

END = (1 << 63) - 1
"""The last byte of a range that has no end."""


class HeldLocks(NamedTuple):
    """What one process tells the next one of an owner's locks on one inode.  `fd`: the open file that has them."""

    node: int
    owner: int
    handle: int
    pid: int
    ranges: Ranges
    fd: int


class _Owner:
    """One owner's locks on one inode."""

    def __init__(self, node: int, owner: int, fd: int) -> None:
        self.node = node
        self.owner = owner
        self.fd = fd
        self.changing = threading.Lock()
        """Held while locks are set without waiting, and noted: what is noted never lacks a lock that is there."""
        self.uses = 0
        """Calls that use the descriptor.  Guarded by the table's lock, as is `handle`."""
        self.handle = 0
        """The handle by which a lock was set last: when it is released, the owner can be no more (see `end_handle`)."""
        self.pid = 0
        self.ranges: Ranges = ()


class Locks:
    """The fcntl locks of one session.  Safe to use from any thread, but for `close`.

    Lock order: an owner's `changing`, then `_lock`; nothing that may wait is called under `_lock`.
    """

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._lock = threading.Lock()
        self._nodes: dict[int, dict[int, _Owner]] = {}
        self._handles: dict[int, set[_Owner]] = {}
        self._ranges = 0

    def set(self, node: int, handle: int, owner: int, type: int, start: int, end: int, pid: int, *, wait: bool) -> None:
        """Sets or removes a lock, as fcntl(2) with F_SETLK or F_SETLKW.

        Raises OSError: EAGAIN where another owner's is in the way, EINTR where waiting was interrupted, EINVAL for a
        range or type that is none, EBADF for a handle of another node, ENOLCK where there are too many locks or
        the host has no room for it.
        """
        used = self._use(node, handle, owner)
        try:
            if wait and type != UNLOCK:
                self._set(used, type, start, end, AT_MOST, wait=True)
                with used.changing:
                    self._count(self._note(used, handle, type, start, end, pid) - AT_MOST)
            else:
                with used.changing:
                    more = len(changed(used.ranges, start, end, type)) - len(used.ranges)
                    self._set(used, type, start, end, more, wait=False)
                    self._note(used, handle, type, start, end, pid)
        finally:
            self._done(used)

    def find(self, node: int, handle: int, owner: int, type: int, start: int, end: int) -> tuple[int, int, int, int]:
        """Type, first and last byte of a lock of somebody else that is in the way, and its process in the guest.

        The type is UNLOCK where none is; the process is 0 where it is not of this session.  Raises OSError as `set`.
        """
        used = self._use(node, handle, owner)
        try:
            found, first, last = self._tree.lock_get(used.fd, type, start, end)
        finally:
            self._done(used)
        if found == UNLOCK:
            return UNLOCK, 0, 0, 0
        held = Range(first, last, found)  # the kernel joins and splits as is noted here
        with self._lock:
            others = [other for other in self._nodes.get(node, {}).values() if other.owner != owner]
        pid = next((other.pid for other in others if held in other.ranges), 0)
        return found, first, last, pid

    def end_owner(self, handle: int, owner: int) -> None:
        """The owner has closed a descriptor of this handle's file: all its locks on that file end (fcntl(2))."""
        if not self._nodes:
            return
        try:
            node = self._tree.handle_node(handle)
        except OSError:
            return
        with self._lock:
            found = self._nodes.get(node, {}).get(owner)
            if found is not None:
                found.uses += 1
        if found is not None:
            self._end(found)

    def end_handle(self, handle: int) -> None:
        """The handle is released, and with it the locks that were set by way of it.

        Those of a process have ended before, when it closed the descriptor (`end_owner`), and the same owner may have
        set others since, by another handle; those of an open file description end only here.
        """
        if not self._handles:
            return
        with self._lock:
            ended = self._handles.pop(handle, set())
            for owner in ended:
                owner.handle = 0
                owner.uses += 1
        for owner in ended:
            self._end(owner)

    def __len__(self) -> int:
        """How many owners have locks, each file counted for itself."""
        with self._lock:
            return sum(1 for owners in self._nodes.values() for owner in owners.values() if owner.ranges)

    def held(self) -> Iterator["HeldLocks"]:
        """The locks of each owner, for another process.  No call may be running.

        Only what is here is noted from then on as lost with this process.
        """
        self._tree.note_no_locks()
        for owners in self._nodes.values():
            for owner in owners.values():
                if owner.ranges:
                    self._tree.note_lock(owner.handle)
                    yield HeldLocks(owner.node, owner.owner, owner.handle, owner.pid, owner.ranges, owner.fd)

    def restore(self, held: "HeldLocks") -> bool:
        """Takes the locks of an owner, with the descriptor, over from another process; False where they are lost.

        Before the first call of any other method.
        """
        if not self._tree.restore_lock(held.handle, held.fd):
            return False
        owner = _Owner(held.node, held.owner, held.fd)
        owner.pid, owner.ranges, owner.handle = held.pid, held.ranges, held.handle
        self._nodes.setdefault(held.node, {})[held.owner] = owner
        self._handles.setdefault(held.handle, set()).add(owner)
        self._ranges += len(held.ranges)
        return True

    def close(self) -> None:
        """Ends all locks.  No call may be running."""
        for owners in self._nodes.values():
            for owner in owners.values():
                self._tree.lock_close(owner.fd)
        self._nodes.clear()
        self._handles.clear()

    def _end(self, used: _Owner) -> None:
        """Removes all locks of an owner, whose use is counted already."""
        try:
            with used.changing:
                self._tree.lock_set(used.fd, UNLOCK, 0, END, wait=False)
                self._count(-len(used.ranges))
                used.ranges = ()
        finally:
            self._done(used)

    def _use(self, node: int, handle: int, owner: int) -> _Owner:
        """The owner's locks on the node, with a use of them counted until `_done`."""
        if self._tree.handle_node(handle) != node:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        with self._lock:
            found = self._nodes.get(node, {}).get(owner)
            if found is not None:
                found.uses += 1
                return found
        fd = self._tree.lock_open(handle)  # may wait for a lease that a program of the host holds
        with self._lock:
            owners = self._nodes.setdefault(node, {})
            found = owners.get(owner)
            if found is None:
                found = owners[owner] = _Owner(node, owner, fd)
                fd = -1
            found.uses += 1
        if fd >= 0:
            self._tree.lock_close(fd)
        return found

    def _set(self, used: _Owner, type: int, start: int, end: int, more: int, *, wait: bool) -> None:
        """Sets or removes a lock that makes `more` ranges, which are counted where that succeeds."""
        self._count(more)
        try:
            self._tree.lock_set(used.fd, type, start, end, wait=wait)
        except OSError:
            self._count(-more)
            raise

    def _count(self, more: int) -> None:
        """There are so many ranges more, or fewer.  Raises OSError (ENOLCK) where there would be too many."""
        with self._lock:
            if more > 0 and self._ranges + more > MAX_RANGES:
                raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
            self._ranges += more

    def _note(self, used: _Owner, handle: int, type: int, start: int, end: int, pid: int) -> int:
        """What has been done to the owner's locks: how many ranges there are more.  Wants `changing`."""
        before = len(used.ranges)
        used.ranges = changed(used.ranges, start, end, type)
        more = len(used.ranges) - before
        if type == UNLOCK:
            return more
        used.pid = pid
        self._tree.note_lock(handle)
        with self._lock:
            if used.handle != handle:
                self._leave_handle(used)
                used.handle = handle
                self._handles.setdefault(handle, set()).add(used)
        return more

    def _done(self, used: _Owner) -> None:
        """A use has ended; an owner without locks is forgotten with the last."""
        with self._lock:
            used.uses -= 1
            if used.uses or used.ranges:
                return
            self._leave_handle(used)
            owners = self._nodes[used.node]
            del owners[used.owner]
            if not owners:
                del self._nodes[used.node]
        self._tree.lock_close(used.fd)

    def _leave_handle(self, used: _Owner) -> None:
        """Wants `_lock`."""
        if used.handle:
            others = self._handles[used.handle]
            others.discard(used)
            if not others:
                del self._handles[used.handle]
            used.handle = 0
