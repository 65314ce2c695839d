"""The life of a mount, from the check of its mount point to its end."""

import errno
import math
from collections.abc import Awaitable, Callable

import pyfuse3
import trio

from fusepipe import log
from fusepipe.client import liveness, native_path
from fusepipe.client.cleanup import Cleanup
from fusepipe.client.device_operations import DeviceOperations
from fusepipe.client.errors import (
    InternalError,
    LinkLostError,
    MountEnd,
    MountError,
    PermissionDeniedError,
    RefusedError,
)
from fusepipe.client.handshake import MAX_TRANSFER, Offer, open_link
from fusepipe.client.interrupts import Interrupts
from fusepipe.client.kernel import mount_options, set_read_ahead, wishes
from fusepipe.client.libfuse import make_session
from fusepipe.client.link import Link
from fusepipe.client.mountpoint import prepared
from fusepipe.client.mounttable import MountEntry, mount_at
from fusepipe.client.native_path import NativePath, wanted_threads
from fusepipe.client.operations import Operations
from fusepipe.client.options import MountOptions
from fusepipe.client.permissions import check
from fusepipe.client.resuming import Resuming
from fusepipe.client.shared_locks import SharedLocks
from fusepipe.client.taken import Taken
from fusepipe.client.unmounting import detach, force_away, take_away
from fusepipe.device import Filter, FilterUnavailableError, Opcode
from fusepipe.device.native import Channel, NativeUnavailableError
from fusepipe.transport import ConnectError, Stream
from fusepipe.wire.client_session import Replied

logger = log.get_logger("client")

HELLO_ATTEMPTS = 3
"""How often a session is asked for, and then its further connections, where a connection breaks meanwhile."""
HELLO_AGAIN_SECONDS = 2.0
"""How long the server may take to accept again after that."""
INIT_SECONDS = 10.0
"""How long the kernel may take for its first request."""
LAST_ANSWERS = 0.1
"""Seconds for which a mount whose link is lost still answers, with EIO, what is in the kernel's queue."""
GRACE = 1.0
"""Seconds for which operations may go on that nobody waits for any more."""
UNMOUNT_SECONDS = 10.0
"""How long an unmount may write data back."""
FAREWELL_SECONDS = 5.0
"""How long the server may take to answer BYE."""
RECONNECT_SECONDS = 2.0
"""How long a mount that is to end waits for a connection that is lost."""
UNBOUNDED = 1 << 20
"""Tasks of pyfuse3.  A request without a slot waits in one and the device is read on, or INTERRUPT could not come."""


async def run_mount(
    connect: Callable[[], Awaitable[Stream]],
    volume: str,
    options: MountOptions,
    *,
    body_crc: bool,
    ready: Callable[[], None],
    single: bool = False,
) -> MountEnd:
    """Mounts `volume` of the server that `connect` leads to, and serves the mount until it ends.

    `connect` is called once for each connection: several times where native threads serve the mount, unless `single`
    says that there is only one connection.
    `ready()` is called once, as soon as the mount answers.  When a connection is lost, `connect` is called again as
    `options.on_disconnect` says.  When the session is lost the mount point stays and answers ENOTCONN, so that nobody
    writes into the directory below.  Being cancelled unmounts, also while programs use it.
    One mount at a time in a process: pyfuse3's state is global.

    Raises MountError, and what `connect` raises.
    """
    check(options)
    place = await trio.to_thread.run_sync(lambda: prepared(options.mountpoint, nonempty=options.nonempty))
    threads = 0 if single else wanted_threads(options)
    patience = 0.0 if single else options.on_disconnect
    offer = Offer(volume, options.readers, connections=1 + threads, body_crc=body_crc)
    attempts = HELLO_ATTEMPTS if patience else 1
    link = await _first_link(connect, offer, attempts)
    try:
        resuming = Resuming(link, connect, patience)
        channels = await resuming.attach(threads, attempts)
        return await Mount(link, resuming, place, options, channels).run(ready)
    finally:
        link.lose("the mount has ended")


async def _first_link(connect: Callable[[], Awaitable[Stream]], offer: Offer, attempts: int) -> Link:
    """Opens a session; where the connection breaks meanwhile, again.

    Raises MountError, and what `connect` raises at first: what follows a break is told by the break's own error.
    """
    broken: LinkLostError | None = None
    for _ in range(attempts):
        try:
            with trio.fail_after(math.inf if broken is None else HELLO_AGAIN_SECONDS):
                stream = await connect()
        except (trio.TooSlowError, ConnectError):
            if broken is None:
                raise
            break
        try:
            return await open_link(stream, offer)
        except LinkLostError as error:
            logger.info("the connection broke before there was a session", cause=error.cause)
            broken = error
    assert broken is not None
    raise broken


