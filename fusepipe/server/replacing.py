"""The new server's side of taking over from a running one (handover.py)."""

import errno
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import trio

from fusepipe.server.belongings import Belongings, Room
from fusepipe.server.broker import Authority
from fusepipe.server.handover import (
    STEP_PATIENCE,
    VERSION,
    All,
    Ask,
    Conversation,
    HandoverError,
    Locks,
    Offer,
    Pins,
    Ready,
    Session,
    Source,
    Take,
    Yours,
    control_name,
    is_own,
)
from fusepipe.server.keeping import KeptSession
from fusepipe.server.options import ServerOptions
from fusepipe.server.volumes import Volume
from fusepipe.syscalls import TABLES_VERSION
from fusepipe.transport import Address, peer_of, place
from fusepipe.wire import ServerLimits

PeerKey: TypeAlias = tuple[str, int | None, int | None]
"""What tells one peer from another: the address that it came to, its machine or its user."""


@dataclass(frozen=True)
class ServedSession:
    """A session, and what the listener knows of its client."""

    kept: KeptSession
    volume: Volume
    key: PeerKey
    peer: str


@dataclass
class Taken:
    """What a server has been given: sockets by their places, and sessions."""

    sources: dict[str, int] = field(default_factory=dict)
    controls: dict[str, int] = field(default_factory=dict)
    sessions: list[ServedSession] = field(default_factory=list)

    async def aclose(self) -> None:
        """Give back what nobody has taken out."""
        for fd in (*self.sources.values(), *self.controls.values()):
            os.close(fd)
        self.sources.clear()
        self.controls.clear()
        while self.sessions:
            await self.sessions.pop().kept.aclose()


class Running:
    """The server that is to be replaced: `find`, `ask`, and when this one lacks nothing any more, `take`."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self.pid = conversation.pid
        self.places: frozenset[str] = frozenset()
        """Where it listens, of the places that it was asked for."""
        self._patience = 0.0

    @staticmethod
    async def find(addresses: Sequence[Address]) -> "Running | None":
        """The server at these addresses; None where there is none.  Raises HandoverError."""
        found: dict[int, Conversation] = {}
        try:
            for address in addresses:
                conversation = await _connect(address)
                if conversation is not None:
                    if conversation.pid in found:
                        conversation.close()
                    else:
                        found[conversation.pid] = conversation
            if len(found) > 1:
                raise HandoverError(
                    f"the addresses belong to {len(found)} servers: processes {', '.join(map(str, found))}",
                    "replace one at a time",
                )
            return Running(found.popitem()[1]) if found else None
        finally:
            for conversation in found.values():
                conversation.close()

    async def ask(self, addresses: Sequence[Address], volumes: Mapping[bytes, Volume]) -> None:
        """See whether it would hand over to a server with these.  Raises HandoverError, VolumeError."""
        directories = {}
        for volume in volumes.values():
            root = volume.open()
            status = os.fstat(root)
            os.close(root)
            directories[volume.name] = status.st_dev, status.st_ino
        places = [found for address in addresses if (found := place(address)) is not None]
        await self._conversation.say(Ask(VERSION, TABLES_VERSION, places, directories))
        offer = await self._conversation.expect(Offer)
        self.places = frozenset(offer.places)
        self._patience = offer.patience

    async def take(self, volumes: Mapping[bytes, Volume], options: ServerOptions, room: Room) -> Taken:
        """Take over: nothing of it is the other server's any more when this returns.

        Raises HandoverError, VolumeError, OSError; then it goes on.
        """
        taken = Taken()
        try:
            await self._conversation.say(Take())
            while not await self._receive(taken, volumes, options, room):
                pass
            await self._conversation.say(Ready())
            await self._conversation.expect(Yours)
        except BaseException:
            with trio.CancelScope(shield=True):
                await taken.aclose()
            raise
        finally:
            self.close()
        return taken

    async def _receive(self, taken: Taken, volumes: Mapping[bytes, Volume], options: ServerOptions, room: Room) -> bool:
        """Take what comes next; whether that was everything."""
        message, fds = await self._conversation.hear(self._patience + STEP_PATIENCE)
        if isinstance(message, Source) and len(fds) == 1:
            (taken.controls if message.control else taken.sources)[message.place] = fds[0]
            return False
        if isinstance(message, Session) and len(fds) == 1:
            authority = Authority(message.key, set(message.mounts)) if message.key else None
            limits = ServerLimits(**message.limits)
            belongings = Belongings(message.session_id, limits, fds[0], [], [], authority)
            try:
                for _ in range(message.pins + message.locks):
                    more, fds = await self._conversation.hear()
                    if isinstance(more, Pins):
                        belongings.pins.append((more.nodes, fds))
                    elif isinstance(more, Locks):
                        belongings.locks.append((more.packet, fds))
                    else:
                        raise HandoverError("the other server did not say all of a session", "see its log")
            except BaseException:
                belongings.close()
                raise
            volume = volumes.get(os.fsencode(message.volume))
            if volume is None:
                belongings.close()
                raise HandoverError(f"the other server has a session of volume {message.volume!r}", "see its log")
            kept = KeptSession(volume, options, room, belongings)
            key = message.address, message.cid, message.uid
            taken.sessions.append(ServedSession(kept, volume, key, message.peer))
            return False
        for fd in fds:
            os.close(fd)
        if not isinstance(message, All):
            raise HandoverError(f"the other server said {type(message).__name__} in between", "see its log")
        return True

    def close(self) -> None:
        """Leave it alone.  Twice is no error."""
        self._conversation.close()


async def _connect(address: Address) -> Conversation | None:
    """A conversation with the server at this address.  Raises HandoverError."""
    where = place(address)
    if where is None:
        return None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.setblocking(False)
    try:
        with trio.fail_after(STEP_PATIENCE):
            while code := sock.connect_ex(control_name(where)):
                if code != errno.EAGAIN:  # others ask at this moment
                    break
                await trio.sleep(0.05)
        if not code and not is_own(sock):
            raise HandoverError(
                f"the server at {address} is one of user {peer_of(sock).uid}", "run this one as that user, too"
            )
    except trio.TooSlowError:
        sock.close()
        raise HandoverError(f"the server at {address} does not listen", "see its log; end it, if it hangs") from None
    except BaseException:
        sock.close()
        raise
    if code:
        sock.close()
        return None
    return Conversation(sock)
