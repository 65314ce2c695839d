"""Running a command's asynchronous work until it ends or a signal asks for it to end."""

import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, TypeVar

import trio

from fusepipe.cli.exits import StoppedEarly

T = TypeVar("T")

STOPPING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_until_stopped(
    work: Callable[[], Awaitable[T]],
    *,
    is_ready: Callable[[], bool],
    stopping: Callable[[], None],
) -> T | None:
    """Run `work` in a trio loop of its own, once in the life of a process.

    SIGINT, SIGTERM and SIGHUP (the terminal is gone; unless it is ignored, as under nohup(1)) cancel it, just after
    `stopping()`; it then cleans up as its own documentation says.  Further ones change nothing, also after this has
    returned: a process that ends is not to be killed while it does.  Returns what `work` returned, or None when it was
    stopped.  Raises what it raised, and StoppedEarly when it was stopped before `is_ready`.
    """
    heard = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]

    async def until_stopped() -> tuple[T | None, int]:
        with trio.open_signal_receiver(*heard) as signals:
            async with trio.open_nursery() as nursery:
                stop = _Stop(is_ready, stopping)
                for number in before:
                    stop.stop(number)
                nursery.start_soon(stop.listen, signals)
                result: T | None = None
                with stop.scope:
                    result = await work()
                nursery.cancel_scope.cancel()
        return result, stop.early

    before: list[int] = []
    for number in heard:
        # For what comes before the receiver is there, and after it: at its end it puts these handlers back.
        signal.signal(number, lambda number, _frame: before.append(number))
    try:
        result, early = trio.run(until_stopped)
    finally:
        for number in heard:
            # A Python function would be replaced by the default when the interpreter shuts down.
            signal.signal(number, signal.SIG_IGN)
    if early:
        raise StoppedEarly(early)
    return result


class _Stop:
    """Cancels `scope` at the first signal; `early` is that signal's number where nothing was ready yet."""

    def __init__(self, is_ready: Callable[[], bool], stopping: Callable[[], None]) -> None:
        self.scope = trio.CancelScope()
        self.early = 0
        self._is_ready = is_ready
        self._stopping = stopping

    async def listen(self, signals: AsyncIterator[int]) -> None:
        """Hear all signals until cancelled; those after the first one are heard in order not to be delivered."""
        async for number in signals:
            self.stop(number)

    def stop(self, number: int) -> None:
        """A signal came."""
        if not self.scope.cancel_called:
            self.early = 0 if self._is_ready() else number
            self._stopping()
            self.scope.cancel()