class Mount:
    """One mount: pyfuse3's session, the filter on it, and the link behind it."""

    def __init__(
        self, link: Link, resuming: Resuming, place: str, options: MountOptions, channels: list[Channel]
    ) -> None:
        """`resuming` keeps the link connected.  `channels` are connections for native threads, taken over by the mount;
        without any Python serves alone."""
        self._link = link
        self._resuming = resuming
        self._place = place
        self._options = options
        self._cleanup = Cleanup(link)
        self._interrupts = Interrupts(link)
        self._operations = Operations(link, self._cleanup, options.cache, shared_locks=options.shared_locks)
        self._locks = SharedLocks(link) if options.shared_locks else None
        self._taken = self._make_taken(link)
        self._channels = channels
        self._filter: Filter | None = None
        self._native: NativePath | None = None
        self._stopping = trio.Event()
        self._gone = trio.Event()
        self._served = trio.Event()
        self._main = trio.CancelScope()
        self._asked = False
        self._entry: MountEntry | None = None
        self._error: BaseException | None = None
        link.late = self._late
        link.make_space = self._cleanup.settle

    async def run(self, ready: Callable[[], None]) -> MountEnd:
        """Mounts and serves until the end, as `run_mount` says."""
        self._begin()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._serve, ready)
                try:
                    await self._served.wait()
                finally:
                    self._stopping.set()
        finally:
            self._close()
        if self._error is not None:
            raise InternalError("something failed unexpectedly", "see the log") from self._error
        match self._link.error:
            case 0:
                return MountEnd.UNMOUNTED
            case errno.ESTALE:
                return MountEnd.STALE
            case _:
                return MountEnd.CONNECTION_LOST

    def _make_taken(self, link: Link) -> Taken:
        operations = DeviceOperations(link, self._operations).table()
        if self._locks is None:
            return Taken(operations)
        return Taken({**operations, **self._locks.table()}, {Opcode.RELEASE: self._locks.releasing})

    def _late(self, replied: Replied) -> None:
        """A reply to an abandoned request: what it brought is given back."""
        self._cleanup.give_back(replied)
        if self._locks is not None:
            self._locks.give_back(replied)

    # ---- beginning --------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Mounts, puts the filter on the device, and native threads beside it."""
        try:
            said = make_session(self._operations, self._place, mount_options(self._options))
        except BaseException:
            native_path.close(self._channels)
            raise
        self._entry = mount_at(self._place)
        if said:
            logger.warning("libfuse has something to say", text=" ".join(said))
        try:
            try:
                self._filter = self._attached()
            except FilterUnavailableError as error:
                if self._locks is not None:
                    raise PermissionDeniedError(
                        f"locks cannot be shared without the filter on /dev/fuse: {error}",
                        "see `fusepipe doctor` for the filter, or mount with --locks local",
                    ) from None
                reason = str(error)
                logger.warning("the filter on /dev/fuse is missing: inode numbers are not the host's", reason=reason)
            self._begin_native()
        except BaseException:
            native_path.close(self._channels)
            pyfuse3.close(unmount=True)
            raise
        if self._filter is not None:
            self._cleanup.filter = self._filter
            self._link.current = self._filter.current
            self._operations.use(self._filter)
            if self._locks is not None:
                self._locks.use(self._filter)

    def _begin_native(self) -> None:
        """Starts native threads where there are connections for them; without them Python serves alone."""
        if not self._channels or self._filter is None:
            native_path.close(self._channels)
            return
        try:
            self._native = NativePath(self._link, self._cleanup, self._options, self._channels)
        except NativeUnavailableError as error:
            logger.warning("native threads cannot serve the mount, Python does it alone", reason=str(error))
            return
        self._resuming.native = self._native
        self._interrupts.elsewhere = self._native
        self._operations.beside(self._native)

    def _attached(self) -> Filter:
        agreed = self._link.agreed
        transfer = min(agreed.max_read, agreed.max_write)
        try:
            if not self._options.device_filter:
                raise FilterUnavailableError("it is switched off")
            made = Filter(self._cleanup.collected, self._interrupted, self._gone.set, self._taken.arrived)
            self._taken.use(made)
            made.attach(wishes(self._options, transfer))
        except FilterUnavailableError:
            if transfer < MAX_TRANSFER:
                raise RefusedError(
                    f"the server allows {transfer} bytes at a time, which only the filter on /dev/fuse can arrange",
                    f"let it allow {MAX_TRANSFER} bytes, or see `fusepipe doctor` for the filter",
                ) from None
            raise
        return made

    def _interrupted(self, unique: int, target: int) -> None:
        """INTERRUPT: where nobody knows the request yet, the kernel is told to ask again.  Called by the filter."""
        assert self._filter is not None
        try:
            if not self._interrupts.interrupt(target):
                self._filter.answer(unique, errno.EAGAIN)
        except OSError:
            pass  # the request has been answered meanwhile, and nobody asks any more
        except Exception as error:
            logger.error("an interrupt failed unexpectedly", error=error)

    # ---- serving ----------------------------------------------------------------------------------------------------

    async def _serve(self, ready: Callable[[], None]) -> None:
        """Everything that runs while the mount is there; whoever cancels `run` cannot reach it, so that an unmount is
        served as well."""
        with trio.CancelScope(shield=True):
            try:
                async with trio.open_nursery() as nursery:
                    for task in (
                        self._resuming.run,
                        self._cleanup.run,
                        self._interrupts.run,
                        self._stop_when_asked,
                        self._stop_when_lost,
                        self._stop_when_gone,
                    ):
                        nursery.start_soon(task)
                    if self._native is not None:
                        nursery.start_soon(self._native.run)
                    self._taken.start(nursery)
                    if self._locks is not None:
                        self._locks.start(nursery)
                    nursery.start_soon(liveness.watch, self._link)
                    nursery.start_soon(self._announce, ready)
                    with self._main:
                        await pyfuse3.main(min_tasks=self._options.readers, max_tasks=UNBOUNDED)
                    if self._native is not None:
                        self._native.stop()
                    await self._say_goodbye()
                    nursery.cancel_scope.cancel()
            except Exception as error:
                self._error = _first(error)
                logger.error("the mount ends: something failed unexpectedly", error=self._error)
            finally:
                self._served.set()

    async def _announce(self, ready: Callable[[], None]) -> None:
        with trio.fail_after(INIT_SECONDS):
            await self._operations.initialised.wait()
        set_read_ahead(self._place)
        native = self._native is not None
        logger.info("mounted", mountpoint=self._place, filter=self._filter is not None, native=native)
        if self._filter is not None and (agreed := self._filter.agreed()) is not None:
            logger.debug("INIT was answered", protocol=f"7.{agreed.minor}", flags=repr(agreed.flags))
        ready()

    # ---- ending -----------------------------------------------------------------------------------------------------

    async def _stop_when_asked(self) -> None:
        await self._stopping.wait()
        self._asked = True
        with trio.move_on_after(UNMOUNT_SECONDS) as patience:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._take_away, nursery.cancel_scope)
                nursery.start_soon(self._force_when_disconnected, nursery.cancel_scope)
        if patience.cancelled_caught:
            logger.error("unmounting takes too long; what was not written back is lost", mountpoint=self._place)
        else:
            await trio.sleep(GRACE)
        self._main.cancel()

    async def _take_away(self, done: trio.CancelScope) -> None:
        try:
            if await trio.to_thread.run_sync(take_away, self._place, abandon_on_cancel=True):
                logger.warning("the mount was in use; its programs get errors from now on", mountpoint=self._place)
        except (OSError, MountError) as error:
            logger.error("cannot unmount", mountpoint=self._place, error=error)
        done.cancel()

    async def _force_when_disconnected(self, done: trio.CancelScope) -> None:
        """Without a server an unmount that writes back, or looks at the path, would wait for it."""
        patience = trio.CancelScope()
        while not patience.cancelled_caught:
            if self._link.over.is_set():
                return  # then the device is closed in a moment, and nobody waits any more
            with trio.move_on_after(RECONNECT_SECONDS) as patience:
                await self._link.connected.wait()
            if not patience.cancelled_caught:
                await self._link.disconnected()
        logger.warning("unmounted without the server; what was not written back is lost", mountpoint=self._place)
        try:
            await trio.to_thread.run_sync(force_away, self._place, abandon_on_cancel=True)
        except (OSError, MountError) as error:
            logger.error("cannot unmount", mountpoint=self._place, error=error)
        done.cancel()

    async def _stop_when_lost(self) -> None:
        await self._link.over.wait()
        if self._link.error:
            await trio.sleep(LAST_ANSWERS)
            pyfuse3.terminate()
            await trio.sleep(GRACE)
            self._main.cancel()

    async def _stop_when_gone(self) -> None:
        await self._gone.wait()
        await trio.sleep(GRACE)
        self._main.cancel()

    async def _say_goodbye(self) -> None:
        """The last batch of cleanup, then BYE, which ends the session on the server at once."""
        link = self._link
        link.closing = True
        with trio.move_on_after(FAREWELL_SECONDS if link.connected.is_set() else RECONNECT_SECONDS):
            while not link.over.is_set():
                await link.connected.wait()
                self._cleanup.send()
                link.bye()
                await link.disconnected()

    def _close(self) -> None:
        """Closes the device, which gives an error to whoever still waits for it."""
        if self._native is not None:
            self._native.stop()
        pyfuse3.close(unmount=False)
        if self._filter is not None:
            self._filter.detach()
        if self._native is not None:
            self._native.close()
        if self._asked and mount_at(self._place) == self._entry:
            try:
                detach(self._place, lazy=True)  # nothing can be written back any more, so it cannot wait
            except (OSError, MountError) as error:
                logger.error("cannot unmount", mountpoint=self._place, error=error)


def _first(error: BaseException) -> BaseException:
    """The exception at the bottom of a group of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
