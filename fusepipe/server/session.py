"""A session as it runs: its connections, its threads, and the way of each request through them."""

import errno
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from time import monotonic, perf_counter, sleep

from fusepipe import log
from fusepipe.server.connection import Connection
from fusepipe.server.dispatcher import Dispatch
from fusepipe.server.interrupts import Interrupts
from fusepipe.server.leading import Led
from fusepipe.server.native import Native, NativeWatch
from fusepipe.server.threads import Threads
from fusepipe.server.watch import Watch
from fusepipe.wire import (
    BEGINS,
    ROWS,
    Op,
    RemoteProtocolError,
    ServerConnection,
    ServerSession,
    SlotKind,
    Verdict,
    encode_errno,
)
from fusepipe.wire.server_session import Answer, Arrived, ByeReceived, Interrupted, Opened

SLOW = 0.0001
"""Seconds; an operation that took longer is expected to be slow again the next times."""

EXPECTED_SLOW = 16
"""How many times it is expected; then one is tried without help."""

LOCK_WAITS = frozenset(op for op in Op if ROWS[op].channel == "lock")

UNWANTED_PATIENCE = 0.5
"""Seconds in which requests may end by themselves whose client is gone."""

FLUSH_PATIENCE = 1.0
"""Seconds at the end of a session in which its clients may read the last replies."""


