"""The typed face of the native server (native.h): the slots of a session, and sockets whose frames C moves."""

import socket
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from ._syscalls import ffi, lib
from .tree import Tree

Buffer: TypeAlias = bytes | bytearray | memoryview


class Received(NamedTuple):
    """A frame for Python; its memory belongs to it."""

    header: bytes
    payload: bytes


class Ended(NamedTuple):
    """Nothing more comes.  `within_frame`: the stream ended in one; `broken`: how the client broke the framing."""

    within_frame: bool
    error: int
    broken: str


@ffi.def_extern()  # type: ignore[untyped-decorator]  # cffi has no types
def report_wrong(context: Any, numbers: Any, count: int) -> None:
    """Called by a native worker."""
    ffi.from_handle(context)(ffi.unpack(numbers, count))


class SlotLock:
    """The lock of one slot, for Python and C alike."""

    def __init__(self, session: Any, slot: int) -> None:
        self._session = session
        self._slot = slot

    def __enter__(self) -> None:
        lib.native_slot_lock(self._session, self._slot)

    def __exit__(self, *_: object) -> None:
        lib.native_slot_unlock(self._session, self._slot)


class NativeSession:
    """What C and Python share of a running session.  What names a slot is called under that slot's lock.

    Any thread may call any method, but for `stop`, after which none may be called.
    """

    def __init__(self, tree: Tree, interrupt_signal: int, on_wrong: Callable[[list[int]], None]) -> None:
        """`on_wrong` gets the numbers that a client gave back without having them, in any thread.

        Raises MemoryError.
        """
        self._context = ffi.new_handle(on_wrong)
        self._on_wrong = on_wrong
        self._tree = tree  # it must live as long
        self._session: Any = lib.native_session_new(tree._tables, interrupt_signal, lib.report_wrong, self._context)
        if not self._session:
            raise MemoryError
        self.slot_locks = [SlotLock(self._session, slot) for slot in range(tree.slots)]

    def agree(
        self,
        request_slots: int,
        cleanup_slots: int,
        connections: int,
        max_read: int,
        max_name: int,
        max_in_flight: int,
    ) -> None:
        """HELLO has granted this: from now on C takes requests.  Once, by the thread that leads the connection."""
        lib.native_session_agree(
            self._session, request_slots, cleanup_slots, connections, max_read, max_name, max_in_flight
        )

    def drain(self, *, leaving: bool) -> None:
        """From now on every request is handed to Python; `leaving`: what is interrupted is not answered, nor done."""
        lib.native_session_drain(self._session, leaving)

    def has_locks(self) -> None:
        """Handles have locks, which releases have to end."""
        lib.native_session_has_locks(self._session)

    @property
    def unsettled(self) -> bool:
        """Whether there are replies that were made and have not been sent."""
        return bool(lib.native_session_unsettled(self._session))

    def stop(self, patience: float, *, may_free: bool) -> None:
        """End the workers, waiting `patience` seconds for them; free everything if all ended and the caller may."""
        if lib.native_session_stop(self._session, patience) and may_free:
            session, self._session = self._session, None
            lib.native_session_free(session)

    # ---- the watch ----

    def watch(self) -> tuple[int, int] | None:
        """Wait, in one thread of its own, until another thread is needed to lead a connection: its number
        (NativeSocket.number), and the job that its leader is at.  None after `stop_watch`."""
        job = ffi.new("uint64_t *")
        found = lib.native_watch(self._session, job)
        return (int(ffi.cast("uintptr_t", found)), int(job[0])) if found else None

    def rouse(self) -> None:
        """Somebody has begun to work."""
        lib.native_watch_rouse(self._session)

    def stop_watch(self) -> None:
        """End `watch`, soon."""
        lib.native_watch_stop(self._session)

    # ---- slots ----

    @property
    def in_flight(self) -> int:
        """Bytes of the requests that run, and of their replies."""
        return int(lib.native_in_flight(self._session))

    def charge(self, slot: int, size: int) -> bool:
        """Count the bytes of a request that is about to run; False where there would be too many."""
        return bool(lib.native_slot_charge(self._session, slot, size))

    def discharge(self, slot: int) -> None:
        """The slot's request has run."""
        lib.native_slot_discharge(self._session, slot)

    def set_route(self, slot: int, connection: "NativeSocket") -> None:
        """The reply goes to this connection."""
        lib.native_slot_set_route(self._session, slot, connection._connection)

    def route(self, slot: int) -> int:
        """The number (NativeSocket.number) of the connection that the reply goes to; 0 while there was none."""
        return int(ffi.cast("uintptr_t", lib.native_slot_route(self._session, slot)))

    def start(self, slot: int, seq: int) -> bool:
        """The calling thread is about to run this request: False where it is not to run."""
        return bool(lib.native_slot_start(self._session, slot, seq))

    def end(self, slot: int) -> None:
        """The slot's request has run."""
        lib.native_slot_end(self._session, slot)

    def running(self, slot: int) -> tuple[int, int]:
        """The seq of the request that runs, or 0, and its thread, 0 while it waits for one."""
        thread = ffi.new("uint64_t *")
        return int(lib.native_slot_running(self._session, slot, thread)), int(thread[0])

    def expect(self, slot: int, seq: int) -> None:
        """The request with this seq is not to run when it comes."""
        lib.native_slot_expect(self._session, slot, seq)

    def slots_running(self) -> list[int]:
        """The slots whose requests run; without any lock."""
        running, session = lib.native_slot_running, self._session
        return [slot for slot in range(len(self.slot_locks)) if running(session, slot, ffi.NULL)]


