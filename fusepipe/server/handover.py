"""What two listeners say to each other when one takes the place of the other, and how.

| the new one says | the old one says |
|---|---|
| `Ask`: what it has | `Offer`: what it would get, or `Refused`; nothing has changed yet |
| `Take` | `Refused`, or after a while `Source`, `Session`, `Pins` and `Locks`, each with descriptors, and `All` |
| `Ready`: it has everything | `Yours`: from now on the sessions are the new one's |

Until it has said `Yours` the old one can go on as before, and does so where the new one goes away or is silent.  The
new one touches nothing before it has heard it.

They speak over a Unix SOCK_SEQPACKET socket whose name is in the abstract namespace, made of the place of an address
(transport/places.py).  Only processes of the same user are listened to, at both ends: SO_PEERCRED, unix(7).
"""

import array
import errno
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, TypeAlias, TypeVar

import trio
from msgpack import packb, unpackb  # type: ignore[import-untyped]  # it brings no type information

from fusepipe.server.control import MAX_FDS, MAX_MESSAGE
from fusepipe.server.options import ServerError
from fusepipe.syscalls import TABLES_VERSION
from fusepipe.transport import peer_of

VERSION: Final = 2
"""Of these messages and of what session processes leave for each other; to be raised with every change of either."""

STEP_PATIENCE: Final = 30.0
"""Seconds in which the other one must have taken what is said, or have said what needs no work."""

_PAUSE: Final = 0.05  # before sending again where too many descriptors are on their way
_ROOM: Final = MAX_MESSAGE + 4096  # a message around a packet of a session process
_ERRORS: Final = "surrogateescape"


class HandoverError(ServerError):
    """No server takes the place of another one.  The one that runs goes on."""


@dataclass(frozen=True)
class Ask:
    """What the new server has: the places of its addresses, and device and inode number of each volume's directory."""

    version: int
    tables: int
    places: list[str]
    volumes: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Offer:
    """Which places the old one has, too, and how many seconds its sessions may need for what runs."""

    places: list[str]
    patience: float


@dataclass(frozen=True)
class Refused:
    """Nothing has changed at the one who says it."""

    cause: str
    remedy: str


@dataclass(frozen=True)
class Take:
    """The sessions are to be brought to a rest and handed over."""


@dataclass(frozen=True)
class Source:
    """A listening socket, of clients or (`control`) of servers that ask."""

    place: str
    control: bool


@dataclass(frozen=True)
class Session:
    """A session: the listener's notes of it, and with the memfd what keeping.Belongings consists of.

    `key` and `mounts` are broker.Authority's; without a key there is none.  Its `pins` messages with descriptors and
    `locks` messages follow.
    """

    session_id: bytes
    volume: str
    limits: dict[str, Any]
    address: str
    cid: int | None
    uid: int | None
    peer: str
    pins: int
    locks: int
    key: bytes = b""
    mounts: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Pins:
    """Some descriptors of inodes without a name, and the numbers of their nodes."""

    nodes: list[int]


@dataclass(frozen=True)
class Locks:
    """A packet of a session process for the next one, with its descriptors."""

    packet: bytes


@dataclass(frozen=True)
class All:
    """That was everything."""


@dataclass(frozen=True)
class Ready:
    """The new one has everything, and waits."""


@dataclass(frozen=True)
class Yours:
    """The old one will not go on any more."""


Message: TypeAlias = Ask | Offer | Refused | Take | Source | Session | Pins | Locks | All | Ready | Yours
_KINDS: Final[dict[str, type[Message]]] = {
    kind.__name__: kind for kind in (Ask, Offer, Refused, Take, Source, Session, Pins, Locks, All, Ready, Yours)
}
Expected = TypeVar("Expected", bound=Message)


def control_name(place: str) -> bytes:
    """The name of the socket on which the server at this place is asked."""
    return b"\0fusepipe-serve/" + place.encode()


def is_own(sock: socket.socket) -> bool:
    """Whether the process at the other end is the same user's."""
    return peer_of(sock).uid == os.geteuid()


class Conversation:
    """One end of it, in a trio loop.  Owns the socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self.pid = peer_of(sock).pid or 0
        """The other process; 0 where it is in another pid namespace."""

    async def say(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send a message, with descriptors that stay the caller's.  Raises HandoverError."""
        data = packb([type(message).__name__, asdict(message)], unicode_errors=_ERRORS)
        with trio.move_on_after(STEP_PATIENCE):
            while True:
                await trio.lowlevel.checkpoint()
                try:
                    socket.send_fds(self._socket, [data], fds)
                    return
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._socket)
                except OSError as error:
                    if error.errno != errno.ETOOMANYREFS:
                        raise _gone(error.strerror or str(error)) from error
                    await trio.sleep(_PAUSE)
        raise HandoverError("the other server does not listen", "see its log; end it, if it hangs")

    async def hear(self, patience: float = STEP_PATIENCE) -> tuple[Message, list[int]]:
        """The next message; its descriptors are the caller's.

        Raises HandoverError: with what the other one refused, or where it is gone or silent for `patience` seconds.
        """
        with trio.move_on_after(patience):
            while True:
                await trio.lowlevel.wait_readable(self._socket)
                try:
                    message, fds = self._receive()
                except BlockingIOError:
                    continue
                if isinstance(message, Refused):
                    raise HandoverError(message.cause, message.remedy)
                return message, fds
        raise HandoverError("the other server is silent", "see its log; end it, if it hangs")

    async def expect(self, kind: type[Expected], patience: float = STEP_PATIENCE) -> Expected:
        """The next message, which must be one of these.  Raises as `hear`."""
        message, fds = await self.hear(patience)
        for fd in fds:
            os.close(fd)
        if not isinstance(message, kind):
            raise _unexpected(type(message).__name__)
        return message

    def _receive(self) -> tuple[Message, list[int]]:
        fds = array.array("i")
        try:
            data, ancillary, _flags, _address = self._socket.recvmsg(
                _ROOM, socket.CMSG_LEN(MAX_FDS * fds.itemsize), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            raise
        except OSError as error:
            raise _gone(error.strerror or str(error)) from error
        for _level, _kind, rights in ancillary:
            fds.frombytes(rights[: len(rights) // fds.itemsize * fds.itemsize])
        try:
            if not data:
                raise _gone("it has closed the connection")
            kind, values = unpackb(data, unicode_errors=_ERRORS)
            return _KINDS[kind](**values), list(fds)
        except (ValueError, TypeError, KeyError) as error:
            for fd in fds:
                os.close(fd)
            raise _unexpected("what cannot be understood") from error

    def close(self) -> None:
        """Say nothing more.  Twice is no error."""
        if self._socket.fileno() != -1:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()


def check_version(ask: Ask) -> None:
    """Raises HandoverError where that server's sessions cannot be handed to this version, or from it."""
    if (ask.version, ask.tables) != (VERSION, TABLES_VERSION):
        raise HandoverError(
            f"the running server is of another version: it hands over in form {VERSION}.{TABLES_VERSION}, "
            f"and {ask.version}.{ask.tables} is wanted",
            "unmount its clients and stop it, then start the new version without --replace",
        )


def _gone(text: str) -> HandoverError:
    return HandoverError(f"the other server is gone: {text}", "see its log, and start again")


def _unexpected(what: str) -> HandoverError:
    return HandoverError(f"the other server said {what} where something else was due", "see its log")
