"""What happens when the connection is lost: the session goes on over another one, if and while that is waited for.

The rules are the protocol's (protocol/SPEC.md, "After a loss"), here are the policy and the dialling.
"""

import errno
from collections.abc import Awaitable, Callable

import trio

from fusepipe import log
from fusepipe.client.errors import LinkLostError, MountError, StaleError
from fusepipe.client.handshake import resume
from fusepipe.client.link import Link
from fusepipe.client.native_path import NativePath, close, further_connections
from fusepipe.device.native import Channel
from fusepipe.transport import ConnectError, Stream
from fusepipe.wire import ClientConnection

logger = log.get_logger("client")

FIRST_PAUSE = 0.05
"""Seconds between the first two attempts; each further pause is twice as long, up to LONGEST_PAUSE."""

LONGEST_PAUSE = 1.0

ATTEMPT_SECONDS = 10.0
"""How long one attempt to connect may take: what is dialled may have gone away without a word."""


class Resuming:
    """The connections of a link, one after another, until its session is over."""

    def __init__(self, link: Link, connect: Callable[[], Awaitable[Stream]], patience: float) -> None:
        """`connect` makes one attempt, or several.  `patience` is for how many seconds requests wait for a connection
        after a loss: math.inf for as long as it takes, 0 not at all."""
        self.native: NativePath | None = None
        """Has connections of its own, where there are native threads."""
        self._link = link
        self._connect = connect
        self._patience = patience

    async def attach(self, threads: int, attempts: int) -> list[Channel]:
        """The further connections of a new session, one for each native thread, as far as the server grants them.

        Where a connection breaks meanwhile, the session goes on over another one, and so often it is tried at most.
        Raises MountError, and what dialling raises.
        """
        link = self._link
        wanted = min(threads, link.agreed.connections - 1)
        for left in reversed(range(attempts)):
            try:
                if link.connected.is_set():
                    return await further_connections(link.session, self._connect, wanted)
                return (await self._resume_once(wanted))[1]
            except LinkLostError as error:
                logger.info("a connection broke before there was a mount", cause=error.cause)
                link.lose(error.cause)
                if not left:
                    raise
        raise AssertionError("there is at least one attempt")

    async def run(self) -> None:
        """Sends and receives until the session is over."""
        link = self._link
        while True:
            await link.serve()
            if link.over.is_set():
                return
            if not self._patience:
                logger.error("the connection to the server is lost", reason=link.reason)
                link.end(errno.EIO)
                return
            await self._lost()

    async def _lost(self) -> None:
        """Waits until the session goes on, or ends it."""
        link, begin = self._link, trio.current_time()
        logger.warning("the connection to the server is lost", reason=link.reason, requests="wait")
        with trio.move_on_after(self._patience):
            try:
                resent = await self._until_resumed()
            except StaleError as error:
                if link.closing:
                    link.end(0)  # the server has had BYE
                else:
                    logger.error("the session is stale, and the mount ends", cause=error.cause)
                    link.end(errno.ESTALE)
                return
            seconds = round(trio.current_time() - begin, 1)
            logger.warning("the session goes on over a new connection", seconds=seconds, resent=resent)
            return
        logger.error("the server has not come back in time, and the mount ends", seconds=self._patience)
        link.end(errno.EIO)

    async def _until_resumed(self) -> int:
        """Tries without an end; how many requests were sent again.  Raises StaleError."""
        pause = FIRST_PAUSE
        while True:
            try:
                resent, channels = await self._resume_once(0 if self.native is None else self.native.connections)
            except StaleError:
                raise
            except (MountError, ConnectError, OSError) as error:
                # Whatever it is may pass: the server is being restarted, or a frame was damaged on its way.
                logger.debug("the session cannot go on yet", cause=str(error))
            else:
                if self.native is not None:
                    self.native.resume(channels)
                return resent
            await trio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _resume_once(self, wanted: int) -> tuple[int, list[Channel]]:
        """How many requests were sent again, and so many further connections.  Raises MountError, and what dialling
        raises."""
        link = self._link
        if self.native is not None:
            await self.native.at_rest()
        stream = await self._dial()
        try:
            connection, resend = await resume(link.session, stream)
            channels = await self._further_channels(connection, wanted)
        except BaseException:
            stream.close()
            raise
        link.resumed(stream, connection, resend)
        return len(resend), channels

    async def _further_channels(self, connection: ClientConnection, wanted: int) -> list[Channel]:
        """So many connections beside that one.  Raises MountError, and what dialling raises."""
        try:
            channels = await further_connections(self._link.session, self._dial, wanted)
        except BaseException:
            connection.lost()
            raise
        if len(channels) < wanted or not connection.established:
            close(channels)
            connection.lost()
            raise LinkLostError("a connection broke while others were made", "try again")
        return channels

    async def _dial(self) -> Stream:
        with trio.move_on_after(ATTEMPT_SECONDS):
            return await self._connect()
        raise TimeoutError("the address does not answer")
