"""INTERRUPT: end the host's system call in which a request waits.

The thread that runs the request gets a signal whose handler does nothing, so the call that waits there ends with EINTR
(signal(7), "Interruption of system calls and library functions by signal handlers").  A signal that comes just before
the call is entered is lost, and some calls cannot be interrupted: so it is repeated until the request has ended.

An INTERRUPT may overtake its request, since any connection can carry either: then it is remembered, one per slot.
"""

import signal
import threading
from collections.abc import Container, Sequence
from contextlib import AbstractContextManager
from time import monotonic
from typing import NamedTuple, Protocol

FIRST_PAUSE = 0.01
"""Seconds between the first two signals; each further pause is half as long again, up to LONGEST_PAUSE."""

LONGEST_PAUSE = 0.25


class Request(NamedTuple):
    """A request that runs: its seq, and the thread (pthread_t); 0 while it waits for one."""

    seq: int
    thread: int


class Running(Protocol):
    """Which request runs in each slot, and which is not to run at all.

    Every call that names a slot is made under that slot's lock.
    """

    def start(self, slot: int, seq: int) -> bool:
        """The calling thread is about to run this request: False where it is not to run."""

    def stop(self, slot: int) -> None:
        """The slot's request has run."""

    def request(self, slot: int) -> Request | None:
        """The slot's request, while it runs."""

    def expect(self, slot: int, seq: int) -> None:
        """The request with this seq is not to run when it comes."""

    def slots(self) -> list[int]:
        """The slots whose requests run at this moment."""


class ListRunning:
    """A Running in Python lists."""

    def __init__(self, slots: int) -> None:
        self._running: list[Request | None] = [None] * slots
        self._early = [0] * slots

    def start(self, slot: int, seq: int) -> bool:
        if self._early[slot] == seq:
            return False
        self._running[slot] = Request(seq, threading.get_ident())
        return True

    def stop(self, slot: int) -> None:
        self._running[slot] = None

    def request(self, slot: int) -> Request | None:
        return self._running[slot]

    def expect(self, slot: int, seq: int) -> None:
        self._early[slot] = seq

    def slots(self) -> list[int]:
        return [slot for slot, running in enumerate(self._running) if running is not None]


class _Wanted:
    """An interrupt that goes on until the request has ended."""

    def __init__(self, seq: int) -> None:
        self.seq = seq
        self.pause = FIRST_PAUSE
        self.due = 0.0


class Interrupts:
    """Which thread runs which slot's request, and which of these requests are to end early.

    `start`, `stop` and `interrupt` of a slot are called under that slot's lock.  Lock order: slot locks, then `_lock`.
    """

    def __init__(
        self, slot_locks: Sequence[AbstractContextManager[object]], number: int, running: Running | None = None
    ) -> None:
        """`number` is the signal to send, for which a handler without SA_RESTART is installed; `running` is where
        native code sees it, too; None: only here.
        """
        self._slot_locks = slot_locks
        self._number = number
        self._running = running or ListRunning(len(slot_locks))
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._wanted: dict[int, _Wanted] = {}
        self._stopped = False

    def start(self, slot: int, seq: int) -> bool:
        """The calling thread is about to run this request: False where it was interrupted before it arrived."""
        return self._running.start(slot, seq)

    def stop(self, slot: int) -> None:
        """The slot's request has run; no signal is sent for it any more."""
        self._running.stop(slot)

    def interrupt(self, slot: int, seq: int, last_seq: int) -> None:
        """End this request early.  `last_seq` is that of the slot's last request."""
        running = self._running.request(slot)
        if running is not None and running.seq == seq:
            self._want(slot, seq)
        elif seq == last_seq + 1:
            self._running.expect(slot, seq)

    def interrupt_all(self, slots: Container[int] | None = None) -> None:
        """End everything early that runs now, in these slots or in all.  Called without any slot's lock."""
        for slot in self.running():
            if slots is not None and slot not in slots:
                continue
            with self._slot_locks[slot]:
                running = self._running.request(slot)
                if running is not None:
                    if not running.thread:
                        self._running.expect(slot, running.seq)
                    self._want(slot, running.seq)

    def running(self) -> list[int]:
        """The slots whose requests run at this moment."""
        return self._running.slots()

    def _want(self, slot: int, seq: int) -> None:
        with self._changed:
            self._wanted[slot] = _Wanted(seq)
            self._changed.notify()

    def close(self) -> None:
        """End `run`, soon."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def run(self) -> None:
        """Send the signals, in a thread of its own, until `close`."""
        while True:
            with self._changed:
                if self._stopped:
                    return
                now = monotonic()
                due = [slot for slot, wanted in self._wanted.items() if wanted.due <= now]
                if not due:
                    # Without anything to interrupt this ends with the next `interrupt` or with `close`.
                    self._changed.wait(min((w.due for w in self._wanted.values()), default=now + 3600) - now)
                    continue
            for slot in due:
                self._signal(slot)

    def _signal(self, slot: int) -> None:
        with self._slot_locks[slot]:
            with self._lock:
                wanted = self._wanted[slot]
                running = self._running.request(slot)
                if running is None or running.seq != wanted.seq:
                    del self._wanted[slot]
                    return
                wanted.due = monotonic() + wanted.pause
                wanted.pause = min(wanted.pause * 1.5, LONGEST_PAUSE)
            # The thread cannot end meanwhile: it would need the slot's lock to call `stop` before.
            if running.thread:
                signal.pthread_kill(running.thread, self._number)
