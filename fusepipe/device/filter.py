"""The filter on /dev/fuse as Python sees it.  What it does stands in filter.h, current.h and init.h.

A process has one FUSE session, so it has one filter.  All of it belongs to the thread that runs pyfuse3's loop.
"""

import errno
import mmap
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from fusepipe.device.flags import InitFlag
from fusepipe.device.library import MODULE, unavailable

BATCH = 4096  # lookup counts, and handles, that one batch holds at most


@dataclass(slots=True)
class CurrentRequest:
    """The request that was read last; what its opcode does not carry is 0.  current.h says what each field is.

    Valid from the start of a method of pyfuse3's operations until it first waits.  The filter's own is a C struct with
    these fields; one made here stands for a request of which nothing is known.
    """

    unique: int = 0
    node: int = 0
    handle: int = 0
    owner: int = 0
    opcode: int = 0
    uid: int = 0
    gid: int = 0
    pid: int = 0
    flags: int = 0
    size: int = 0
    valid: int = 0
    umask: int = 0
    kill: int = 0
    has_group: int = 0
    group: int = 0


_FIELDS = tuple(field.name for field in fields(CurrentRequest))


class TakenRequest(NamedTuple):
    """A request that Python answers: the fields of its header, and the bytes that follow it."""

    current: CurrentRequest
    arguments: bytes


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is asked of INIT; sizes are in bytes.  Flags that the kernel does not offer are left out."""

    wanted: InitFlag
    refused: InitFlag
    max_readahead: int
    max_write: int
    max_background: int
    congestion_threshold: int


@dataclass(frozen=True, slots=True)
class Agreed:
    """What INIT ended with; sizes are in bytes, `minor` is that of the kernel's protocol version 7.minor."""

    offered: InitFlag
    flags: InitFlag
    minor: int
    max_readahead: int
    max_write: int
    max_background: int
    congestion_threshold: int

    def supports(self, flag: InitFlag) -> bool:
        """Whether kernel and filesystem agreed on every bit of `flag`."""
        return self.flags & flag == flag


@dataclass(frozen=True, slots=True)
class Counters:
    """Requests read, lookup counts and handles collected, interrupts, requests taken, and what was lost for want of
    memory."""

    requests: int
    forgets: int
    releases: int
    interrupts: int
    taken: int
    lost: int
    waiting: int


class FilterUnavailableError(Exception):
    """The filter cannot be put on the device; the text says why.  Mounts work without it, with less."""


