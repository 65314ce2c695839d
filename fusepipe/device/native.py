"""The native path as Python sees it: threads in C between the device and the connections (native_device.h).

Python connects, shakes hands, decides and cleans up; the threads move what is hot.  A process has one of it.  All of
this belongs to the thread that runs pyfuse3's loop; what the threads have to say comes as events.
"""

import os
import socket
from dataclasses import dataclass
from enum import IntFlag
from typing import NamedTuple

from fusepipe.device.library import MODULE

OPCODES = frozenset(
    {
        1,  # LOOKUP
        3,  # GETATTR
        4,  # SETATTR
        5,  # READLINK
        6,  # SYMLINK
        9,  # MKDIR
        10,  # UNLINK
        11,  # RMDIR
        12,  # RENAME
        13,  # LINK
        14,  # OPEN
        15,  # READ
        16,  # WRITE
        20,  # FSYNC
        22,  # GETXATTR
        27,  # OPENDIR
        35,  # CREATE
        44,  # READDIRPLUS
        45,  # RENAME2
    }
)
"""The requests that native code can answer, by the numbers of the kernel's include/uapi/linux/fuse.h."""


CONTENTS_BYTES = 16384
"""Of the longest file whose contents are taken with the reply to OPEN (native_contents.h: CONTENTS_MAX)."""

KNOWN_MILLISECONDS = 250
"""How old may be what a reply has said and native code answers for the server; never older than attributes may be."""


class NativeEvent(IntFlag):
    """What the threads have to say."""

    COLLECTED = 1
    """There are lookup counts or handles to take, where there were none."""
    SLOT = 2
    """A request of Python's that waits for a slot may have one."""
    LOST = 4
    """A connection is lost; `reason` says why."""
    NO_SPACE = 8
    """Requests failed for want of space, and wait for `again`."""
    BUSY = 16
    """Something is in flight, as `tell_busy` asked."""
    PARKED = 32
    """All connections are at rest, after one of them was lost."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What native code needs to know about a mount; sizes are in bytes."""

    entry_seconds: float
    """For how long names are good, also those that do not exist; 0: the kernel may remember none."""
    attr_seconds: float
    """For how long attributes are good."""
    direct: bool
    """Whether files are read and written past the page cache, where the kernel can map them all the same."""
    no_flush: bool
    """Whether the server may say that FLUSH need not be asked."""
    keep: int
    """For how long pages may be kept past an open, in milliseconds, as OPEN says it."""
    write_back: bool
    """Whether the kernel writes pages later."""
    max_name: int
    max_read: int
    max_write: int


class Channel(NamedTuple):
    """A connection that has shaken hands: its socket, and what the next frames of both directions look like."""

    socket: socket.socket
    sent: int
    """The number of the next frame to be sent."""
    received: int
    """The number of the next frame that comes."""
    checksums: bool
    """Whether each frame has one at its end."""
    send_limit: int | None
    """How many bytes one call may send; None: any number."""


class Target(NamedTuple):
    """A request that INTERRUPT is about."""

    slot: int
    seq: int
    clone: int
    pid: int


class NativeUnavailableError(Exception):
    """Native threads cannot serve this mount; the text says why.  Python alone can."""


def _check(result: int, what: str) -> int:
    if result < 0:
        raise NativeUnavailableError(f"{what}: {os.strerror(-result)}")
    return result