class NativeSocket:
    """A connected socket whose frames C receives and sends.  One thread at a time receives; the rest is for any thread.

    It closes the socket when it has been shut, nobody receives and nobody waits to send.
    """

    def __init__(self, session: NativeSession, sock: socket.socket, send_limit: int | None) -> None:
        """Takes over a blocking socket.  `send_limit`: bytes that one call may send.  Raises MemoryError."""
        self._connection: Any = lib.native_connection_new(session._session, sock.fileno(), send_limit or 0)
        if not self._connection:
            raise MemoryError
        sock.detach()
        self._connection = ffi.gc(self._connection, lib.native_connection_drop)
        self.number = int(ffi.cast("uintptr_t", self._connection))

    def bounds(self, max_header: int, max_payload: int) -> None:
        """The longest header and payload of the frames to come.  The thread that receives."""
        lib.native_connection_bounds(self._connection, max_header, max_payload)

    def sums(self, received: bool, sent: bool) -> None:
        """Whether frames after the first carry a checksum of header and payload.  The thread that receives."""
        lib.native_connection_sums(self._connection, received, sent)

    def set_current(self, current: bool) -> None:
        """Whether requests that come on it count."""
        lib.native_connection_set_current(self._connection, current)

    def feed(self, data: bytes) -> None:
        """Bytes that were received elsewhere, before anything is received here; at most 64 KiB."""
        if not lib.native_connection_feed(self._connection, data, len(data)):
            raise ValueError("more bytes than the buffer holds")

    def receive(self) -> Received | Ended | None:
        """Wait, run and answer what C can, and return what it cannot; without an end but that of the connection.

        None where another thread leads now: this one was held up.
        """
        event = ffi.new("struct native_event *")
        lib.native_receive(self._connection, event)
        if event.kind == lib.NATIVE_RELIEVED:
            return None
        if event.kind == lib.NATIVE_FRAME:
            return Received(
                bytes(ffi.buffer(event.header, event.header_size)), bytes(ffi.buffer(event.payload, event.payload_size))
            )
        broken = ffi.string(event.reason).decode() if event.kind == lib.NATIVE_BROKEN else ""
        return Ended(event.kind == lib.NATIVE_CUT, event.error if event.kind == lib.NATIVE_FAILED else 0, broken)

    def begin(self) -> int:
        """The thread that leads begins to work at something in Python: the number of the job."""
        return int(lib.native_lead_begin(self._connection, False))

    def end(self, job: int) -> bool:
        """It has done its work: whether it still leads."""
        return bool(lib.native_lead_end(self._connection, job))

    def take(self, job: int) -> bool:
        """The calling thread leads from now on, if the leader is still at this job."""
        return bool(lib.native_lead_take(self._connection, job))

    def send(self, header: bytes, payload: Buffer) -> None:
        """Send a frame; what the socket does not take is sent later."""
        lib.native_send(
            self._connection, header, len(header), ffi.from_buffer("unsigned char[]", payload), len(payload)
        )

    @property
    def unsent(self) -> bool:
        """Whether something waits for the client to read."""
        return bool(lib.native_has_unsent(self._connection))

    def shut(self) -> None:
        """End the connection now.  Twice is no error."""
        lib.native_shut(self._connection)

    def end_receiving(self) -> None:
        """Nobody will receive any more."""
        lib.native_end_receiving(self._connection)
