"""One connection as the link uses it: frames out, events in, until it is lost."""

from collections.abc import Callable

import trio

from fusepipe.transport import Buffer, Stream
from fusepipe.wire import ClientConnection
from fusepipe.wire.client_session import Event


class Line:
    """An established connection.  For one trio loop; what is sent leaves in the order in which it was numbered.

    There is no `await` between making a frame and `send`, which hands it to the socket or to the queue behind it.
    """

    def __init__(self, stream: Stream, connection: ClientConnection) -> None:
        """Takes over the stream."""
        self.connection = connection
        self.heard = trio.current_time()
        """When bytes came last, by trio's clock."""
        self._stream = stream
        self._queue: list[Buffer] = []
        self._queued = trio.Event()
        self._failure = ""

    # ---- sending ----------------------------------------------------------------------------------------------------

    def send(self, buffers: list[Buffer]) -> None:
        """Sends frames, as soon as the socket takes them.  A connection that is broken takes everything: `receive`
        says that it is."""
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
        """Sends what the socket did not take at once, for as long as the connection lives."""
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
        self._queue.clear()
        self._stream.close()

    # ---- receiving --------------------------------------------------------------------------------------------------

    async def receive(self, handle: Callable[[Event], None]) -> str:
        """Gives `handle` what comes, and returns why nothing more will.  The last event may be Lost."""
        connection = self.connection
        try:
            while not connection.dead:
                count = await self._stream.receive_into(connection.buffer())
                self.heard = trio.current_time()
                for event in connection.received(count):
                    handle(event)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            return self._failure or str(error)
        return self._failure or "the connection was closed"

    def close(self) -> None:
        """The connection is dead; `receive` returns.  Doing it twice is no error."""
        self.connection.lost()
        self._queue.clear()
        self._stream.close()