class Native:
    """Native threads and the slots that they share with Python, from `__init__` to `close`."""

    def __init__(self, slots: int, max_in_flight: int, policy: Policy) -> None:
        """Makes the request slots.  Nothing runs before `begin`.  Raises NativeUnavailableError."""
        if MODULE is None:
            raise NativeUnavailableError("its compiled part cannot be loaded")
        self._lib, self._ffi = MODULE.lib, MODULE.ffi
        self._lib.native_lost_reset()
        self._lib.native_flush_matters = False
        self._max_read = policy.max_read
        self._fill(policy)
        self.wake = _check(self._lib.native_events_open(), "no eventfd")
        """A file descriptor that is readable when there are events."""
        try:
            _check(self._lib.slots_set_up(slots, max_in_flight), "no memory for slots")
        except NativeUnavailableError:
            self._lib.native_clear()
            raise

    def _fill(self, policy: Policy) -> None:
        said = self._lib.native_policy
        said.entry_seconds, said.entry_nanoseconds = divmod(int(policy.entry_seconds * 1e9), 1_000_000_000)
        said.attr_seconds, said.attr_nanoseconds = divmod(int(policy.attr_seconds * 1e9), 1_000_000_000)
        said.negative, said.direct = policy.entry_seconds > 0, policy.direct
        said.no_flush, said.writeback = policy.no_flush, policy.write_back
        said.known, said.keep, said.max_name = KNOWN_MILLISECONDS, policy.keep, policy.max_name
        # Where nothing is kept, READ asks; where everything is, each file is read once.
        said.contents = CONTENTS_BYTES if policy.keep and not policy.write_back else 0
        said.max_read, said.max_write = policy.max_read, policy.max_write
        for opcode in range(len(said.opcodes)):
            said.opcodes[opcode] = opcode in OPCODES

    # ---- threads ----------------------------------------------------------------------------------------------------

    def begin(self, threads: int, channels: list[Channel]) -> None:
        """Starts so many threads that read the device, in the place of the filter.

        The channels' sockets are native from then on, and closed with `close`, also where this raises
        NativeUnavailableError; then the filter still has the device.
        """
        for channel in channels:
            channel.socket.setblocking(True)
            added = self._lib.connection_add(
                channel.socket.detach(),
                channel.sent,
                channel.received,
                channel.checksums,
                channel.send_limit or 0,
                self._max_read,
            )
            _check(added, "no more connections")
        _check(self._lib.native_begin(threads), "the device cannot be read by threads")

    def stop(self) -> None:
        """Ends the threads.  The sockets are shut; whoever still waits for the kernel's answer gets none from here."""
        self._lib.native_stop()

    def close(self) -> None:
        """Frees everything; after `stop`."""
        self._lib.native_clear()

    def events(self) -> NativeEvent:
        """What has happened since the last call."""
        return NativeEvent(self._lib.native_events())

    @property
    def reason(self) -> str:
        """Why a connection was lost."""
        return str(self._ffi.string(self._lib.native_reason()).decode(errors="replace"))

    @property
    def counters(self) -> tuple[int, int]:
        """How many requests went to the server from native code, and how many were handed to Python."""
        counters = self._lib.native_counters
        return counters.native, counters.handed

    @property
    def flush_matters(self) -> bool:
        """Whether native code has opened a file whose FLUSH may fail."""
        return bool(self._lib.native_flush_matters)

    # ---- connections ------------------------------------------------------------------------------------------------

    @property
    def connections(self) -> int:
        """How many there are."""
        return int(self._lib.connections_count())

    def heard(self, connection: int) -> int:
        """A number that changes whenever bytes come on a connection."""
        return int(self._lib.connection_heard(connection))

    def ping(self) -> None:
        """Asks for a sign of life on every connection on which nobody waits to send."""
        for connection in range(self.connections):
            self._lib.connection_ping(connection)

    def shut(self) -> None:
        """A connection of the session is lost: nothing is sent or received any more, and requests wait."""
        self._lib.connections_shut()

    @property
    def parked(self) -> bool:
        """Whether all connections are at rest after that."""
        return bool(self._lib.connections_parked())

    def resume(self, channels: list[Channel]) -> None:
        """Goes on over other connections, as many as there were; sends again what waits for its reply."""
        self._lib.native_lost_reset()
        for number, channel in enumerate(channels):
            channel.socket.setblocking(True)
            self._lib.connection_replace(
                number, channel.socket.detach(), channel.sent, channel.received, channel.checksums
            )
        self._lib.native_resume()

    # ---- requests of native code ------------------------------------------------------------------------------------

    def find(self, unique: int, *, down: bool = False) -> Target | bool:
        """The request with this `unique` that waits for its reply; `down`: while there is no connection.

        True where it was parked and has been answered EINTR, False where native code has none.
        """
        target = self._ffi.new("struct native_target *")
        found = self._lib.slots_find(unique, target, down)
        if found == self._lib.FOUND_WAITING:
            return Target(target.slot, target.seq, target.clone, target.pid)
        return bool(found == self._lib.FOUND_PARKED)

    def interrupt(self, target: Target) -> bool:
        """Asks the server to end the request early; False where that is not possible just now."""
        asked = self._ffi.new("struct native_target *")
        asked.slot, asked.seq, asked.clone, asked.pid = target.slot, target.seq, target.clone, target.pid
        return bool(self._lib.native_interrupt(asked))

    def waits(self, target: Target) -> bool:
        """Whether the request still waits for its reply."""
        return bool(self._lib.slots_waits(target.slot, target.seq))

    def abandon(self, target: Target, most: int) -> bool:
        """Answers EINTR to the kernel; what the late reply brings is given back.

        False where `most` slots are abandoned already.
        """
        return bool(self._lib.slots_abandon(target.slot, target.seq, most))

    def fail(self, error: int) -> None:
        """The session is lost: all requests, now and later, fail with this errno."""
        self._lib.native_fail(error)

    def again(self, anything_freed: bool) -> None:
        """Runs the requests that failed for want of space once more, or lets them fail where nothing was freed."""
        self._lib.native_again(anything_freed)

    # ---- slots for Python -------------------------------------------------------------------------------------------

    def take(self) -> int | None:
        """A free request slot, or None."""
        slot: int = self._lib.slots_python_take()
        return None if slot < 0 else slot

    def reserve(self, size: int) -> bool:
        """Counts bytes in flight; False where there are too many."""
        return bool(self._lib.slots_reserve(size))

    def release(self, size: int) -> None:
        """Bytes are not in flight any more."""
        self._lib.slots_release(size)

    def give_back(self, slot: int) -> None:
        """The slot that was taken cannot be used now, because too many bytes are in flight."""
        self._lib.slots_python_give_back(slot)

    def put(self, slot: int, seq: int) -> None:
        """The slot carries a request of Python's."""
        self._lib.slots_python_put(slot, seq)

    def clear(self, slot: int) -> None:
        """The slot is free again."""
        self._lib.slots_python_clear(slot)

    def seq(self, slot: int) -> int:
        """The seq of the slot's last request."""
        return int(self._lib.slots_seq(slot))

    def last_sent(self, slot: int) -> int:
        """The seq of the slot's last request that was sent, or may have been, where it is none of Python's."""
        return int(self._lib.slots_last_sent(slot))

    def python_waits(self, requests: int) -> None:
        """So many requests of Python's wait for a slot."""
        self._lib.slots_python_waits(requests)

    @property
    def in_flight(self) -> int:
        """Bytes of all requests that wait for their replies, and of those replies."""
        return int(self._lib.slots_in_flight())

    def tell_busy(self) -> None:
        """Asks for BUSY, once, as soon as something is in flight."""
        self._lib.slots_tell_busy()

    @property
    def abandoned(self) -> int:
        """How many slots are abandoned."""
        return int(self._lib.slots_abandoned())

    def abandon_one(self, most: int) -> bool:
        """Counts a request of Python's that is abandoned; False where `most` slots are."""
        return bool(self._lib.slots_abandon_one(most))

    def abandoned_came(self) -> None:
        """The reply to one of those has come."""
        self._lib.slots_abandoned_came()