class Session:
    """The threads of one session.  `add` gives it connections; it ends with BYE, or when the last of them has ended.

    Where it is to be kept for a client that comes back, it does not end with them, but says since when it waits.

    A connection's leader receives a request, runs it and answers it, all in one thread.  Where the same operation was
    slow just before, another thread is told to lead first; where it turns out to be slow, the watch sends one.  So a
    slow operation holds up nobody, and a quick one costs no switch between threads.

    At most one thread per request in service and one per connection are started, and one each that watches, sends
    signals, and waits for a client that does not read.

    Lock order: a slot's lock, `_lock`, a connection's send lock.  `next_event`, `fail` and `lost` of the wire take the
    slots' locks themselves and are called with none of these held.
    """

    def __init__(
        self,
        wire: ServerSession,
        slot_locks: Sequence[AbstractContextManager[object]],
        dispatch: Dispatch,
        *,
        interrupt_signal: int,
        keep: bool,
        on_end: Callable[[], None],
        logger: log.Logger,
        native: Native | None = None,
        settle: Dispatch | None = None,
        waits_since: float | None = None,
    ) -> None:
        """`slot_locks` are those that `wire` was given.  `keep`: it outlives its connections.  `on_end` is called, from
        any thread, when `ended` is set, and each time when the last connection has ended.
        `native`: what runs hot requests in C; its slot locks and traffic are `wire`'s.
        Where another process has served the session before, `settle` runs what that did not answer, and the client has
        been away since `waits_since`, by `monotonic`.

        Raises OSError where no threads can be started.
        """
        self.ended = threading.Event()
        """BYE came, no connection is left and none can be expected, or something unexpected happened: call `close`."""
        self.failed = False
        """Whether something unexpected happened; it has been logged."""
        self._keep = keep
        self._left = waits_since
        self._wire = wire
        self._slot_locks = slot_locks
        self._dispatch = dispatch
        self._settle = settle or dispatch
        self._on_end = on_end
        self._logger = logger
        self._complain = log.Sparing(logger.warning)
        self._slow = [0] * (max(Op) + 1)
        self._lock = threading.Lock()
        self._native = native
        self._connections: dict[ServerConnection, Led] = {}  # replaced, never changed: readers need no lock
        self._draining = self._leaving = False
        self._threads = Threads("session", self._unexpected, logger)
        self._interrupts = Interrupts(slot_locks, interrupt_signal, native.running if native else None)
        self._watch: Watch | NativeWatch
        if native is None:
            self._watch = Watch(lambda: self._connections.values(), self._relieve)
        else:
            self._watch = native.watch(self._relieve)
        for job in (self._watch.run, self._interrupts.run):
            if not self._threads.run(job):
                raise OSError(errno.EAGAIN, "no more threads can be started")

    # ---- connections ----

    def add(self, sock: socket.socket, first_frame: bytes = b"", *, body_crc: bool = False) -> None:
        """Take over a connected socket.  `first_frame` was received from it already: a whole frame, or nothing."""
        connection: Led
        if self._native is None:
            connection = Connection(sock, self._wire.connection(body_crc=body_crc))
        else:
            connection = self._native.connection(sock, self._wire, body_crc=body_crc)
        wire = connection.wire
        if first_frame:
            connection.feed(first_frame)
        with self._lock:
            refused = self._draining or self.ended.is_set()
            if not refused:
                self._connections = self._connections | {wire: connection}
        if refused or not self._threads.run(partial(self._lead, connection)):
            wire.lost()
            self._closed(connection)

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return bool(self._connections)

    @property
    def waits_since(self) -> float | None:
        """Since when, by `monotonic`, no connection carries requests; None while one does, and before the first."""
        return None if any(wire.current for wire in self._connections) else self._left

    def _closed(self, connection: Led) -> None:
        """Nobody leads the connection any more."""
        connection.shut()
        connection.end_receiving()
        with self._lock:
            self._connections = {wire: other for wire, other in self._connections.items() if other is not connection}
            last = not self._connections
            # A connection that never carried requests, of whoever it was, does not make the wait any longer.
            if connection.wire.opened and not any(wire.current for wire in self._connections):
                self._left = monotonic()
        if self._native is not None:
            self._native.forget(connection)
        if last and not (self._keep and self._wire.known):
            self._end()
        elif last:
            self._on_end()

    def _end(self) -> None:
        with self._lock:
            if self.ended.is_set():
                return
            self.ended.set()
        self._on_end()

    def _unexpected(self, error: BaseException) -> None:
        """A thread of the session ended with an exception: the session ends too."""
        self.failed = True
        self._logger.error("a session broke", error=error)
        self._end()

    # ---- leading ----

    def _lead(self, connection: Led) -> None:
        """Receive and do what comes, until another thread leads or the connection ends."""
        while True:
            event = connection.receive()
            if event is None:
                return
            if isinstance(event, Arrived):
                if not self._work(connection, event):
                    return
            elif isinstance(event, Answer):
                if connection.send(event.header):
                    self._flush_elsewhere(connection)
            elif isinstance(event, Interrupted):
                with self._slot_locks[event.slot]:
                    self._interrupts.interrupt(event.slot, event.seq, self._wire.store.load(event.slot).seq)
            elif isinstance(event, Opened):
                if event.op is Op.HELLO and self._native is not None:
                    assert self._wire.agreed is not None
                    self._native.agreed(self._wire.agreed)
                elif event.op is Op.CONFIRM:
                    self._logger.info("a session goes on over new connections")
                for wire in event.superseded:
                    if wire in self._connections:
                        self._connections[wire].shut()
            elif isinstance(event, ByeReceived):
                self._end()
            else:
                if event.error is not None and not connection.hung_up:
                    self._complain("a client broke the protocol", cause=event.reason)
                else:
                    self._logger.debug("a connection ended", cause=event.reason)
                break
        self._closed(connection)

    def _relieve(self, connection: Led, job: int) -> bool:
        """Send a thread to lead where the leader is busy with `job`: whether one comes, else the leader has to."""
        if connection.relief_comes:
            return True
        connection.relief_comes = True
        if self._threads.run(partial(self._take_over, connection, job)):
            return True
        connection.relief_comes = False
        return False

    def _take_over(self, connection: Led, job: int) -> None:
        connection.relief_comes = False
        if connection.supersede(job):
            self._lead(connection)

    # ---- requests ----

    def _work(self, connection: Led, event: Arrived) -> bool:
        """Do with a request what its slot says.  Returns whether the thread still leads."""
        slot, seq = event.slot, event.seq
        try:
            with self._slot_locks[slot]:
                # Under the lock: `close` passes through it, and knows that nothing begins afterwards.
                draining = self._draining
                verdict = Verdict.DROP if draining else connection.wire.arrive(event)
                if verdict in BEGINS:
                    to_run = self._interrupts.start(slot, seq)
                elif verdict is Verdict.REPLAY:
                    kept = self._wire.store.reply(slot)
                    if kept is not None and connection.send(*kept):
                        self._flush_elsewhere(connection)
        except RemoteProtocolError as error:
            answer, close = connection.wire.fail(error)
            connection.send(answer.header)
            self._complain("a client broke the protocol", cause=close.reason)
            self._closed(connection)
            return False
        if draining:
            # The connection stays open for the replies of what runs, until `close` has seen their end.
            connection.end_receiving()
            return False
        if verdict not in BEGINS:
            return True
        settles = verdict is Verdict.SETTLE
        # Interrupted before it came: EINTR would say that it has had no effect, which is not known of what is settled.
        refused = 0 if to_run else errno.EIO if settles and event.op is not Op.LOOKUP else errno.EINTR
        return self._run(connection, event, refused, self._settle if settles else self._dispatch)

    def _run(self, connection: Led, event: Arrived, refused: int, dispatch: Dispatch) -> bool:
        """Run a request, unless `refused` is an errno, and answer it.  Returns whether the thread still leads."""
        slot, seq, op = event.slot, event.seq, event.op
        job = connection.begin()
        expected = self._slow[op]
        if op in LOCK_WAITS:
            # It may last for ever, and what ends it may come on this very connection.
            if not self._relieve(connection, job):
                refused = errno.ENOLCK
        elif expected:
            self._slow[op] = expected - 1
            self._relieve(connection, job)
        # Also where a thread was sent: it may have been sent for a request before this one, and then does not lead.
        self._watch.begun()
        begin = perf_counter()
        header, payload = (encode_errno(slot, seq, refused), b"") if refused else dispatch(event)
        if not expected and perf_counter() - begin > SLOW:
            self._slow[op] = EXPECTED_SLOW
        with self._slot_locks[slot]:
            self._interrupts.stop(slot)
            if self._leaving and dispatch is self._dispatch and header == encode_errno(slot, seq, errno.EINTR):
                self._wire.undo(slot, seq)
                wire = None
            else:
                wire = self._wire.finish(slot, seq, header, payload)
            route = None if wire is None else self._connections.get(wire)
            # Under the slot's lock, so that `close` can tell when the last reply has been sent.
            unsent = route is not None and route.send(header, payload)
        if route is not None and unsent:
            route.flush()
        return connection.end(job)

    def _flush_elsewhere(self, connection: Led) -> None:
        """Let another thread wait for the client to read."""
        if not self._threads.run(connection.flush):
            connection.shut()

    # ---- the end ----

    def close(self, patience: float) -> None:
        """Receive nothing more, let what runs end and be answered, then close everything.

        Takes little more than `patience` seconds: what still runs after half of it is interrupted (after half a second
        where the session has ended and nobody waits for answers), and what still runs at its end is given up: it ends
        with the process.  To be called once, from a thread that is not the session's.
        """
        given_up = self._drain(patience)
        for connection in self._connections.values():
            connection.shut()
        self._watch.stop()
        self._interrupts.close()
        ended = self._threads.stop(0.0 if given_up else FLUSH_PATIENCE)
        if self._native is not None:
            self._native.stop(0.0 if given_up else FLUSH_PATIENCE, may_free=ended)

    def leave(self, patience: float) -> bool:
        """What `close` does first, for another process that goes on with the session: the client is to notice nothing.

        What is interrupted is not answered, and has not run when it comes again; waits for locks are, at once.  The
        connections stay open until this process ends, which is to be the next thing that it does.  Returns whether
        nothing runs any more.
        """
        self._leaving = True
        given_up = self._drain(patience)
        # A request that was interrupted before it came does not count as running, and yet has to be answered.
        end = monotonic() + FLUSH_PATIENCE
        while not given_up and self._wire.busy and monotonic() < end:
            sleep(0.002)
        return not self._wire.busy

    def _drain(self, patience: float) -> int:
        """Receive nothing more, and let what runs end and be answered: how many requests were given up."""
        self._draining = True
        if self._native is not None:
            self._native.drain(leaving=self._leaving)
        begin = monotonic()
        for lock in self._slot_locks:
            with lock:
                pass  # whoever begins a request from now on has seen that it is too late
        if self._leaving:
            self._interrupts.interrupt_all(self._wire.layout.range(SlotKind.LOCK))
        grace = min(UNWANTED_PATIENCE, patience / 2) if self.ended.is_set() else patience / 2
        interrupted = False
        while self._interrupts.running() and monotonic() - begin < patience:
            if not interrupted and monotonic() - begin > grace:
                self._interrupts.interrupt_all()
                interrupted = True
            sleep(0.002)
        given_up = self._interrupts.running()
        if given_up:
            self._logger.warning("requests did not end in time", requests=len(given_up))
        for lock in self._slot_locks:
            with lock:
                pass  # whoever ended a request has sent its reply
        end = monotonic() + FLUSH_PATIENCE
        while self._unsent() and monotonic() < end:
            sleep(0.002)
        return len(given_up)

    def _unsent(self) -> bool:
        """Whether there are replies that the clients have not got yet."""
        made = self._native is not None and self._native.unsettled
        return made or any(connection.unsent for connection in self._connections.values())
