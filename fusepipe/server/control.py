"""What goes over the control socket from a launcher to its session process: first what to be, then connections.

Something comes back: what the session process could make of its sandbox, and, when it is told to leave, what the next
one needs.

The socket is a Unix SOCK_SEQPACKET pair, so a message is whole or not there; file descriptors travel beside it
(SCM_RIGHTS, unix(7)).  Both ends are the same version of the same program, and the guest never reaches it.
"""

import array
import socket
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeAlias

from msgpack import packb, unpackb  # type: ignore[import-untyped]  # it brings no type information

from fusepipe import log
from fusepipe.server.options import ServerOptions
from fusepipe.server.policy import Policy
from fusepipe.server.sandbox import Missing, Prepared, Report
from fusepipe.wire import ServerLimits

MAX_MESSAGE = 128 * 1024
"""More than the longest message, which carries a first frame of 32 KiB and a little."""

MAX_FDS = 250
"""Descriptors beside one message: the kernel takes 253 (unix(7))."""

SAY_PATIENCE: Final = 10
"""Seconds after which a session process goes on without what its launcher should have taken."""

_ERRORS = "surrogateescape"  # names that were given on the command line may be any bytes: os.fsdecode


@dataclass(frozen=True)
class Begin:
    """The first message: what session this is.  Comes with the memfd of its tables and the volume's directory.

    Behind them come a socket to its broker, where it has one (`broker`), and, where it is to outlive this process, one
    for descriptors that are kept for it (syscalls/pins.c).
    """

    session_id: bytes
    volume: str
    read_only: bool
    policy: Policy
    options: ServerOptions
    log: log.Settings
    prepared: Prepared
    broker: bool = False
    trial: bool = False
    """Only to see what sandbox can be had: the process ends once it has said so."""
    restored: bool = False
    """The tables are those of a process that has died."""
    pins: int = 0
    """How many descriptors come in messages of their own that were kept for it."""
    locks: int = 0
    """How many messages with locks come."""


@dataclass(frozen=True)
class Give:
    """A connection for the session, with its socket.  `first_frame` is b"" where nothing was received from it yet."""

    first_frame: bytes
    body_crc: bool


@dataclass(frozen=True)
class Pins:
    """Some of the descriptors that were kept, and the numbers of their nodes; without descriptors those are lost."""

    nodes: list[int]


@dataclass(frozen=True)
class Leave:
    """Finish what runs, hand in what the next process needs (`Locks`), and end, as options.LEFT or as ever."""


@dataclass(frozen=True)
class Stays:
    """The answer of a session that no other process could go on with: it serves on."""

    cause: str


@dataclass(frozen=True)
class Locks:
    """Locks that a session process held, with the open files that hold them, in this order.

    owners  of fcntl(2): node, owner, handle, pid in the guest, and ranges (first, last byte and type)
    flocks  of flock(2): handles
    """

    owners: list[tuple[int, int, int, int, list[tuple[int, int, int]]]]
    flocks: list[int]


Message: TypeAlias = Begin | Give | Pins | Report | Leave | Stays | Locks


def pair() -> tuple[socket.socket, socket.socket]:
    """A control socket: the launcher's end, which never blocks, and the session process's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    # Here, because it may not do so itself (seccomp.py).
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SAY_PATIENCE, 0))
    return ours, theirs


def send(control: socket.socket, message: Message, fds: list[int]) -> None:
    """Send one message with file descriptors, which stay open here.

    Raises OSError; BlockingIOError where the session process does not take its messages.
    """
    send_packet(control, packb([type(message).__name__, _plain(asdict(message))], unicode_errors=_ERRORS), fds)


def send_packet(control: socket.socket, packet: bytes, fds: list[int]) -> None:
    """Send what `receive_packet` gave, as `send`."""
    socket.send_fds(control, [packet], fds)


def receive(control: socket.socket) -> tuple[Message, list[int]] | None:
    """Wait for a message; the file descriptors are the caller's.  None: the launcher has closed its end, or is gone."""
    received = receive_packet(control)
    return None if received is None else (decode(received[0]), received[1])


def receive_packet(control: socket.socket) -> tuple[bytes, list[int]] | None:
    """The same without a look at what it says.  Raises OSError, BlockingIOError among them."""
    fds = array.array("i")
    try:
        data, ancillary, _flags, _address = control.recvmsg(
            MAX_MESSAGE, socket.CMSG_LEN(MAX_FDS * fds.itemsize), socket.MSG_CMSG_CLOEXEC
        )
    except ConnectionResetError:  # it went without having read what was said to it
        return None
    for _level, _kind, rights in ancillary:
        fds.frombytes(rights)
    return (data, list(fds)) if data else None


def decode(packet: bytes) -> Message:
    """What it says.  Raises ValueError where that is nothing."""
    try:
        kind, values = unpackb(packet, unicode_errors=_ERRORS)
        return _MESSAGES[kind](values)
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError("this is no message of a session process") from error


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Without the types that msgpack does not know."""
    return {
        name: sorted(value) if isinstance(value, frozenset) else _plain(value) if isinstance(value, dict) else value
        for name, value in values.items()
    }


def _begin(values: dict[str, Any]) -> Begin:
    options, settings = values.pop("options"), values.pop("log")
    limits = ServerLimits(**options.pop("limits"))
    trace = frozenset(settings.pop("trace"))
    policy = values.pop("policy")
    for name in ("map_uid", "map_gid"):
        policy[name] = tuple(map(tuple, policy[name]))
    squash_all = policy.pop("squash_all")
    values["policy"] = Policy(**policy, squash_all=None if squash_all is None else tuple(squash_all))
    return Begin(
        **values | {"prepared": Prepared(**values["prepared"])},
        options=ServerOptions(limits=limits, **options),
        log=log.Settings(**settings, trace=trace),
    )


def _report(values: dict[str, Any]) -> Report:
    return Report(tuple(values["held"]), tuple(Missing(**missing) for missing in values["missing"]))


_MESSAGES: Final[dict[str, Callable[[dict[str, Any]], Message]]] = {
    Begin.__name__: _begin,
    Give.__name__: lambda values: Give(**values),
    Pins.__name__: lambda values: Pins(**values),
    Report.__name__: _report,
    Leave.__name__: lambda values: Leave(**values),
    Stays.__name__: lambda values: Stays(**values),
    Locks.__name__: lambda values: Locks(**values),
}
