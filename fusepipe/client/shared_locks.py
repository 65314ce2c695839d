"""Locks that are held on the host: GETLK, SETLK and SETLKW of the kernel, and RELEASE of handles that carry locks.

Only where the mount asked for them; else the guest's kernel keeps locks itself and sends none of this.  Files only:
locks on directories, fifos, sockets and devices stay the guest's kernel's (fs/fuse/dir.c has no lock function).
"""

import errno
from collections.abc import Mapping
from contextlib import suppress

import pyfuse3
import trio

from fusepipe import log
from fusepipe.client.boundary import boundary
from fusepipe.client.errors import CallError
from fusepipe.client.link import Link
from fusepipe.client.taken import Operation
from fusepipe.device import CurrentRequest, Filter, Opcode
from fusepipe.device.structures import LkIn, lk_out, released_handle
from fusepipe.wire import Message
from fusepipe.wire import messages as m
from fusepipe.wire.client_session import Replied

logger = log.get_logger("client")

UNLOCK = 2  # F_UNLCK
FLOCK = 1  # FUSE_LK_FLOCK: the lock is one of flock(2)

LATE = 0.005
"""Seconds for which a RELEASE that the kernel holds back behind others may come (fs/fuse/dev.c, flush_bg_queue)."""

_NOBODY = CurrentRequest()
"""For requests that no program waits for."""


