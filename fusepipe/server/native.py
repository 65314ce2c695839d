"""A session whose hot requests run in C (syscalls/native.h), and what it shares with the Python that runs the rest.

The thread that leads a connection waits in C.  There it receives, runs and answers what is usual, and comes back with
what is not; that goes the same way as without native code.  Slots, routes, bytes in flight and interrupts are C's, so
that both see the same; so are numbers of frames and what waits to be sent.
"""

import os
import socket
from collections.abc import Callable
from typing import Final

from fusepipe import log
from fusepipe.server.interrupts import Request
from fusepipe.server.leading import Led
from fusepipe.server.tables import Tables
from fusepipe.syscalls import Ended, NativeSession, NativeSocket
from fusepipe.transport import Buffer, send_limit
from fusepipe.wire import Frame, HelloReply, LocalProtocolError, RemoteProtocolError, ServerConnection, ServerSession
from fusepipe.wire.frames import MAX_FIRST_HEADER
from fusepipe.wire.server_session import Close, Event


class Native:
    """Native code for one session: `slot_locks` and `traffic` are for its ServerSession, all of it for its Session."""

    def __init__(self, tables: Tables, interrupt_signal: int, logger: log.Logger) -> None:
        """`tables` must live longer.  Raises MemoryError."""
        complain = log.Sparing(logger.error)

        def wrong(numbers: list[int]) -> None:
            complain("the client gave back what it does not have", numbers=numbers[:8], count=len(numbers))

        self._session = NativeSession(tables.tree, interrupt_signal, wrong)
        self._wires: dict[int, ServerConnection] = {}
        self._led: dict[int, Led] = {}
        self.slot_locks: Final = self._session.slot_locks
        self.traffic: Final = NativeTraffic(self._session, self._wires)
        self.running: Final = NativeRunning(self._session)

    def watch(self, relieve: Callable[[Led, int], object]) -> "NativeWatch":
        """What looks after the leaders of its connections; `relieve` as for a Watch."""
        return NativeWatch(self._session, self._led, relieve)

    def connection(self, sock: socket.socket, wire: ServerSession, *, body_crc: bool) -> "NativeConnection":
        """Take over a connected socket; the caller leads."""
        sock.setblocking(True)  # for receiving; sends are told not to wait
        native = NativeSocket(self._session, sock, send_limit(sock))
        frames = _Frames(native)
        connection = wire.connection(body_crc=body_crc, source=frames, sink=_Sink(), on_current=native.set_current)
        self._wires[native.number] = connection
        self.traffic.sockets[connection] = native
        led = self._led[native.number] = NativeConnection(native, connection, frames)
        return led

    def forget(self, connection: Led) -> None:
        """The connection has ended."""
        native = self.traffic.sockets.pop(connection.wire, None)
        if native is not None:
            self._wires.pop(native.number, None)
            self._led.pop(native.number, None)

    def agreed(self, granted: HelloReply) -> None:
        """HELLO has been answered: from now on C takes requests."""
        self._session.agree(
            granted.request_slots,
            granted.cleanup_slots,
            granted.connections,
            granted.max_read,
            granted.max_name,
            granted.max_in_flight,
        )

    def drain(self, *, leaving: bool) -> None:
        """From now on every request comes to Python; `leaving`: what is interrupted is not answered, nor done."""
        self._session.drain(leaving=leaving)

    def has_locks(self) -> None:
        """Handles have locks already."""
        self._session.has_locks()

    @property
    def unsettled(self) -> bool:
        """Whether there are replies that were made and have not been sent."""
        return self._session.unsettled

    def stop(self, patience: float, *, may_free: bool) -> None:
        """End the workers.  `may_free`: no other thread uses any of this any more."""
        self._session.stop(patience, may_free=may_free)


class NativeWatch:
    """As watch.Watch, in C."""

    def __init__(self, session: NativeSession, led: dict[int, Led], relieve: Callable[[Led, int], object]) -> None:
        self._session = session
        self._led = led
        self._relieve = relieve
        self.begun: Final = session.rouse
        self.stop: Final = session.stop_watch

    def run(self) -> None:
        """The life of the watch, until `stop`."""
        while (found := self._session.watch()) is not None:
            number, job = found
            connection = self._led.get(number)
            if connection is not None:
                self._relieve(connection, job)


class NativeTraffic:
    """A wire.server_session.Traffic that C shares."""

    def __init__(self, session: NativeSession, wires: dict[int, ServerConnection]) -> None:
        self.sockets: dict[ServerConnection, NativeSocket] = {}
        self._session = session
        self._wires = wires

    @property
    def in_flight(self) -> int:
        return self._session.in_flight

    def charge(self, slot: int, size: int, _limit: int) -> bool:
        return self._session.charge(slot, size)

    def discharge(self, slot: int) -> None:
        self._session.discharge(slot)

    def set_route(self, slot: int, connection: ServerConnection) -> None:
        native = self.sockets.get(connection)
        if native is not None:
            self._session.set_route(slot, native)

    def route(self, slot: int) -> ServerConnection | None:
        return self._wires.get(self._session.route(slot))


