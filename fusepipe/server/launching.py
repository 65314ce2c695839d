"""Starting a session process, and what its launcher holds of it."""

import errno
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import trio

import fusepipe
from fusepipe import log
from fusepipe.server import control
from fusepipe.server.broker import Authority, Broker
from fusepipe.server.options import SandboxError, SandboxLevel, ServerError, ServerOptions
from fusepipe.server.sandbox import BY_HANDLE, Prepared, Report
from fusepipe.server.seccomp import program
from fusepipe.server.tables import create_memfd
from fusepipe.server.volumes import Volume
from fusepipe.syscalls import facts, part_children
from fusepipe.wire.codec import ID_SIZE

KILL_PATIENCE = 2.0
"""Seconds beyond `ServerOptions.drain` until a session process that was told to end is killed."""

TRIAL_PATIENCE = 30.0
"""Seconds in which a session process that is only tried must have said what sandbox it has."""

# Appended to the module search path, not put before it, and without the working directory (-P): the session process
# must find this fusepipe wherever it was imported from, and nothing else that happens to lie around.
_CODE = "import sys; sys.path.append(sys.argv[2]); from fusepipe.server.session_process import main; main()"


class SessionProcess:
    """A session process and the control socket to it.  For one trio loop."""

    def __init__(
        self,
        process: "subprocess.Popen[bytes]",
        control_socket: socket.socket,
        session_id: bytes,
        drain: float,
        root: int,
        broker: Broker | None = None,
    ):
        """`root` is the volume's directory: to unmount it shall be refused for as long as the process uses it."""
        self.session_id = session_id
        self._root = root
        self._broker = broker
        self._process = process
        self._control = control_socket
        self._pidfd = os.pidfd_open(process.pid)
        self._drain = drain
        self._report: Report | None = None

    @property
    def pid(self) -> int:
        """The process's id, valid until `wait` has returned."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """What `wait` returned; None before."""
        return self._process.returncode

    @property
    def sandbox(self) -> Report | None:
        """What sandbox the process has; None until it has said so."""
        for _ in range(2):  # that the process is gone may be told before what it had said
            if self._report is not None:
                break
            try:
                received = control.receive(self._control)
            except OSError:  # nothing has come yet
                break
            if received is not None:
                report, _fds = received
                assert isinstance(report, Report)
                self._report = report
        return self._report

    async def said(self) -> tuple[bytes, list[int]] | None:
        """Wait for the next packet that the process sends, with its descriptors; None when there can be no more."""
        while True:
            await trio.lowlevel.wait_readable(self._control)
            with suppress(BlockingIOError):
                return self.said_now()

    def said_now(self) -> tuple[bytes, list[int]] | None:
        """The same without waiting.  Raises BlockingIOError where there is none now."""
        try:
            return control.receive_packet(self._control)
        except BlockingIOError:
            raise
        except OSError:
            return None

    def leave(self) -> None:
        """Tell the process to make room for the next one (control.Leave).  Raises OSError, as `give`."""
        control.send(self._control, control.Leave(), [])

    def kill(self) -> None:
        """End the process now (SIGKILL)."""
        self._process.kill()

    def give(self, sock: socket.socket, first_frame: bytes = b"", *, body_crc: bool = False) -> None:
        """Hand over a connected stream socket, which is closed here in any case.

        `first_frame` is what was received from it already, a whole frame; without it the session reads it itself.
        `body_crc` asks the client for checksums of every frame.  Raises OSError where the process has ended or hangs.
        """
        with sock:
            control.send(self._control, control.Give(first_frame, body_crc), [sock.fileno()])

    async def wait(self) -> int:
        """Wait until the process has ended; without an end, since sessions last for months.

        Returns its exit status: 0 after a clean end, 1 after an unexpected error, which was logged, CANNOT_GO_ON where
        another one could not do better, -N after signal N.
        """
        while (status := self._process.poll()) is None:
            await trio.lowlevel.wait_readable(self._pidfd)
        await trio.lowlevel.checkpoint()
        return status

    async def give_pins(self, nodes: list[int], fds: list[int]) -> None:
        """Send some of the descriptors that were kept for the process; they stay open here.  Raises OSError."""
        await self._patiently(lambda: control.send(self._control, control.Pins(nodes), fds))

    async def give_packet(self, packet: bytes, fds: list[int]) -> None:
        """Send what a process before it sent (`said`); the descriptors stay open here.  Raises OSError."""
        await self._patiently(lambda: control.send_packet(self._control, packet, fds))

    async def _patiently(self, send: Callable[[], None]) -> None:
        """Send when the process takes it, or has ended."""
        while True:
            try:
                return send()
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._control)

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
            os.close(self._root)
            self._control.close()
            if self._broker is not None:
                self._broker.close()

    async def __aenter__(self) -> "SessionProcess":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def start_session(volume: Volume, options: ServerOptions | None = None, *, trial: bool = False) -> SessionProcess:
    """Start a session process for one client of `volume`.  It waits for its connections: `give`.

    It ends by itself when the last of them has ended and its grace is over.  `trial`: when it has said what sandbox
    it has.  Blocks for a few milliseconds.  Raises VolumeError, and OSError where the system gives no more processes,
    memory or file descriptors.
    """
    options = options or ServerOptions()
    with ExitStack() as stack:
        root = volume.open()
        stack.callback(os.close, root)
        memfd = create_memfd(options.limits.slots)
        stack.callback(os.close, memfd)
        return launch(volume, options, Tools(new_id(), memfd, root, authority=new_authority(options)), trial=trial)


def new_id() -> bytes:
    """The id of a new session."""
    return secrets.token_bytes(ID_SIZE)


def new_authority(options: ServerOptions) -> Authority | None:
    """For the brokers of a new session; None where they could do nothing."""
    return Authority() if options.sandbox != "none" and BY_HANDLE in facts().capabilities else None


@dataclass(frozen=True)
class Tools:
    """What a session process works with; the descriptors stay the owner's.

    `authority` is its broker's, None: it has none.  `keep` is where it sends descriptors that are to be kept for the
    process after it, -1: there will be none.  `pins`: how many of those it is going to get, and `locks`, how many
    packets with locks.
    """

    session_id: bytes
    memfd: int
    root: int
    keep: int = -1
    restored: bool = False
    pins: int = 0
    locks: int = 0
    authority: Authority | None = None


def launch(volume: Volume, options: ServerOptions, tools: Tools, *, trial: bool = False) -> SessionProcess:
    """Start a session process with these tools.  Blocks for a few milliseconds.  Raises OSError."""
    with ExitStack() as stack:
        ours, theirs = control.pair()
        stack.enter_context(theirs)
        with ExitStack() as undo:
            undo.enter_context(ours)
            root = os.dup(tools.root)
            undo.callback(os.close, root)
            broker = undo.enter_context(Broker(tools.authority)) if tools.authority is not None else None
            process, no_processes = _spawn(theirs, options.sandbox)
            undo.callback(_destroy, process)
            if broker is not None:
                broker.start(process.pid)
            # The process loads its modules meanwhile.
            begin = control.Begin(
                session_id=tools.session_id,
                volume=volume.name,
                read_only=volume.read_only,
                policy=volume.policy,
                options=options,
                log=log.current(),
                prepared=_prepare(options.sandbox, no_processes),
                broker=broker is not None,
                trial=trial,
                restored=tools.restored,
                pins=tools.pins,
                locks=tools.locks,
            )
            asked = broker.theirs.fileno() if broker is not None else -1
            control.send(ours, begin, [fd for fd in (tools.memfd, tools.root, asked, tools.keep) if fd >= 0])
            if broker is not None:
                broker.theirs.close()
            session = SessionProcess(process, ours, tools.session_id, options.drain, root, broker)
            undo.pop_all()
        return session


async def try_sandbox(volume: Volume, options: ServerOptions) -> Report:
    """What sandbox a session of `volume` would have.

    Raises as `start_session`, SandboxError where a wall cannot be had that is required, and ServerError where the trial
    does not work.
    """
    async with start_session(volume, options, trial=True) as session:
        with trio.move_on_after(TRIAL_PATIENCE):
            await session.wait()
        report = session.sandbox
    if report is None:
        raise ServerError("a session process cannot say what sandbox it has", "see the log lines before this one")
    check_sandbox(report, options.sandbox)
    return report


def check_sandbox(report: Report, level: SandboxLevel) -> None:
    """Raises SandboxError where a wall is missing that is required."""
    if level == "require" and report.missing:
        missing = report.missing[0]
        raise SandboxError(
            f"the sandbox of a session cannot be had, {missing}", f"{missing.remedy}; or give --sandbox prefer"
        )


def _prepare(level: SandboxLevel, no_processes: str) -> Prepared:
    if level == "none":
        return Prepared()
    try:
        return Prepared(program(), program(by_handle=True), no_processes=no_processes)
    except OSError as error:
        return Prepared(no_filter=error.strerror or str(error), no_processes=no_processes)


def _spawn(theirs: socket.socket, level: SandboxLevel) -> "tuple[subprocess.Popen[bytes], str]":
    """The process, and why it has no pid namespace of its own."""
    place = str(Path(fusepipe.__file__).parent.parent)
    command: Sequence[str] = [sys.executable, "-P", "-c", _CODE, str(theirs.fileno()), place]
    started: list[subprocess.Popen[bytes]] = []
    errors: list[OSError] = []
    apart = ""

    def start() -> None:
        nonlocal apart
        if level != "none":
            try:
                part_children()
            except OSError as error:
                apart = error.strerror or str(error)
        # As the first of its pid namespace it would never get a signal that it is not prepared for yet.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        try:
            process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # Whoever reads what the command prints must not have to wait for the end of its sessions.
                stdout=subprocess.DEVNULL,
                # A terminal's Ctrl-C is for the command alone: sessions end after their clients have unmounted.
                start_new_session=True,
            )
        except OSError as error:
            errors.append(error)
        else:
            started.append(process)

    # What it does to itself concerns its children, and then nobody any more.
    thread = threading.Thread(target=start, name="start of a session")
    try:
        thread.start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, "no more threads can be started") from error
    thread.join()
    if errors:
        raise errors[0]
    return started[0], apart


def _destroy(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
