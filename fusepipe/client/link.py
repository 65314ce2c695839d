"""The link to the server: one session, over one connection after another.

When the connection is lost, requests wait: those that have a slot are sent again after the session has been resumed
(client/resuming.py), those without are parked.  Everything here belongs to one trio loop.
"""

import errno
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import outcome
import trio

from fusepipe.client.errors import CallError
from fusepipe.client.line import Line
from fusepipe.device import CurrentRequest
from fusepipe.transport import Buffer, Stream
from fusepipe.wire import (
    KIND_OF_CHANNEL,
    ROWS,
    ClientConnection,
    ClientSession,
    ClientSlotStore,
    HelloReply,
    Message,
    SlotKind,
    SlotLayout,
    Ticket,
    op_of,
)
from fusepipe.wire.client_session import Ended, Event, Lost, Pong, Replied

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.ENFILE, errno.EMFILE})
"""Of disks, or of file descriptors: the server may have some once it has closed what was given back."""


async def _nothing_to_free() -> None:
    pass


class Waiter(Protocol):
    """What stands in a ticket's `user`: it is told how the request ended."""

    def replied(self, replied: Replied) -> None:
        """The reply came."""

    def failed(self, error: Exception) -> None:
        """There will be no reply."""


class Call:
    """A request of the kernel, from its start until the operation that made it goes on.

    `ticket` is None while it is parked: no slot is free, or too many bytes are in flight.
    """

    __slots__ = ("interrupted", "kind", "payload", "pid", "request", "task", "ticket", "unique")

    def __init__(self, unique: int, pid: int, request: Message, payload: Buffer) -> None:
        self.unique = unique
        self.pid = pid
        self.request = request
        self.payload = payload
        self.kind = KIND_OF_CHANNEL[ROWS[op_of(request)].channel]
        self.interrupted = False
        self.task: trio.lowlevel.Task | None = None
        """Who waits for the reply."""
        self.ticket: Ticket | None = None

    def replied(self, replied: Replied) -> None:
        """Lets the operation go on with the reply."""
        self._go_on(outcome.Value(replied))

    def failed(self, error: Exception) -> None:
        """Lets the operation go on with an exception."""
        self._go_on(outcome.Error(error))

    def _go_on(self, result: outcome.Outcome[Replied]) -> None:
        if self.task is not None:
            task, self.task = self.task, None
            trio.lowlevel.reschedule(task, result)

    def cancelled(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        """The mount ends while the operation waits."""
        self.task = None
        return trio.lowlevel.Abort.SUCCEEDED


class Link:
    """Requests in, replies out, from an established connection until the session is over."""

    def __init__(self, stream: Stream, session: ClientSession, connection: ClientConnection) -> None:
        assert session.agreed is not None
        self.agreed: HelloReply = session.agreed
        self.current = CurrentRequest()
        """The kernel's request that is being started; the filter's, once it is on the device."""
        self.calls: dict[int, Call] = {}
        """The calls that wait, by the kernel's `unique`."""
        self.error = 0
        """The errno of every call from now on, once the session is lost; else 0."""
        self.busy = trio.Event()
        """Set when a request is sent; whoever waits for it puts a new event here first."""
        self.connected = trio.Event()
        """Set while there is a connection, and when the session is over; there is a new event after each loss."""
        self.over = trio.Event()
        """Set when the session is lost, or the server has answered BYE."""
        self.closing = False
        """Whether the session is to end, so that it does not matter if the server has ended it."""
        self.late: Callable[[Replied], None] = lambda _replied: None
        """Is given the replies to abandoned requests."""
        self.make_space: Callable[[], Awaitable[None]] = _nothing_to_free
        """Is asked when the host has no space left: waits until all is freed that was given back."""
        self.freed = 0
        """How often something was freed on the host, so that a request might now find space."""
        self.tell_busy: Callable[[], None] = lambda: None
        """Asks others who send requests to set `busy` with the next one."""
        self.heard_by_others: Callable[[], float] = lambda: math.inf
        """When bytes came last on that one of their connections that has been silent longest, by trio's clock."""
        self.ping_others: Callable[[], None] = lambda: None
        """Asks for a sign of life on their connections."""
        self.on_lost: Callable[[], None] = lambda: None
        """Called when the connection is lost: others who send requests are to stop."""
        self.on_over: Callable[[int], None] = lambda _error: None
        """Called when the session is lost, with the errno of every request from now on, after all calls have failed."""
        self.session = session
        self.reason = ""
        """Why the last connection was lost."""
        self._session = session
        self._line: Line | None = Line(stream, connection)
        self._lost = trio.Event()
        self._parked: deque[Call] = deque()
        self.connected.set()

    @property
    def waits(self) -> bool:
        """Whether the server owes a reply."""
        return self._session.in_flight > 0

    def share_slots(self, store: Callable[[SlotLayout, ClientSlotStore], ClientSlotStore]) -> None:
        """Goes on with slots that others use as well; to be called before the first request."""
        self._session.share(store)

    @property
    def heard(self) -> float:
        """When bytes came last on that connection that has been silent longest, by trio's clock."""
        return min(self._line.heard, self.heard_by_others()) if self._line is not None else 0.0

    # ---- requests ---------------------------------------------------------------------------------------------------

    async def call(self, request: Message, payload: Buffer = b"", current: CurrentRequest | None = None) -> Replied:
        """Sends a request for an operation, and waits for its reply.

        The operation is the one that the kernel has just started, or `current` where that was some time ago.  While no
        slot is free, or no connection is there, it is parked, which keeps its place in the order.  Raises CallError:
        the reply's errno, EIO or ESTALE once the session is lost, EINTR where the program that asked is dying, ENOLCK
        for a request that waits for a lock while no lock slot is free.
        """
        current = self.current if current is None else current
        call = Call(current.unique, current.pid, request, payload)
        self.calls[call.unique] = call
        try:
            freed = self.freed
            replied = await self._run(call)
            if replied.errno in NO_SPACE:
                await self.make_space()
                if self.freed != freed:
                    replied = await self._run(call)
        finally:
            self.calls.pop(call.unique, None)
        if replied.errno:
            raise CallError(replied.errno)
        return replied

    async def _run(self, call: Call) -> Replied:
        if self.error:
            raise CallError(self.error)
        if call.interrupted:
            raise CallError(errno.EINTR)
        if call.kind is SlotKind.LOCK and not self._session.has_free(SlotKind.LOCK):
            raise CallError(errno.ENOLCK)
        call.task, call.ticket = trio.lowlevel.current_task(), None
        if self._parked or self._line is None or not self._start(call):
            self._parked.append(call)
            self._session.waiting(len(self._parked))
        replied: Replied = await trio.lowlevel.wait_task_rescheduled(call.cancelled)
        return replied

    def start_cleanup(self, request: Message, waiter: Waiter) -> bool:
        """Sends a batch of cleanup.  False where no slot is free for it, or no connection is there."""
        return self._line is not None and self._take(SlotKind.CLEANUP, request, b"", waiter) is not None

    def interrupt(self, call: Call) -> None:
        """Ends a parked call with EINTR; asks the server to end any other one early.

        Without a connection nothing is done now: a program that lives on after its signal waits, and `abandon` is for
        one that does not.  The server is asked when there is a connection again.
        """
        call.interrupted = True
        if call.task is None or self._line is None:
            return  # its reply has come, and if it is to run once more, it will not; or there is nobody to ask
        if call.ticket is None:
            self._unpark(call)
        else:
            self._line.send(self._line.connection.interrupt(call.ticket.slot, call.ticket.seq))

    def _unpark(self, call: Call) -> None:
        self._parked.remove(call)
        self._session.waiting(len(self._parked))
        call.failed(CallError(errno.EINTR))

    def abandon(self, call: Call) -> bool:
        """Ends a call with EINTR; the slot, if it has one, stays taken until the reply comes, which `late` is given.

        False, and nothing changes, where half of the slots are abandoned already; without a connection all may be,
        since nobody else could use them.
        """
        if call.ticket is None:
            self._unpark(call)
            return True
        if not self._session.abandon(call.ticket, all_may_be=self._line is None):
            return False
        call.failed(CallError(errno.EINTR))
        return True

    def ping(self) -> None:
        """Asks the server for a sign of life on every connection, if there is one."""
        if self._line is not None:
            self._line.send(self._line.connection.ping())
            self.ping_others()

    def bye(self) -> None:
        """Ends the session, if there is a connection; `over` is set when the server has answered."""
        if self._line is not None:
            self._line.send(self._line.connection.bye())

    def _start(self, call: Call) -> bool:
        call.ticket = self._take(call.kind, call.request, call.payload, call)
        return call.ticket is not None

    def _take(self, kind: SlotKind, request: Message, payload: Buffer, waiter: Waiter) -> Ticket | None:
        ticket = self._session.take(kind, request, payload)
        if ticket is not None:
            assert self._line is not None
            ticket.user = waiter
            self.busy.set()
            self._line.send(self._line.connection.request(ticket))
        return ticket

    def start_parked(self) -> None:
        """A slot or bytes have become free: the calls that waited longest take them."""
        if not self._parked or self._line is None:
            return
        while self._parked:
            call = self._parked.popleft()
            if call.kind is SlotKind.LOCK and not self._session.has_free(SlotKind.LOCK):
                call.failed(CallError(errno.ENOLCK))
                continue
            try:
                started = self._start(call)
            except Exception as error:  # a request that cannot be sent is the trouble of its operation alone
                call.failed(error)
                continue
            if not started:
                self._parked.appendleft(call)
                break
        self._session.waiting(len(self._parked))

    # ---- connections ------------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Sends and receives on the connection that is there, until it is lost or the session is over."""
        line = self._line
        if line is None:
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.send_queued)
            nursery.start_soon(self._receive, line)
            await self._lost.wait()
            nursery.cancel_scope.cancel()

    async def _receive(self, line: Line) -> None:
        reason = await line.receive(self._handle)
        if line is self._line:
            self.lose(reason)

    def _handle(self, event: Event) -> None:
        match event:
            case Replied():
                if event.ticket.abandoned:
                    self.late(event)
                else:
                    event.ticket.user.replied(event)
                self.start_parked()
            case Pong():
                pass  # that something came is all that matters
            case Ended():
                self.end(0)
            case Lost():
                self.lose(event.reason)
            case _:
                self.lose(f"the server sent what it may not send now: {type(event).__name__}")

    async def disconnected(self) -> None:
        """Waits until the connection is lost, or the session is over."""
        if self._line is not None:
            await self._lost.wait()

    def lose(self, reason: str) -> None:
        """The connection is dead; requests wait until there is another one, or `end` says that there will be none."""
        if self._line is None:
            return
        line, self._line = self._line, None
        line.close()
        self.reason = reason
        self.connected = trio.Event()
        self._lost.set()
        self.on_lost()

    def resumed(self, stream: Stream, connection: ClientConnection, resend: Sequence[Ticket]) -> None:
        """Goes on over another connection, on which the session was resumed, and first sends again what waits for its
        reply: each is run once, however often it is sent."""
        self._line = line = Line(stream, connection)
        self._lost = trio.Event()
        self.connected.set()
        for ticket in resend:
            line.send(connection.request(ticket))
        for call in self.calls.values():
            if call.interrupted and call.task is not None and call.ticket is not None:
                line.send(connection.interrupt(call.ticket.slot, call.ticket.seq))
        if resend:
            self.busy.set()
        self.start_parked()

    def end(self, error: int) -> None:
        """The session is over.  With an errno it is lost: every call that waits, and every later one, fails with it."""
        if self.over.is_set():
            return
        self.error = error
        self.over.set()
        self.lose("the session is over")
        self.connected.set()  # whoever waits for it finds that there will be none
        if not error:
            return
        for ticket in self._session.unanswered():
            ticket.user.failed(CallError(error))
        while self._parked:
            self._parked.popleft().failed(CallError(error))
        self.on_over(error)
