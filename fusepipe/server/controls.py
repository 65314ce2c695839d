"""The sockets on which a listener is asked to make room for another one."""

import socket
from collections.abc import Callable, Iterable
from contextlib import suppress

import trio

from fusepipe import log
from fusepipe.server.handover import (
    Ask,
    Conversation,
    HandoverError,
    Offer,
    Refused,
    Take,
    check_version,
    control_name,
    is_own,
)

_BACKLOG = 8
_PAUSE = 0.2

_logger = log.get_logger("server")


class Asker:
    """A new server that wants to take over: the conversation with it, and what it has."""

    def __init__(self, conversation: Conversation, ask: Ask) -> None:
        self.conversation = conversation
        self.ask = ask


class Controls:
    """One listening socket for each place.  For one trio loop."""

    def __init__(self) -> None:
        self._sockets: dict[str, socket.socket] = {}

    def open(self, place: str) -> None:
        """Listen there; where that cannot be, the log says so, and the server can be found by its other places only."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.bind(control_name(place))
            self._listen(place, sock)
        except OSError as error:
            sock.close()
            _logger.warning("serve --replace will not find this server", place=place, error=error)

    def take_over(self, place: str, fd: int) -> None:
        """Listen on another process's socket, which is this one's from now on."""
        self._listen(place, socket.socket(fileno=fd))

    def _listen(self, place: str, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.listen(_BACKLOG)  # of a socket that another process made: from now on this one is the peer of who connects
        self._sockets[place] = sock

    def at(self, places: Iterable[str]) -> dict[str, int]:
        """The descriptors of those at these places, which stay this one's."""
        return {place: self._sockets[place].fileno() for place in places if place in self._sockets}

    async def hear(self, answer: Callable[[Ask], Offer], take: Callable[[Asker], None]) -> None:
        """Answer who asks, until cancelled; `take` is called, and gets the conversation, when somebody says Take.

        `answer` may raise HandoverError: what the one who asks is told.
        """
        async with trio.open_nursery() as nursery:
            for sock in self._sockets.values():
                nursery.start_soon(self._accept, sock, nursery, answer, take)

    async def _accept(
        self,
        sock: socket.socket,
        nursery: trio.Nursery,
        answer: Callable[[Ask], Offer],
        take: Callable[[Asker], None],
    ) -> None:
        while True:
            await trio.lowlevel.wait_readable(sock)
            try:
                connection, _address = sock.accept()
            except BlockingIOError:
                continue
            except OSError:  # no descriptor is left: the one who asks waits
                await trio.sleep(_PAUSE)
                continue
            if is_own(connection):
                nursery.start_soon(self._converse, Conversation(connection), answer, take)
            else:
                connection.close()

    async def _converse(
        self, conversation: Conversation, answer: Callable[[Ask], Offer], take: Callable[[Asker], None]
    ) -> None:
        taken = False
        try:
            ask = await conversation.expect(Ask)
            check_version(ask)
            await conversation.say(answer(ask))
            await conversation.expect(Take)
            taken = True
            take(Asker(conversation, ask))
        except HandoverError as error:
            _logger.info("another server asked for the place of this one, and does not get it", cause=error.cause)
            with suppress(HandoverError):  # it is gone
                await conversation.say(Refused(error.cause, error.remedy))
        finally:
            if not taken:
                conversation.close()

    def close(self) -> None:
        """Listen no more."""
        for sock in self._sockets.values():
            with suppress(OSError):
                trio.lowlevel.notify_closing(sock)
            sock.close()
        self._sockets.clear()
