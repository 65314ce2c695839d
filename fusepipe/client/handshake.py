"""Shaking hands over a fresh connection: HELLO opens a session, ATTACH adds to it, RESUME and CONFIRM go on with it."""

import socket
from dataclasses import dataclass

import trio

from fusepipe import __version__
from fusepipe.client.errors import LinkLostError, MountError, RefusedError, StaleError, VolumeError
from fusepipe.client.link import Link
from fusepipe.client.tracing import link_class
from fusepipe.device.native import Channel
from fusepipe.transport import Stream
from fusepipe.wire import (
    MAGIC,
    MAJOR,
    MINOR,
    MINOR_MIN,
    ClientConnection,
    ClientSession,
    ErrorCode,
    HelloRequest,
    Op,
    Ticket,
)
from fusepipe.wire.client_session import Established, Lost, Pong, Refused, Send

HANDSHAKE_SECONDS = 60.0
"""How long a server that was reached may take to answer, however short --connect-timeout is.  It starts a process for
the session first: where guest and host are emulated, or have much else to do, that takes more than 10 seconds."""

RESUME_SECONDS = 10.0
"""How long the server may take where trying again on another connection costs nothing."""

CLEANUP_SLOTS = 4
LOCK_SLOTS = 64
MAX_TRANSFER = 1 << 20
MAX_IN_FLIGHT = 16 << 20
MAX_NAME = 255

SO_SNDBUFFORCE = 32  # include/uapi/asm-generic/socket.h
SEND_BUFFER = 4 * MAX_TRANSFER
"""Room for whole writes in a Unix socket: with the usual 208 KiB each one takes several turns of both processes, which
halves the throughput."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a client asks for: so many requests in service at once, and connections in all, as far as they are granted.

    `body_crc` asks for a checksum of every frame.
    """

    volume: str
    readers: int
    connections: int = 1
    body_crc: bool = False

    def hello(self) -> HelloRequest:
        """As HELLO says it."""
        return HelloRequest(
            magic=MAGIC,
            major=MAJOR,
            minor_min=MINOR_MIN,
            minor_max=MINOR,
            features=(),
            volume=self.volume.encode("utf-8", "surrogateescape"),
            request_slots=self.readers,
            cleanup_slots=CLEANUP_SLOTS,
            lock_slots=LOCK_SLOTS,
            connections=self.connections,
            max_read=MAX_TRANSFER,
            max_write=MAX_TRANSFER,
            max_in_flight=MAX_IN_FLIGHT,
            max_name=MAX_NAME,
            software=f"fusepipe {__version__}",
        )


def _make_room(sock: socket.socket) -> None:
    """Enlarges the buffer of a Unix socket: as root beyond the system's limit, else up to it (unix(7), socket(7))."""
    if sock.family != socket.AF_UNIX:
        return  # vsock has credits instead, of which the kernel knows best
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)


async def open_link(stream: Stream, offer: Offer) -> Link:
    """A link with a new session over a connected stream, which belongs to the link from then on.

    Raises MountError; then the stream is closed.
    """
    session = ClientSession(offer.hello(), body_crc=offer.body_crc)
    connection = session.connection()
    try:
        await _shake_hands(stream, connection, offer.volume)
    except BaseException:
        stream.close()
        raise
    return link_class()(stream, session, connection)


async def attach(session: ClientSession, stream: Stream) -> Channel:
    """A further connection of a session over a connected stream, for native threads.  Raises MountError."""
    try:
        connection = session.connection()
        await _shake_hands(stream, connection, "")
        sent, received, body_crc = connection.hand_over()
        return Channel(stream.detach(), sent, received, body_crc, stream.send_limit)
    finally:
        stream.close()


async def resume(session: ClientSession, stream: Stream) -> tuple[ClientConnection, list[Ticket]]:
    """Goes on with a session that has lost a connection, over a connected stream, which stays the caller's.

    Returns the connection, and the requests that must be sent again.  Raises MountError: StaleError where the session
    is over, any other where trying again makes sense.
    """
    connection = session.connection()
    return connection, await _shake_hands(stream, connection, "", RESUME_SECONDS)


async def _shake_hands(
    stream: Stream, connection: ClientConnection, volume: str, seconds: float = HANDSHAKE_SECONDS
) -> list[Ticket]:
    """Raises MountError; being cancelled and every error leave the connection lost."""
    _make_room(stream.socket)
    try:
        with trio.fail_after(seconds):
            return await _open(stream, connection, volume)
    except trio.TooSlowError as error:
        raise LinkLostError(
            f"the server has not answered for {seconds:g} seconds",
            "check that the address leads to a fusepipe server, and that its machine is not paused",
        ) from error
    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise _lost(str(error)) from error
    finally:
        if not connection.established:
            connection.lost()


async def _open(stream: Stream, connection: ClientConnection, volume: str) -> list[Ticket]:
    await stream.send_all(connection.start())
    resend: list[Ticket] = []
    while True:
        count = await stream.receive_into(connection.buffer())
        for event in connection.received(count):
            match event:
                case Send():
                    await stream.send_all(event.buffers)
                case Established():
                    resend = event.resend
                    if connection.opening is not Op.HELLO:
                        return resend
                    # Until something has come on it, the server does not know that we know the session, and would not
                    # keep it if the connection broke.
                    await stream.send_all(connection.ping())
                case Pong():
                    return resend
                case Refused():
                    raise _refusal(event, volume)
                case Lost():
                    raise _lost(event.reason)


def _lost(reason: str) -> LinkLostError:
    return LinkLostError(
        f"the connection broke before the server had answered: {reason}",
        "check that the address leads to a fusepipe server, and see that server's log",
    )


def _refusal(refused: Refused, volume: str) -> MountError:
    cause = f"the server refuses: {refused.text}"
    match refused.code:
        case ErrorCode.NO_SUCH_VOLUME:
            return VolumeError(
                f"the server has no volume {volume!r}: {refused.text}", "correct the name after the last slash"
            )
        case ErrorCode.FAILED:
            return VolumeError(cause, "see the server's log")
        case ErrorCode.VERSION:
            return RefusedError(cause, "install versions of fusepipe on both sides that understand each other")
        case ErrorCode.STALE:
            return StaleError(cause, "mount again")
        case ErrorCode.LIMIT:
            return RefusedError(cause, "end other mounts of that server, or raise its limit")
        case _:
            return RefusedError(cause, "see the server's log")