class NativeRunning:
    """An interrupts.Running that C shares."""

    def __init__(self, session: NativeSession) -> None:
        self._session = session

    def start(self, slot: int, seq: int) -> bool:
        return self._session.start(slot, seq)

    def stop(self, slot: int) -> None:
        self._session.end(slot)

    def request(self, slot: int) -> Request | None:
        seq, thread = self._session.running(slot)
        return Request(seq, thread) if seq else None

    def expect(self, slot: int, seq: int) -> None:
        self._session.expect(slot, seq)

    def slots(self) -> list[int]:
        return self._session.slots_running()


class _Frames:
    """A wire.frames.FrameSource: frames that C received and that are for Python."""

    def __init__(self, native: NativeSocket) -> None:
        self.ended: Ended | None = None
        self._native = native
        self._frame: Frame | None = None
        self._max_header = self._max_payload = 0
        self._body_crc = False
        self.max_header = MAX_FIRST_HEADER

    def fetch(self) -> bool:
        """Wait for what `next` or `ended` then has; False where they are another thread's now."""
        received = self._native.receive()
        if received is None:
            return False
        if isinstance(received, Ended):
            self.ended = received
        else:
            self._frame = Frame(received.header, memoryview(received.payload))
        return True

    @property
    def max_header(self) -> int:
        return self._max_header

    @max_header.setter
    def max_header(self, size: int) -> None:
        self._max_header = size
        self._native.bounds(size, self._max_payload)

    @property
    def max_payload(self) -> int:
        return self._max_payload

    @max_payload.setter
    def max_payload(self, size: int) -> None:
        self._max_payload = size
        self._native.bounds(self._max_header, size)

    @property
    def body_crc(self) -> bool:
        return self._body_crc

    @body_crc.setter
    def body_crc(self, wanted: bool) -> None:
        # Both directions have it or neither.
        self._body_crc = wanted
        self._native.sums(wanted, wanted)

    def buffer(self) -> memoryview:
        raise LocalProtocolError("native code receives")

    def received(self, _count: int) -> None:
        """The stream has ended."""
        if self.ended is not None and self.ended.within_frame:
            raise RemoteProtocolError("the stream ended in the middle of a frame")

    def next(self) -> Frame | None:
        if self.ended is not None and self.ended.broken:
            raise RemoteProtocolError(self.ended.broken)
        frame, self._frame = self._frame, None
        return frame


class _Sink:
    """A wire.frames.FrameSink: frames that are sent are made in C, which learns of `body_crc` from _Frames."""

    body_crc = False

    def frame(self, _header: bytes, _payload: Buffer = b"") -> list[Buffer]:
        raise LocalProtocolError("native code sends")


class NativeConnection(Led):
    """A connection whose frames C receives and sends; its unsent bytes wait in C, too.

    Locks: C's send lock is acquired with any other lock held, and nothing else is acquired under it.
    """

    def __init__(self, native: NativeSocket, wire: ServerConnection, frames: _Frames) -> None:
        super().__init__(wire)
        self._native = native
        self._frames = frames

    def feed(self, data: bytes) -> None:
        """Take bytes that were received elsewhere, before anything is received here."""
        self._native.feed(data)

    def begin(self) -> int:
        """The leader begins to work at a request: the number of that job."""
        return self._native.begin()

    def end(self, job: int) -> bool:
        """The thread that began the job has done it: whether it still leads, and receives next."""
        return self._native.end(job)

    def supersede(self, job: int) -> bool:
        """Whether the calling thread leads from now on: it does if the leader is still at that job."""
        return self._native.take(job)

    def receive(self) -> Event | None:
        """Wait for the next event that is not C's; without an end, since a guest may be paused for days.

        None where the caller was held up and another thread leads now.
        """
        wire, frames = self.wire, self._frames
        while (event := wire.next_event()) is None:
            if not frames.fetch():
                return None
            if frames.ended is not None and not frames.ended.broken:
                if frames.ended.error:
                    wire.lost()
                    return Close(f"the connection is broken: {os.strerror(frames.ended.error)}", None)
                self.hung_up = True
                wire.received(0)
        return event

    def end_receiving(self) -> None:
        """Nobody will lead any more."""
        self._native.end_receiving()

    def send(self, header: bytes, payload: Buffer = b"") -> bool:
        """Send a frame; C sees to what the socket does not take."""
        self._native.send(header, payload)
        return False

    def flush(self) -> None:
        """Nothing: C does it."""

    @property
    def unsent(self) -> bool:
        """Whether something waits for the client to read."""
        return self._native.unsent

    def shut(self) -> None:
        """End the connection now.  Twice is no error."""
        self._native.shut()
