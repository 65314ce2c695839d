"""Starting a session process, and what its launcher holds of it."""

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import trio

import fusepipe
from fusepipe import log
from fusepipe.server import control
from fusepipe.server.options import ServerOptions
from fusepipe.server.tables import create_memfd
from fusepipe.server.volumes import Volume
from fusepipe.wire.codec import ID_SIZE

KILL_PATIENCE = 2.0
"""Seconds beyond `ServerOptions.drain` until a session process that was told to end is killed."""

# Appended to the module search path, not put before it, and without the working directory (-P): the session process
# must find this fusepipe wherever it was imported from, and nothing else that happens to lie around.
_CODE = "import sys; sys.path.append(sys.argv[2]); from fusepipe.server.session_process import main; main()"


class SessionProcess:
    """A session process and the control socket to it.  For one trio loop."""

    def __init__(
        self, process: "subprocess.Popen[bytes]", control_socket: socket.socket, session_id: bytes, drain: float
    ):
        self.session_id = session_id
        self._process = process
        self._control = control_socket
        self._pidfd = os.pidfd_open(process.pid)
        self._drain = drain

    @property
    def pid(self) -> int:
        """The process's id, valid until `wait` has returned."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """What `wait` returned; None before."""
        return self._process.returncode

    def give(self, sock: socket.socket, first_frame: bytes = b"", *, body_crc: bool = False) -> None:
        """Hand over a connected stream socket, which is closed here in any case.

        `first_frame` is what was received from it already, a whole frame; without it the session reads it itself.
        `body_crc` asks the client for checksums of every frame.  Raises OSError where the process has ended or hangs.
        """
        with sock:
            control.send(self._control, control.Give(first_frame, body_crc), [sock.fileno()])

    async def wait(self) -> int:
        """Wait until the process has ended; without an end, since sessions last for months.

        Returns its exit status: 0 after a clean end, 1 after an unexpected error, which was logged, -N after signal N.
        """
        while (status := self._process.poll()) is None:
            await trio.lowlevel.wait_readable(self._pidfd)
        await trio.lowlevel.checkpoint()
        return status

    def terminate(self) -> None:
        """Tell the process to finish what runs and to end (SIGTERM)."""
        self._process.terminate()

    async def aclose(self) -> None:
        """End the process, by force where it does not end by itself in time, and release what is held of it."""
        if self._pidfd == -1:
            await trio.lowlevel.checkpoint()
            return
        with trio.CancelScope(shield=True):
            self.terminate()
            with trio.move_on_after(self._drain + KILL_PATIENCE):
                await self.wait()
            self._process.kill()
            # Ends when the kernel has ended the process; a system call that cannot be interrupted delays that.
            with trio.move_on_after(KILL_PATIENCE):
                await self.wait()
        self.release()

    def release(self) -> None:
        """Close what is held of a process that has ended.  (One that has not would go on by itself.)"""
        if self._pidfd != -1:
            os.close(self._pidfd)
            self._pidfd = -1
            self._control.close()

    async def __aenter__(self) -> "SessionProcess":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def start_session(volume: Volume, options: ServerOptions | None = None) -> SessionProcess:
    """Start a session process for one client of `volume`.  It waits for its connections: `give`.

    It ends by itself when the last of them has ended and its grace is over.  Blocks for a few milliseconds.  Raises
    VolumeError, and OSError where the system gives no more processes, memory or file descriptors.
    """
    options = options or ServerOptions()
    session_id = secrets.token_bytes(ID_SIZE)
    with ExitStack() as stack:
        root = volume.open()
        stack.callback(os.close, root)
        memfd = create_memfd(options.limits.slots)
        stack.callback(os.close, memfd)
        ours, theirs = control.pair()
        stack.enter_context(theirs)
        with ExitStack() as undo:
            undo.enter_context(ours)
            begin = control.Begin(session_id, volume.name, volume.read_only, volume.policy, options, log.current())
            control.send(ours, begin, [memfd, root])
            process = _spawn(theirs)
            undo.callback(_destroy, process)
            session = SessionProcess(process, ours, session_id, options.drain)
            undo.pop_all()
        return session


def _spawn(theirs: socket.socket) -> "subprocess.Popen[bytes]":
    place = str(Path(fusepipe.__file__).parent.parent)
    command: Sequence[str] = [sys.executable, "-P", "-c", _CODE, str(theirs.fileno()), place]
    return subprocess.Popen(
        command,
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        # Whoever reads what the command prints must not have to wait for the end of its sessions.
        stdout=subprocess.DEVNULL,
        # A terminal's Ctrl-C is for the command alone: sessions end after their clients have unmounted.
        start_new_session=True,
    )


def _destroy(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
