"""The link to the server: one session over one connection.

Everything here belongs to one trio loop.  There is no `await` between taking a slot and handing its frame to the socket
or to the queue behind it, so frames leave in the order in which they were numbered.
"""

import errno
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

import outcome
import trio

from fusepipe import log
from fusepipe.client.errors import CallError
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

logger = log.get_logger("client")

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


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
    """Requests in, replies out, from an established connection until it is lost or closed."""

    def __init__(self, stream: Stream, session: ClientSession, connection: ClientConnection) -> None:
        assert session.agreed is not None
        self.agreed: HelloReply = session.agreed
        self.current = CurrentRequest()
        """The kernel's request that is being started; the filter's, once it is on the device."""
        self.calls: dict[int, Call] = {}
        """The calls that wait, by the kernel's `unique`."""
        self.lost = False
        self.busy = trio.Event()
        """Set when a request is sent; whoever waits for it puts a new event here first."""
        self.over = trio.Event()
        """Set when the link is lost, or the server has answered BYE."""
        self.heard = 0.0
        """When bytes came last, by trio's clock."""
        self.late: Callable[[Replied], None] = lambda _replied: None
        """Is given the replies to abandoned requests."""
        self.make_space: Callable[[], Awaitable[None]] = _nothing_to_free
        """Is asked when the host has no space left: waits until all is freed that was given back."""
        self.freed = 0
        """How often something was freed on the host, so that a request might now find space."""
        self.tell_busy: Callable[[], None] = lambda: None
        """Asks others who send requests to set `busy` with the next one."""
        self.on_lost: Callable[[], None] = lambda: None
        """Called when the link is lost, after all its calls have failed."""
        self.session = session
        self._stream = stream
        self._session = session
        self._connection = connection
        self._parked: deque[Call] = deque()
        self._queue: list[Buffer] = []
        self._queued = trio.Event()
        self._failure = ""

    @property
    def waits(self) -> bool:
        """Whether the server owes a reply."""
        return self._session.in_flight > 0

    def share_slots(self, store: Callable[[SlotLayout, ClientSlotStore], ClientSlotStore]) -> None:
        """Goes on with slots that others use as well; to be called before the first request."""
        self._session.share(store)

    def further(self) -> ClientConnection:
        """One more connection of the session, for others to use."""
        return self._session.connection()

    # ---- requests ---------------------------------------------------------------------------------------------------

    async def call(self, request: Message, payload: Buffer = b"", current: CurrentRequest | None = None) -> Replied:
        """Sends a request for an operation, and waits for its reply.

        The operation is the one that the kernel has just started, or `current` where that was some time ago.  While no
        slot is free it is parked, which keeps its place in the order.  Raises CallError: the reply's errno, EIO once
        the link is lost, EINTR where the program that asked is dying, ENOLCK for a request that waits for a lock while
        no lock slot is free.
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
        if self.lost:
            raise CallError(errno.EIO)
        if call.interrupted:
            raise CallError(errno.EINTR)
        if call.kind is SlotKind.LOCK and not self._session.has_free(SlotKind.LOCK):
            raise CallError(errno.ENOLCK)
        call.task = trio.lowlevel.current_task()
        if self._parked or not self._start(call):
            self._parked.append(call)
            self._session.waiting(len(self._parked))
        replied: Replied = await trio.lowlevel.wait_task_rescheduled(call.cancelled)
        return replied

    def start_cleanup(self, request: Message, waiter: Waiter) -> bool:
        """Sends a batch of cleanup.  False where no slot is free for it, or the link is lost."""
        return not self.lost and self._take(SlotKind.CLEANUP, request, b"", waiter) is not None

    def interrupt(self, call: Call) -> None:
        """Ends a parked call with EINTR; asks the server to end any other one early."""
        call.interrupted = True
        if call.task is None:
            return  # its reply has come; if it is to run once more, it will not
        if call.ticket is None:
            self._parked.remove(call)
            self._session.waiting(len(self._parked))
            call.failed(CallError(errno.EINTR))
        elif not self.lost:
            self._send(self._connection.interrupt(call.ticket.slot, call.ticket.seq))

    def abandon(self, call: Call) -> bool:
        """Ends a call with EINTR; its slot stays taken until the reply comes, which `late` is given.

        False, and nothing changes, where half of the slots are abandoned already.
        """
        assert call.ticket is not None
        if not self._session.abandon(call.ticket):
            return False
        call.failed(CallError(errno.EINTR))
        return True

    def ping(self) -> None:
        """Asks the server for a sign of life."""
        self._send(self._connection.ping())

    def bye(self) -> None:
        """Ends the session; `over` is set when the server has answered."""
        self._send(self._connection.bye())

    def _start(self, call: Call) -> bool:
        call.ticket = self._take(call.kind, call.request, call.payload, call)
        return call.ticket is not None

    def _take(self, kind: SlotKind, request: Message, payload: Buffer, waiter: Waiter) -> Ticket | None:
        ticket = self._session.take(kind, request, payload)
        if ticket is not None:
            ticket.user = waiter
            self.busy.set()
            self._send(self._connection.request(ticket))
        return ticket

    def start_parked(self) -> None:
        """A slot or bytes have become free: the calls that waited longest take them."""
        if not self._parked:
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

    # ---- sending ----------------------------------------------------------------------------------------------------

    def _send(self, buffers: list[Buffer]) -> None:
        if self._queue:
            self._queue += buffers
            return
        try:
            self._queue = self._stream.send_now(buffers)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._sending_failed(error)
        if self._queue:
            self._queued.set()

    async def send_queued(self) -> None:
        """Sends what the socket did not take at once, for as long as the link lives."""
        try:
            while True:
                await self._queued.wait()
                self._queued = trio.Event()
                while self._queue:
                    await self._stream.wait_send_all_might_not_block()
                    self._queue = self._stream.send_now(self._queue)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._sending_failed(error)

    def _sending_failed(self, error: Exception) -> None:
        """Leaves the rest to `receive`, which closing the stream wakes: the caller may be about to wait for a reply."""
        self._failure = self._failure or str(error)
        self._stream.close()

    # ---- receiving --------------------------------------------------------------------------------------------------

    async def receive(self) -> None:
        """Hands out replies until the connection ends."""
        connection, stream = self._connection, self._stream
        try:
            while not self.over.is_set():
                count = await stream.receive_into(connection.buffer())
                self.heard = trio.current_time()
                for event in connection.received(count):
                    self._handle(event)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.lose(self._failure or str(error))

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
                self.over.set()
            case Lost():
                self.lose(event.reason)
            case _:
                self.lose(f"the server sent what it may not send now: {type(event).__name__}")

    def lose(self, reason: str) -> None:
        """The connection is dead: every call that waits, and every later one, fails with EIO."""
        if self.lost or self.over.is_set():
            return
        self.lost = True
        self._connection.lost()
        logger.error("the connection to the server is lost", reason=reason)
        for ticket in self._session.unanswered():
            ticket.user.failed(CallError(errno.EIO))
        while self._parked:
            self._parked.popleft().failed(CallError(errno.EIO))
        self.on_lost()
        self._queue.clear()
        self._stream.close()
        self.over.set()
