"""Real session processes and listeners for tests that run in one thread of their own and wait with an end."""

import fcntl
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from fusepipe.server import ServerOptions, SessionProcess, Volume, serve, start_session
from fusepipe.transport import Address, SocketFile
from fusepipe.wire import HelloRequest
from tests.server.sessions import PATIENCE, Client, offer

Sessions = Callable[[], list[int]]
"""The process ids of the session processes that began with this test."""


def until(condition: Callable[[], object]) -> None:
    """Wait for something that other threads or processes bring about."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


async def _status(process: SessionProcess) -> int:
    with trio.fail_after(PATIENCE):
        return await process.wait()


def ended(process: SessionProcess) -> int:
    """Wait for the end of a session process: its exit status."""
    return trio.run(_status, process)


@contextmanager
def session(
    path: Path, options: ServerOptions | None = None, *, read_only: bool = False, native: bool | None = None
) -> Iterator[SessionProcess]:
    """A session process for a directory; ended by force where the test has not brought it to its end."""
    if native is not None:
        options = replace(options or ServerOptions(), native=native)
    process = start_session(Volume("v", str(path), read_only), options)
    try:
        yield process
    finally:
        if process.status is None:
            os.kill(process.pid, signal.SIGKILL)
            ended(process)
        process.release()


def connected(process: SessionProcess, *, first: Client | None = None) -> Client:
    """A client of a session process, or a further connection of one."""
    ours, theirs = socket.socketpair()
    process.give(theirs)
    if first is None:
        return Client(ours)
    first.attach(ours)
    return first


class Serving:
    """A listener in a thread of this process."""

    def __init__(
        self,
        addresses: Sequence[str],
        volumes: Sequence[Volume],
        options: ServerOptions | None,
        socket_file: SocketFile | None,
        replace: bool = False,
    ) -> None:
        self._socket_file = socket_file
        self._replace = replace
        self.replaced_by: list[int] = []
        self.ready = threading.Event()
        self.error: BaseException | None = None
        self._addresses = [Address.parse(address) for address in addresses]
        self._volumes = volumes
        self._options = options
        self._cancel: Callable[[], None] = lambda: None
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:
            self.error = error
        finally:
            self.ready.set()

    async def _main(self) -> None:
        token = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as scope:
            self._cancel = lambda: token.run_sync_soon(scope.cancel)
            await serve(
                self._addresses,
                self._volumes,
                self._options,
                socket_file=self._socket_file,
                ready=self.ready.set,
                replace=self._replace,
                replaced=self.replaced_by.append,
            )

    def stop(self) -> None:
        """What SIGTERM does to a server; returns before it has drained."""
        self._cancel()


@contextmanager
def serving(
    addresses: Sequence[str],
    volumes: Sequence[Volume],
    options: ServerOptions | None = None,
    *,
    socket_file: SocketFile | None = None,
    replace: bool = False,
) -> Iterator[Serving]:
    """A listener that is ready, and is stopped afterwards."""
    server = Serving(addresses, volumes, options, socket_file, replace)
    server.thread.start()
    try:
        assert server.ready.wait(PATIENCE)
        if server.error is not None:
            raise server.error
        yield server
    finally:
        if server.thread.is_alive():
            server.stop()
        server.thread.join(PATIENCE)
        assert not server.thread.is_alive()
    if server.error is not None:
        raise server.error


def dial(path: Path) -> socket.socket:
    """A connection to a Unix socket that has an end to its patience."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # One that may not wait at all is told EAGAIN where many others want to be accepted: unix(7).
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(PATIENCE), 0))
    sock.connect(str(path))
    sock.settimeout(PATIENCE)
    return sock


def client(path: Path, volume: bytes = b"v", hello: HelloRequest | None = None) -> Client:
    """A client of a listener on a Unix socket."""
    return Client(dial(path), hello or offer(volume))


@contextmanager
def leased(path: Path) -> Iterator[None]:
    """A file whose opening waits, in the kernel, until this process gives up its lease: fcntl(2), "Leases"."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    path.write_text("leased")
    fd = os.open(path, os.O_RDWR)
    try:
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as error:
            pytest.skip(f"no leases on this filesystem: {error}")
        yield
    finally:
        os.close(fd)  # gives up the lease
        signal.signal(signal.SIGIO, before)
