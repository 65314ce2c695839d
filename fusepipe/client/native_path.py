"""The native path of a mount: threads in C that answer what is hot, beside the operations in Python.

Python connects, shakes hands and decides; the rest is in device/native_device.h.  What cannot be native is served by
Python alone, with the same answers.
"""

import math
import os
from collections.abc import Awaitable, Callable

import trio

from fusepipe import log
from fusepipe.client.cleanup import Cleanup
from fusepipe.client.handshake import attach
from fusepipe.client.interrupts import Waiting
from fusepipe.client.link import Link
from fusepipe.client.options import MountOptions
from fusepipe.client.sharing import SharedStore
from fusepipe.device.native import Channel, Native, NativeEvent, NativeUnavailableError, Policy, Target
from fusepipe.transport import Stream
from fusepipe.wire import ClientSession

logger = log.get_logger("client")


def wanted_threads(options: MountOptions) -> int:
    """How many threads are to read the device: one for each CPU, and no more than requests in service; 0 for none."""
    if not options.native or log.tracing("client") or log.tracing("wire"):
        return 0  # single requests can only be logged by Python
    if options.shared_locks:
        return 0  # what is opened, flushed and released then concerns locks, of which Python decides
    return min(len(os.sched_getaffinity(0)), options.readers)


async def further_connections(
    session: ClientSession, connect: Callable[[], Awaitable[Stream]], threads: int
) -> list[Channel]:
    """A connection for each thread, as far as the server grants them.  Raises MountError, and what `connect` raises."""
    channels: list[Channel] = []
    try:
        assert session.agreed is not None
        while len(channels) < min(threads, session.agreed.connections - 1):
            channels.append(await attach(session, await connect()))
    except BaseException:
        close(channels)
        raise
    return channels


def close(channels: list[Channel]) -> None:
    """Closes connections that nobody has taken over."""
    for channel in channels:
        channel.socket.close()


class _WaitingNative:
    """An interrupted request that native code has sent."""

    def __init__(self, link: Link, native: Native, target: Target) -> None:
        self._link = link
        self._native = native
        self._target = target
        self.pid = target.pid

    def waits(self) -> bool:
        return self._native.waits(self._target)

    def abandon(self) -> bool:
        slots = self._link.agreed.request_slots
        return self._native.abandon(self._target, slots // 2 if self._link.connected.is_set() else slots)

    def again(self) -> None:
        if self._link.connected.is_set():
            self._native.interrupt(self._target)


class NativePath:
    """The native threads of one mount, from `__init__` to `close`; the filter must be on the device before."""

    def __init__(self, link: Link, cleanup: Cleanup, options: MountOptions, channels: list[Channel]) -> None:
        """Starts the threads.  Takes over the channels, also where it raises NativeUnavailableError."""
        self._link = link
        self._cleanup = cleanup
        self._stopped = False
        agreed = link.agreed
        policy = Policy(
            entry_seconds=options.cache.seconds,
            attr_seconds=options.cache.seconds,
            direct=not options.cache.seconds,
            no_flush=True,
            keep=options.cache.keep,
            write_back=options.cache.write_back,
            max_name=agreed.max_name,
            max_read=agreed.max_read,
            max_write=agreed.max_write,
        )
        try:
            self._native = Native(agreed.request_slots, agreed.max_in_flight, policy)
        except NativeUnavailableError:
            close(channels)
            raise
        try:
            self._native.begin(len(channels), channels)
        except NativeUnavailableError:
            self._native.close()
            raise
        link.share_slots(lambda layout, others: SharedStore(self._native, layout, others))
        link.on_lost = self._native.shut
        link.on_over = self._native.fail
        link.tell_busy = self._native.tell_busy
        link.heard_by_others = self._heard
        link.ping_others = self._native.ping
        self._sounds = [(0, trio.current_time())] * self._native.connections
        """For each connection, the number that changes with what comes there, and when it was seen to have changed."""
        self._parked = trio.Event()

    @property
    def flush_matters(self) -> bool:
        """Whether native code has opened a file whose FLUSH may fail."""
        return self._native.flush_matters

    def interrupt(self, target: int) -> Waiting | bool:
        """Asks the server to end the request with this `unique`, as interrupts.Elsewhere says."""
        connected = self._link.connected.is_set()
        found = self._native.find(target, down=not connected)
        if isinstance(found, bool):
            return found
        if connected and not self._native.interrupt(found):
            return False
        return _WaitingNative(self._link, self._native, found)

    def _heard(self) -> float:
        """When bytes came last on that connection that has been silent longest, as far as was looked."""
        now = trio.current_time()
        for number, (sound, _) in enumerate(self._sounds):
            if (newer := self._native.heard(number)) != sound:
                self._sounds[number] = (newer, now)
        return min((when for _, when in self._sounds), default=math.inf)

    # ---- after a loss -----------------------------------------------------------------------------------------------

    @property
    def connections(self) -> int:
        """How many there are."""
        return self._native.connections

    async def at_rest(self) -> None:
        """Waits until nothing is sent or received any more on connections that were lost."""
        while not self._native.parked:
            self._parked = trio.Event()
            if not self._native.parked:
                await self._parked.wait()

    def resume(self, channels: list[Channel]) -> None:
        """Goes on over other connections, as many as there were; takes them over."""
        self._sounds = [(self._native.heard(number), trio.current_time()) for number in range(len(channels))]
        self._native.resume(channels)

    # ---- the threads ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Does what the threads ask for, until it is cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await trio.lowlevel.wait_readable(self._native.wake)
                events = self._native.events()
                if events & NativeEvent.COLLECTED:
                    self._cleanup.collected()
                if events & NativeEvent.BUSY:
                    self._link.busy.set()
                if events & NativeEvent.PARKED:
                    self._parked.set()
                if events & NativeEvent.SLOT:
                    self._link.start_parked()
                if events & NativeEvent.LOST and not self._stopped:
                    self._link.lose(self._native.reason)
                if events & NativeEvent.NO_SPACE:
                    nursery.start_soon(self._make_space)

    async def _make_space(self) -> None:
        await self._cleanup.settle()
        self._native.again(True)

    def stop(self) -> None:
        """Ends the threads; doing it twice is no error."""
        if not self._stopped:
            self._stopped = True
            self._native.stop()
            requests, handed = self._native.counters
            logger.debug("native threads have ended", native=requests, python=handed)

    def close(self) -> None:
        """Frees everything; after `stop`, and after the filter has left the device."""
        self._native.close()
