"""A session as its listener keeps it: what is needed to go on after the death of its process, and the process.

What is kept is only handed on, never looked at: a guest may have broken into the process that made it.
"""

import os
import resource
import signal
import socket
import struct
from array import array
from collections import deque
from contextlib import ExitStack
from types import TracebackType
from typing import Final

import trio

from fusepipe import log
from fusepipe.server.control import MAX_FDS
from fusepipe.server.launching import SessionProcess, Tools, launch, new_id
from fusepipe.server.options import CANNOT_GO_ON, ServerOptions
from fusepipe.server.tables import create_memfd
from fusepipe.server.volumes import Volume

DEATHS_WITHIN: Final = 60.0
"""Seconds in which `ServerOptions.session_deaths` are too many."""

LEAST_PINS, MOST_PINS = 64, 4096
"""Descriptors that are kept for one session: a sixteenth of what this process may open, within these bounds."""

SAY_PATIENCE: Final = 10
"""Seconds after which a session process goes on without what this one should have kept, where that does not listen."""

_PACKET: Final = 4096  # 512 numbers: pins.c
_TOGETHER: Final = 64  # packets that are taken before other tasks have their turn

_logger = log.get_logger("server")


class Room:
    """What all sessions together may have kept: half of what this process may open."""

    def __init__(self) -> None:
        _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.most_of_one = max(LEAST_PINS, min(MOST_PINS, hard // 16))
        self.left = hard // 2


class Pins:
    """Descriptors of inodes without a name, by the numbers of their nodes.  For one trio loop."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._fds: dict[int, int] = {}
        self._complain = log.Sparing(_logger.warning)

    def __len__(self) -> int:
        return len(self._fds)

    def receive(self, ours: socket.socket) -> bool:
        """Take one packet; False where there is none."""
        fds = array("i")
        try:
            data, ancillary, _flags, _address = ours.recvmsg(
                _PACKET, socket.CMSG_LEN(fds.itemsize), socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
            )
        except OSError:
            return False
        for _level, _kind, rights in ancillary:
            fds.frombytes(rights[: len(rights) // fds.itemsize * fds.itemsize])
        if not data:
            for fd in fds:
                os.close(fd)
            return False
        nodes = array("Q", data[: len(data) // 8 * 8])
        if fds and len(nodes) == 1 and nodes[0] not in self._fds and self._room.left:
            self._room.left -= 1
            self._fds[nodes[0]] = fds[0]
            self._limit()
        elif fds:
            for fd in fds:
                os.close(fd)
        else:
            for node in nodes:
                self._drop(node)
        return True

    def _limit(self) -> None:
        """The oldest goes where there are too many."""
        most = self._room.most_of_one
        if len(self._fds) > most:
            self._drop(next(iter(self._fds)))
            self._complain("a session has more open files without a name than are kept for it", kept=most)

    def _drop(self, node: int) -> None:
        fd = self._fds.pop(node, None)
        if fd is not None:
            self._room.left += 1
            os.close(fd)

    def parts(self) -> list[tuple[list[int], list[int]]]:
        """Numbers and descriptors, as many together as one message takes."""
        items = list(self._fds.items())
        return [
            ([node for node, _ in part], [fd for _, fd in part])
            for part in (items[start : start + MAX_FDS] for start in range(0, len(items), MAX_FDS))
        ]

    def close(self) -> None:
        """Close all of them."""
        for node in list(self._fds):
            self._drop(node)


class KeptSession:
    """A session: its process, and after that one's death the next.  For one trio loop."""

    def __init__(self, volume: Volume, options: ServerOptions, room: Room) -> None:
        """Starts the first process.  Raises as `launching.start_session`."""
        self.session_id = new_id()
        self._volume = volume
        self._options = options
        self._deaths: deque[float] = deque()
        self._pins = Pins(room)
        self._said: socket.socket | None = None
        with ExitStack() as stack:
            self._root = volume.open()
            stack.callback(os.close, self._root)
            self._memfd = create_memfd(options.limits.slots)
            stack.callback(os.close, self._memfd)
            self._process = self._launch(restored=False)
            stack.pop_all()

    @property
    def process(self) -> SessionProcess:
        """The process that serves it now, or did so last."""
        return self._process

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
            tools = Tools(self.session_id, self._memfd, self._root, keep, restored, len(self._pins))
            process = launch(self._volume, self._options, tools)
            stack.pop_all()
        theirs.close()
        if self._said is not None:
            self._said.close()
        self._said = ours
        return process

    async def wait(self) -> int:
        """Wait until the process has ended, and keep what it gives; its exit status, as `SessionProcess.wait`."""
        assert self._said is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep, self._said)
            status = await self._process.wait()
            nursery.cancel_scope.cancel()
        while self._pins.receive(self._said):
            pass
        return status

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
        now = trio.current_time()
        self._deaths.append(now)
        while self._deaths[0] < now - DEATHS_WITHIN:
            self._deaths.popleft()
        return len(self._deaths) < self._options.session_deaths

    async def restart(self) -> None:
        """Start the process that goes on.  Raises OSError where the system gives none."""
        self._process.release()
        self._process = process = self._launch(restored=True)
        for nodes, fds in self._pins.parts():
            while True:
                try:
                    process.give_pins(nodes, fds)
                    break
                except BlockingIOError:
                    await process.wait_writable()
                except (BrokenPipeError, ConnectionResetError):
                    return  # it has died already
                except OSError as error:
                    _logger.error("open files without a name are lost", count=len(nodes), error=error)
                    fds.clear()  # the process has to know that they do not come

    async def aclose(self) -> None:
        """End the process, by force where it does not end by itself in time, and give back what is kept."""
        await self._process.aclose()
        if self._said is not None:
            self._said.close()
            self._said = None
            self._pins.close()
            os.close(self._memfd)
            os.close(self._root)

    async def __aenter__(self) -> "KeptSession":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