class Filter:
    """Sees every request and every reply of this process's FUSE session."""

    def __init__(
        self,
        on_collected: Callable[[], None],
        on_interrupt: Callable[[int, int], None],
        on_ended: Callable[[], None],
        on_taken: Callable[[TakenRequest], None],
    ) -> None:
        """The callbacks come from within a read of the device and must neither wait nor raise.

        on_collected(): there are lookup counts or handles to take, where there were none.
        on_interrupt(unique, target): the kernel wants the request `target` to end.  Where nobody knows that request
        yet, answer `unique` with EAGAIN, and the kernel asks again; else no answer is needed (fs/fuse/dev.c).
        on_ended(): the mount is gone, or its connection was aborted; nobody waits for an answer any more.
        on_taken(request): a request with an opcode that `take` names; to be answered by `answer`, now or later.

        Raises FilterUnavailableError.
        """
        if MODULE is None or unavailable():
            raise FilterUnavailableError(unavailable())
        self._lib = MODULE.lib
        self._ffi = MODULE.ffi
        self._forgets = self._ffi.new("uint64_t[]", 2 * BATCH)
        self._handles = self._ffi.new("uint64_t[]", BATCH)
        self.current: CurrentRequest = self._ffi.addressof(self._lib, "filter_current")
        self._ffi.def_extern(name="on_collected")(on_collected)
        self._ffi.def_extern(name="on_interrupt")(on_interrupt)
        self._ffi.def_extern(name="on_ended")(on_ended)
        self._on_taken = on_taken
        self._ffi.def_extern(name="on_taken")(self._taken)
        self._lib.use_python()

    def take(self, opcodes: Iterable[int]) -> None:
        """From now on hands requests with these opcodes to `on_taken`; libfuse never sees them.

        Raises OSError (EINVAL) for a number that is no opcode.
        """
        for opcode in opcodes:
            if result := self._lib.filter_take(opcode):
                raise OSError(-result, os.strerror(-result))

    def withhold(self, handle: int) -> None:
        """Until `admit` the RELEASE of this handle is not collected but taken, for which `take` must know the opcode.

        Raises OSError (ENOMEM).
        """
        if result := self._lib.given_back_withhold(handle):
            raise OSError(-result, os.strerror(-result))

    def admit(self, handle: int) -> None:
        """The RELEASE of a handle that was withheld has come."""
        self._lib.given_back_admit(handle)

    def _taken(self, arguments: Any, size: int) -> None:
        current = self.current
        copied = CurrentRequest(*[getattr(current, name) for name in _FIELDS])
        self._on_taken(TakenRequest(copied, bytes(self._ffi.buffer(arguments, size))))

    def attach(self, wishes: Wishes) -> None:
        """Takes its place on the device: after `pyfuse3.init()`, before `pyfuse3.main()`.

        Raises FilterUnavailableError where pyfuse3 made its session past the filter, and OSError.
        """
        asked = self._ffi.new("struct init_wishes *")
        asked.wanted, asked.refused = wishes.wanted, wishes.refused
        asked.max_readahead, asked.max_write = wishes.max_readahead, wishes.max_write
        asked.max_background, asked.congestion_threshold = wishes.max_background, wishes.congestion_threshold
        asked.page_size = mmap.PAGESIZE
        result = self._lib.filter_attach(asked)
        if result == -errno.ENOSYS:
            raise FilterUnavailableError(
                "pyfuse3 made its session without asking it: another library has that function"
            )
        if result:
            raise OSError(-result, os.strerror(-result))

    def detach(self) -> None:
        """Leaves a session that is about to be closed; what was collected and not taken is gone."""
        self._lib.filter_detach()

    def agreed(self) -> Agreed | None:
        """What INIT ended with, or None while the kernel has not been answered."""
        agreed = self._lib.filter_agreed
        if not agreed.flags:
            return None
        return Agreed(
            InitFlag(agreed.offered),
            InitFlag(agreed.flags),
            agreed.minor,
            agreed.max_readahead,
            agreed.max_write,
            agreed.max_background,
            agreed.congestion_threshold,
        )

    def take_forgets(self) -> list[int]:
        """The oldest lookup counts that the kernel gave back: node and count in turn, at most BATCH pairs."""
        return self._ffi.unpack(self._forgets, self._lib.given_back_take_forgets(self._forgets, 2 * BATCH))  # type: ignore[no-any-return]  # of C

    def take_handles(self) -> list[int]:
        """The oldest handles that the kernel released, at most BATCH."""
        return self._ffi.unpack(self._handles, self._lib.given_back_take_handles(self._handles, BATCH))  # type: ignore[no-any-return]  # of C

    def take_untaken(self) -> list[int]:
        """The oldest handles that the kernel has never seen, at most BATCH."""
        return self._ffi.unpack(self._handles, self._lib.given_back_take_untaken(self._handles, BATCH))  # type: ignore[no-any-return]  # of C

    def answer(self, unique: int, error: int, body: bytes = b"") -> None:
        """Answers a request past libfuse, with an errno or a body.

        Raises OSError; ENOENT when the kernel does not wait for that answer.
        """
        if result := self._lib.filter_answer(unique, error, body, len(body)):
            raise OSError(-result, os.strerror(-result))

    def counters(self) -> Counters:
        """Counters since `attach`, and how many requests the kernel waits for."""
        counters = self._lib.filter_counters
        return Counters(
            counters.requests,
            counters.forgets,
            counters.releases,
            counters.interrupts,
            counters.taken,
            counters.lost,
            self._lib.filter_waiting(),
        )
