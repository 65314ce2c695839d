"""What the kernel gives back: lookup counts and handles.  They are sent in batches, and no program waits for them."""

import math

import trio

from fusepipe.client.link import Link
from fusepipe.device import BATCH, Filter
from fusepipe.wire import read_page
from fusepipe.wire.client_session import Replied
from fusepipe.wire.messages import CleanupRequest, ReaddirReply

GATHER = 0.002
"""Seconds for which a batch grows before it is sent: many files in one cost both sides little more than one file."""

FLOW = 0.01
"""The same while one batch follows the other: sending one costs as much as some requests of a program."""


class _Batch:
    """A batch on its way."""

    def __init__(self, cleanup: "Cleanup") -> None:
        self._cleanup = cleanup
        self.answered = trio.Event()

    def replied(self, replied: Replied) -> None:
        """The server has done it, so its slot is free."""
        self.answered.set()
        self._cleanup.freed()
        self._cleanup.answered(self)

    def failed(self, error: Exception) -> None:
        """The session that the batch was for is lost."""
        self.answered.set()
        self._cleanup.answered(self)


class Cleanup:
    """Collects lookup counts and handles, and sends them."""

    def __init__(self, link: Link) -> None:
        self.filter: Filter | None = None
        """Where the kernel's own are collected, once the filter is on the device."""
        self._link = link
        self._slots = link.agreed.cleanup_slots
        self._forgets: list[int] = []
        self._handles: list[int] = []
        self._untaken: list[int] = []
        self._unsent: CleanupRequest | None = None
        self._under_way: set[_Batch] = set()
        self._collected = trio.Event()
        self._free = trio.Event()

    # ---- collecting -------------------------------------------------------------------------------------------------

    def collected(self) -> None:
        """There is something to send."""
        self._collected.set()

    def forget(self, node: int, count: int = 1) -> None:
        """Gives back lookup counts of a node."""
        self._forgets += (node, count)
        self._collected.set()

    def close(self, handle: int) -> None:
        """Gives back a handle that the kernel has released."""
        self._handles.append(handle)
        self._collected.set()

    def give_back(self, late: Replied) -> None:
        """Gives back what the reply to an abandoned request brought; whatever else it did stays done."""
        if handle := getattr(late.reply, "handle", 0):
            self._untaken.append(handle)
            self._collected.set()
        if entry := getattr(late.reply, "entry", None):
            self.forget(entry.node)
        if isinstance(late.reply, ReaddirReply):
            for listed in read_page(late.payload):
                if listed.node:
                    self.forget(listed.node)

    # ---- sending ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Sends batches until it is cancelled."""
        sent = -math.inf
        while True:
            await self._collected.wait()
            await trio.sleep(FLOW if trio.current_time() - sent < FLOW else GATHER)
            while len(self._under_way) >= self._slots:  # the batch grows meanwhile
                self._free = trio.Event()
                await self._free.wait()
            await self._link.connected.wait()
            self.send()
            sent = trio.current_time()

    def send(self) -> None:
        """Sends what there is; what finds no slot, or too many bytes in flight, is tried again by `run`."""
        if self._collected.is_set():  # else `run` still waits for this one
            self._collected = trio.Event()
        while batch := self._unsent or self._batch():
            sent = _Batch(self)
            if not self._link.start_cleanup(batch, sent):
                self._unsent = batch
                self._collected.set()
                return
            self._unsent = None
            self._under_way.add(sent)

    def _batch(self) -> CleanupRequest | None:
        forgets, self._forgets = self._forgets[: 2 * BATCH], self._forgets[2 * BATCH :]
        handles, self._handles = self._handles[:BATCH], self._handles[BATCH:]
        untaken, self._untaken = self._untaken[:BATCH], self._untaken[BATCH:]
        if self.filter is not None:
            forgets += self.filter.take_forgets()
            handles += self.filter.take_handles()
            untaken += self.filter.take_untaken()
        return CleanupRequest(forgets, handles, untaken) if forgets or handles or untaken else None

    async def settle(self) -> None:
        """Waits until the server has done what was given back so far.

        On a local disk a file's space is free once its last user has closed it; here that takes a moment longer.  The
        kernel may let a request go before what it gives back, so that gets a moment to come.
        """
        await trio.sleep(GATHER)
        self.send()
        while waiting := tuple(self._under_way):
            for batch in waiting:
                await batch.answered.wait()
            if not self._unsent:
                break
            self.send()

    def freed(self) -> None:
        """The server has done a batch: what found no space before may find some now."""
        self._link.freed += 1

    def answered(self, batch: _Batch) -> None:
        """A batch is done, well or not."""
        self._under_way.discard(batch)
        self._free.set()
