"""A session as its listener keeps it: what is needed to go on after the death of its process, and the process.

What is kept is only handed on, never looked at: a guest may have broken into the process that made it.
"""

import os
import signal
import socket
import struct
from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import replace
from types import TracebackType
from typing import Final

import trio

from fusepipe import log
from fusepipe.server import control
from fusepipe.server.belongings import Belongings, Packets, Pins, Room
from fusepipe.server.control import SAY_PATIENCE
from fusepipe.server.launching import SessionProcess, Tools, launch, new_authority, new_id
from fusepipe.server.options import CANNOT_GO_ON, LEFT, ServerOptions
from fusepipe.server.tables import create_memfd
from fusepipe.server.volumes import Volume

DEATHS_WITHIN: Final = 60.0
"""Seconds in which `ServerOptions.session_deaths` are too many."""

MOST_CAUSE: Final = 200
"""Characters of a text that a session process gives for the log."""

_TOGETHER: Final = 64  # packets that are taken before other tasks have their turn

_logger = log.get_logger("server")


class KeptSession:
    """A session: its process, and after that one's death, or when it made room, the next.  For one trio loop."""

    def __init__(
        self, volume: Volume, options: ServerOptions, room: Room, belongings: Belongings | None = None
    ) -> None:
        """Starts the first process, or takes over what another listener had, which waits for `restart`.

        Raises as `launching.start_session`; the belongings are its own then, too.
        """
        self.session_id = new_id() if belongings is None else belongings.session_id
        self._volume = volume
        self._options = options if belongings is None else replace(options, limits=belongings.limits)
        self._deaths: deque[float] = deque()
        self._pins = Pins(room)
        self._locks = Packets(room)
        self._complain = log.Sparing(_logger.warning)
        self._authority = new_authority(options)
        if self._authority is not None and belongings is not None and belongings.authority is not None:
            self._authority = belongings.authority
        self._said: socket.socket | None = None
        self._process: SessionProcess | None = None
        self._leaving = self._restarting = False
        self._stays = ""
        self._left = self._decided = trio.Event()
        self._started = trio.Event()
        self._handed = self._rests = False
        with ExitStack() as stack:
            if belongings is None:
                self._memfd = create_memfd(options.limits.slots)
            else:
                self._memfd = belongings.memfd
                for nodes, fds in belongings.pins:
                    self._pins.add(nodes, fds)
                for packet, fds in belongings.locks:
                    self._locks.add(packet, fds)
            stack.callback(os.close, self._memfd)
            stack.callback(self._pins.close)
            stack.callback(self._locks.close)
            self._root = volume.open()
            stack.callback(os.close, self._root)
            if belongings is None:
                self._process = self._launch(restored=False)
                self._started.set()
            stack.pop_all()

    @property
    def process(self) -> SessionProcess:
        """The process that serves it now, or did so last.  (`restart` makes the first one of what was taken over.)"""
        assert self._process is not None
        return self._process

    @property
    def ended(self) -> dict[str, int | None]:
        """How its last process ended, for the log; empty where there was none yet."""
        return {} if self._process is None else {"pid": self._process.pid, "status": self._process.status}

    @property
    def _kept(self) -> bool:
        return self._options.session_grace > 0

    def _launch(self, *, restored: bool) -> SessionProcess:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ExitStack() as stack:
            stack.enter_context(theirs)
            stack.enter_context(ours)
            # Here, because it may not do so itself (seccomp.py).
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SAY_PATIENCE, 0))
            keep = theirs.fileno() if self._kept else -1
            pins, locks = len(self._pins), len(self._locks)
            tools = Tools(self.session_id, self._memfd, self._root, keep, restored, pins, locks, self._authority)
            process = launch(self._volume, self._options, tools)
            stack.pop_all()
        theirs.close()
        if self._said is not None:
            self._said.close()
        self._said = ours
        return process

    async def started(self) -> None:
        """Wait until there is a process, or the session is at its end."""
        await self._started.wait()

    async def wait(self) -> int:
        """Wait until the process has ended, and keep what it gives; its exit status, as `SessionProcess.wait`."""
        assert self._said is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep, self._said)
            nursery.start_soon(self._listen, self.process)
            status = await self.process.wait()
            nursery.cancel_scope.cancel()
        while self._pins.receive(self._said):
            pass
        with suppress(BlockingIOError):
            while (packet := self.process.said_now()) is not None:
                self._heard(*packet)
        return status

    async def _listen(self, process: SessionProcess) -> None:
        """Take what the process says."""
        while (packet := await process.said()) is not None:
            self._heard(*packet)

    def _heard(self, packet: bytes, fds: list[int]) -> None:
        """Keep what is for the next process; all else but `Stays` is of no use here."""
        try:
            message = control.decode(packet)
        except ValueError as error:
            self._complain("a session process says what cannot be understood", error=error)
            message = None
        if self._leaving and isinstance(message, control.Locks):
            self._locks.add(packet, fds)
            return
        for fd in fds:
            os.close(fd)
        if self._leaving and isinstance(message, control.Stays):
            self._stays = str(message.cause)[:MOST_CAUSE]
            self._left.set()

    async def _keep(self, said: socket.socket) -> None:
        while True:
            await trio.lowlevel.wait_readable(said)
            for _ in range(_TOGETHER):
                if not self._pins.receive(said):
                    break
            else:
                continue
            # Its end is readable for good, and says that the process is about to be gone.
            try:
                if not said.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                    return
            except OSError:
                continue

    def goes_on(self, status: int) -> bool:
        """Whether another process is to go on where one ended like this.  To be asked once for each."""
        if not self._kept or status in (0, CANNOT_GO_ON, -signal.SIGTERM):
            return False
        if self._leaving or status == LEFT:
            return True
        now = trio.current_time()
        self._deaths.append(now)
        while self._deaths[0] < now - DEATHS_WITHIN:
            self._deaths.popleft()
        return len(self._deaths) < self._options.session_deaths

    async def restart(self) -> None:
        """Start the process that goes on.  Raises OSError where the system gives none."""
        if self._process is not None:
            self._process.release()
        self._process = process = self._launch(restored=True)
        self._started.set()
        self._restarting = True
        try:
            for nodes, fds in self._pins.parts():
                try:
                    await process.give_pins(nodes, fds)
                except (BrokenPipeError, ConnectionResetError):
                    raise
                except OSError as error:
                    _logger.error("open files without a name are lost", count=len(nodes), error=error)
                    await process.give_pins(nodes, [])  # the process has to know that they do not come
            for packet, fds in self._locks:
                await process.give_packet(packet, fds)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has died already
        finally:
            self._restarting = False
            self._locks.close()  # they are that process's now, and end with it
        if self._leaving:
            self._tell_to_leave()

    # ---- another listener ----

    def is_at(self, device: int, inode: int) -> bool:
        """Whether this is the directory that the session serves."""
        root = os.fstat(self._root)
        return (root.st_dev, root.st_ino) == (device, inode)

    @property
    def lasts(self) -> bool:
        """Whether the session outlives its process at all."""
        return self._kept

    def leave(self) -> None:
        """Have the process make room for the next one: `left` tells when, then `stay` or `hand_over` has to come."""
        self._leaving, self._handed, self._stays = True, False, ""
        self._left, self._decided = trio.Event(), trio.Event()
        if not self._restarting:
            self._tell_to_leave()

    def _tell_to_leave(self) -> None:
        try:
            self.process.leave()
        except (BrokenPipeError, ConnectionResetError):
            return  # its end will be seen
        except OSError as error:
            _logger.error("a session process does not take messages", pid=self.process.pid, error=error)
            self.process.kill()

    async def left(self) -> str:
        """Wait until no process serves the session: empty; or why its process serves on."""
        await self._left.wait()
        return self._stays

    def belongings(self) -> Belongings:
        """What `left` has left; the descriptors stay this one's."""
        return Belongings(
            self.session_id, self._options.limits, self._memfd, self._pins.parts(), list(self._locks), self._authority
        )

    @property
    def rests(self) -> bool:
        """Whether its process has made room, and there is something to go on with."""
        return self._rests

    def kill_unless_left(self) -> None:
        """End the process by force where it takes too long to make room."""
        if not self._left.is_set():
            _logger.error("a session process does not make room, and is killed", pid=self.process.pid)
            self.process.kill()

    def stay(self) -> None:
        """This listener goes on with the session."""
        self._leaving = False
        self._decided.set()

    def hand_over(self) -> None:
        """Another listener goes on with it."""
        self._handed = True
        self._decided.set()

    async def is_ours(self) -> bool:
        """After the end of a process: whether the next one is this listener's to start; waits while that is open."""
        if self._leaving:
            self._rests = True
            self._started = trio.Event()
            self._left.set()
            await self._decided.wait()
            self._rests = False
        return not self._handed

    async def aclose(self) -> None:
        """End the process, by force where it does not end by itself in time, and give back what is kept."""
        self._left.set()
        self._started.set()
        if self._process is not None:
            await self._process.aclose()
        if self._root != -1:
            if self._said is not None:
                self._said.close()
                self._said = None
            self._pins.close()
            self._locks.close()
            os.close(self._memfd)
            os.close(self._root)
            self._root = -1

    async def __aenter__(self) -> "KeptSession":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