class SharedLocks:
    """The lock operations of one mount.

    What a lock protects is read anew by whoever gets it: the kernel is told to forget what it has cached of the file,
    before the program goes on.
    """

    def __init__(self, link: Link) -> None:
        self._call = link.call
        self._filter: Filter | None = None
        self._nursery: trio.Nursery | None = None
        self._handles: dict[int, set[int]] = {}
        """By node, the handles whose RELEASE has not come and that took a lock."""
        self._releases: dict[int, dict[int, trio.Event]] = {}
        """By node and the request's `unique`, the RELEASEs that have come and are not done."""

    def use(self, device_filter: Filter) -> None:
        """The filter is on the device; to be called before the first request."""
        self._filter = device_filter

    def start(self, nursery: trio.Nursery) -> None:
        """What a late reply makes necessary is done in `nursery`."""
        self._nursery = nursery

    def table(self) -> Mapping[int, Operation]:
        """Each operation by its opcode."""
        return {
            Opcode.GETLK: self.getlk,
            Opcode.SETLK: self.setlk,
            Opcode.SETLKW: self.setlkw,
            Opcode.RELEASE: self.release,
        }

    # ---- operations -------------------------------------------------------------------------------------------------

    @boundary
    async def getlk(self, current: CurrentRequest, arguments: bytes) -> bytes:
        asked = LkIn.read(arguments)
        await self._released(current.node)
        request = m.GetlkRequest(current.node, asked.handle, asked.owner, asked.type, asked.start, asked.end)
        reply = (await self._call(request, current=current)).reply
        assert isinstance(reply, m.GetlkReply)
        return lk_out(reply.type, reply.start, reply.end, reply.pid)

    @boundary
    async def setlk(self, current: CurrentRequest, arguments: bytes) -> bytes:
        asked = LkIn.read(arguments)
        await self._prepare(current, asked)
        try:
            await self._call(_request(current, asked), current=current)
        except CallError as error:
            if error.errno != errno.EAGAIN or not self._may_be_late(current, asked):
                raise
            await trio.sleep(LATE)
            await self._released(current.node)
            await self._call(_request(current, asked), current=current)
        await self._taken(current, asked)
        return b""

    @boundary
    async def setlkw(self, current: CurrentRequest, arguments: bytes) -> bytes:
        asked = LkIn.read(arguments)
        await self._prepare(current, asked)
        try:
            await self._call(_request(current, asked, wait=asked.type != UNLOCK), current=current)
        except CallError as error:
            if error.errno != errno.ENOLCK:
                raise
            await self._without_waiting(current, asked)
        await self._taken(current, asked)
        return b""

    async def _without_waiting(self, current: CurrentRequest, asked: LkIn) -> None:
        """Too many programs wait for locks: this one gets its lock now or not at all."""
        try:
            await self._call(_request(current, asked), current=current)
        except CallError as error:
            raise CallError(errno.ENOLCK if error.errno == errno.EAGAIN else error.errno) from None

    async def _prepare(self, current: CurrentRequest, asked: LkIn) -> None:
        """Before a lock is asked for: its handle carries one from now on, and those before have been given up."""
        await self._released(current.node)
        if asked.type == UNLOCK:
            return
        handles = self._handles.setdefault(current.node, set())
        if asked.handle not in handles:
            assert self._filter is not None
            try:
                self._filter.withhold(asked.handle)
            except OSError:
                raise CallError(errno.ENOLCK) from None
            handles.add(asked.handle)

    async def _taken(self, current: CurrentRequest, asked: LkIn) -> None:
        """The lock is there: what others wrote under it must be seen.

        May wait for requests that are under way, which is why it runs in a thread.  What the kernel reads or asks from
        now on is newer than the lock; replies that are older do not count (fs/fuse/inode.c, attr_version), and pages
        that they fill are waited for.
        """
        if asked.type == UNLOCK:
            return
        with suppress(FileNotFoundError):  # the kernel has nothing of it
            await trio.to_thread.run_sync(pyfuse3.invalidate_inode, current.node, abandon_on_cancel=True)

    # ---- the end of handles -----------------------------------------------------------------------------------------

    def releasing(self, current: CurrentRequest) -> None:
        """A RELEASE has come: lock requests that come after it wait for it."""
        self._releases.setdefault(current.node, {})[current.unique] = trio.Event()

    @boundary
    async def release(self, current: CurrentRequest, arguments: bytes) -> bytes:
        """A handle that took a lock is closed on the host before anything else is done about locks of that file."""
        handle = released_handle(arguments)
        assert self._filter is not None
        self._filter.admit(handle)
        self._drop(self._handles, current.node, handle)
        try:
            await self._call(m.ReleaseRequest(handle), current=current)
        finally:
            releases = self._releases[current.node]
            releases.pop(current.unique).set()
            if not releases:
                del self._releases[current.node]
        return b""

    @staticmethod
    def _drop(table: dict[int, set[int]], node: int, handle: int) -> None:
        handles = table.get(node, set())
        handles.discard(handle)
        if not handles:
            table.pop(node, None)

    async def _released(self, node: int) -> None:
        """Waits until every RELEASE for this node that has come is done."""
        while releases := self._releases.get(node):
            await next(iter(releases.values())).wait()

    def _may_be_late(self, current: CurrentRequest, asked: LkIn) -> bool:
        """Whether what is in the way may be the lock of a handle whose RELEASE is on its way."""
        others = self._handles.get(current.node, set()) - {asked.handle}
        return bool(others or current.node in self._releases)

    def give_back(self, late: Replied) -> None:
        """A lock that came after its program had been told that it does not get one is removed."""
        request = late.ticket.request
        if late.errno:
            return
        undo: Message
        if isinstance(request, m.SetlkwRequest):
            undo = m.SetlkRequest(*request._replace(type=UNLOCK))
        elif isinstance(request, m.FlockwRequest):
            undo = m.FlockRequest(request.handle, UNLOCK)
        else:
            return
        assert self._nursery is not None
        self._nursery.start_soon(self._undo, undo)

    async def _undo(self, request: Message) -> None:
        try:
            await self._call(request, current=_NOBODY)
        except CallError as error:
            # EBADF: the handle was released meanwhile, and the lock with it.
            if error.errno != errno.EBADF:
                logger.warning("a lock that came too late could not be removed", error=error)


def _request(current: CurrentRequest, asked: LkIn, *, wait: bool = False) -> Message:
    if asked.flags & FLOCK:
        return m.FlockwRequest(asked.handle, asked.type) if wait else m.FlockRequest(asked.handle, asked.type)
    fields = (current.node, asked.handle, asked.owner, asked.type, asked.start, asked.end, asked.pid)
    return m.SetlkwRequest(*fields) if wait else m.SetlkRequest(*fields)
