"""Requests that the filter takes out before libfuse sees them: from the device to an operation, and back.

An operation is a method behind the boundary that gets the request's header and arguments and gives back the bytes of
its answer.  Each runs in a task of its own, so it may wait as long as it likes: for a slot, for the server, for a lock.
INTERRUPT finds it in `Link.calls` as it finds any other.
"""

import errno
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

import pyfuse3
import trio

from fusepipe import log
from fusepipe.device import CurrentRequest, Filter, TakenRequest

logger = log.get_logger("client")

Operation: TypeAlias = Callable[[CurrentRequest, bytes], Awaitable[bytes]]
"""(header, arguments) -> the body of the answer.  Behind the boundary, so all that it raises is FUSEError."""


class Taken:
    """Runs the operations of taken requests, and answers them."""

    def __init__(
        self, operations: Mapping[int, Operation], noted: Mapping[int, Callable[[CurrentRequest], None]] | None = None
    ) -> None:
        """`noted` says, by opcode, who is told of a request before the next one is read: tasks begin in any order."""
        self._operations = operations
        self._noted = noted or {}
        self._filter: Filter | None = None
        self._nursery: trio.Nursery | None = None

    def use(self, device_filter: Filter) -> None:
        """The filter is about to be put on the device: it is told which opcodes to take."""
        device_filter.take(self._operations)
        self._filter = device_filter

    def start(self, nursery: trio.Nursery) -> None:
        """Requests may come from now on; their tasks run in `nursery`, and those that wait end with it, unanswered."""
        self._nursery = nursery

    def arrived(self, request: TakenRequest) -> None:
        """A request was taken.  Called by the filter, inside a read of the device, in the loop's thread."""
        assert self._nursery is not None
        if (note := self._noted.get(request.current.opcode)) is not None:
            note(request.current)
        self._nursery.start_soon(self._run, request)

    async def _run(self, request: TakenRequest) -> None:
        current, arguments = request
        try:
            error, body = 0, await self._operations[current.opcode](current, arguments)
        except pyfuse3.FUSEError as failed:
            error, body = failed.errno, b""
        self._answer(current, error, body)

    def _answer(self, current: CurrentRequest, error: int, body: bytes) -> None:
        assert self._filter is not None
        try:
            self._filter.answer(current.unique, error, body)
        except OSError as failed:
            if failed.errno in (errno.ENOENT, errno.ENODEV):
                return  # the connection was aborted meanwhile: nobody waits
            logger.error("the kernel does not take an answer", opcode=current.opcode, bytes=len(body), error=failed)
            if body:  # the program must not wait for good
                self._answer(current, errno.EIO, b"")
