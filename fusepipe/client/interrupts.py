"""Signals for programs that wait for a request: the kernel's INTERRUPT.

The kernel sends it for every signal that reaches a waiting program, fatal or not, once per request, and the program
goes on waiting (fs/fuse/dev.c, request_wait_answer).  The server is asked to end the call, which it can where the call
can be interrupted on the host.  A call that cannot, such as an fsync on a stuck disk, would keep a killed program from
going away: so the client itself answers EINTR once the program is dying, and leaves the slot to the late reply.  A
program that lives on after its signal waits, as it would on a local disk.  While there is no connection nobody can be
asked, and a dying program gets its EINTR at once.
"""

from typing import Protocol

import trio

from fusepipe.client.identity import is_dying
from fusepipe.client.link import Call, Link

ABANDON_AFTER = 1.0
"""Seconds that the server has to end a call, and between looks at whether its program is dying."""


class Waiting(Protocol):
    """An interrupted request that waits for its reply."""

    @property
    def pid(self) -> int:
        """The task that made it."""

    def waits(self) -> bool:
        """Whether its reply has not come yet."""

    def abandon(self) -> bool:
        """Ends it with EINTR; False where that may not be now."""

    def again(self) -> None:
        """Asks the server once more to end it: it may not have been asked, or the connection may be another one."""


class _WaitingCall:
    """A call of the link's."""

    def __init__(self, link: Link, call: Call) -> None:
        self._link = link
        self._call = call
        self.pid = call.pid

    def waits(self) -> bool:
        return self._call.task is not None

    def abandon(self) -> bool:
        return self._link.abandon(self._call)

    def again(self) -> None:
        pass  # the link does that by itself


class Elsewhere(Protocol):
    """Requests that the link does not know, because native threads have sent them."""

    def interrupt(self, target: int) -> Waiting | bool:
        """Asks the server to end the request with this `unique`.  True where it has ended already; False where nobody
        has it."""


class Interrupts:
    """The interrupted calls that still wait."""

    def __init__(self, link: Link) -> None:
        self.elsewhere: Elsewhere | None = None
        """Is asked for what the link does not know."""
        self._link = link
        self._due: dict[Waiting, float] = {}
        self._interrupted = trio.Event()

    def interrupt(self, target: int) -> bool:
        """Begins to end the call with this `unique`.  False where no call has it."""
        call = self._link.calls.get(target)
        if call is None:
            return self._interrupt_elsewhere(target)
        self._link.interrupt(call)
        if call.task is not None:
            self._watch(_WaitingCall(self._link, call))
        return True

    def _interrupt_elsewhere(self, target: int) -> bool:
        if self.elsewhere is None:
            return False
        found = self.elsewhere.interrupt(target)
        if isinstance(found, bool):
            return found
        self._watch(found)
        return True

    def _watch(self, waiting: Waiting) -> None:
        patience = ABANDON_AFTER if self._link.connected.is_set() else 0.0
        self._due[waiting] = trio.current_time() + patience
        self._interrupted.set()

    async def run(self) -> None:
        """Abandons calls of dying programs, until it is cancelled."""
        while True:
            await self._interrupted.wait()
            self._interrupted = trio.Event()
            while self._due:
                await trio.sleep_until(min(self._due.values()))
                self._look(trio.current_time())

    def _look(self, now: float) -> None:
        for waiting in [waiting for waiting, due in self._due.items() if due <= now]:
            if not waiting.waits() or (is_dying(waiting.pid) and waiting.abandon()):
                del self._due[waiting]
            else:
                waiting.again()
                self._due[waiting] = now + ABANDON_AFTER
