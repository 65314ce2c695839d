"""Connecting, again and again until a deadline: it does not matter which side starts first."""

import errno
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import trio

from fusepipe.transport.addresses import (
    VMADDR_CID_ANY,
    Address,
    FdAddress,
    FirecrackerAddress,
    FirecrackerConnectAddress,
    UnixAddress,
    VsockAddress,
    VsockListenAddress,
)
from fusepipe.transport.inheriting import InheritError, inherit
from fusepipe.transport.listening import Listener, ListenError, listen
from fusepipe.transport.streams import Stream

FIRST_PAUSE = 0.02
"""Seconds between the first two attempts; each further pause is half as long again, up to LONGEST_PAUSE."""

LONGEST_PAUSE = 0.5

MAX_ANSWER = 64
"""Bytes of the answer to CONNECT, `OK <port>` and a newline; more are not an answer."""

# What goes away by itself when the other side has started: its socket file is not there yet, it does not listen yet,
# its queue is full.  Under vsock a port on which nobody listens is a time-out, a device that is not ready is ENODEV.
_PASSING = frozenset(
    {
        errno.ENOENT,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EPIPE,
        errno.EAGAIN,
        errno.ETIMEDOUT,
        errno.ENODEV,
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
    }
)


class ConnectError(Exception):
    """No connection.  `cause` says why, `remedy` what to do; the text of the exception has both."""

    def __init__(self, address: Address, cause: str, remedy: str) -> None:
        super().__init__(f"cannot connect to {address}: {cause}; {remedy}")
        self.address = address
        self.cause = cause
        self.remedy = remedy


class _Passing(Exception):
    """An attempt failed in a way that may pass by itself."""

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(cause)
        self.cause = cause
        self.remedy = remedy


async def connect(address: Address, *, deadline: float) -> Stream:
    """Connect to `address`, trying for `deadline` seconds from now; at least one attempt is made.

    Each attempt ends by itself or at the deadline, whichever is first.  `vsock-listen:` waits for the other side to
    dial; `fd:` is there or is not.  Raises ConnectError.
    """
    if isinstance(address, FirecrackerAddress):
        raise ConnectError(
            address,
            "this form is for the server on the VMM's machine, which listens there",
            f"in the guest use vsock:host:{address.port}; to dial a guest use {FirecrackerConnectAddress.form}",
        )
    if isinstance(address, VsockAddress) and address.cid == VMADDR_CID_ANY:
        raise ConnectError(address, "`any` is for listening", f"in a guest use vsock:host:{address.port}")
    if isinstance(address, FdAddress):
        await trio.lowlevel.checkpoint()
        try:
            return Stream(inherit(address.fd))
        except InheritError as error:
            raise ConnectError(address, str(error), "give a connected stream socket to this process") from error
    if isinstance(address, VsockListenAddress):
        async with connector(address, deadline=deadline) as accept:
            return await accept()
    return await _connect_until(address, trio.current_time() + deadline)


@asynccontextmanager
async def connector(address: Address, *, deadline: float) -> AsyncIterator[Callable[[], Awaitable[Stream]]]:
    """A function that connects to `address` as `connect` does, once for each call.

    For `vsock-listen:` it listens until the block is left, so that the side that dials can dial as often as connections
    are wanted.  Raises ConnectError, here and from each call.
    """
    if not isinstance(address, VsockListenAddress):
        yield partial(connect, address, deadline=deadline)
        return
    try:
        listener = await listen(address)
    except ListenError as error:
        raise ConnectError(address, error.cause, error.remedy) from error
    async with listener:
        yield partial(_accepted, address, listener, deadline)


async def _connect_until(address: Address, end: float) -> Stream:
    pause = FIRST_PAUSE
    last = _Passing("the other side does not answer", "check that it runs and is not paused")
    while True:
        # Every attempt gets some time: the first also with a deadline of 0, and one more at the very end.
        with trio.move_on_at(max(end, trio.current_time() + FIRST_PAUSE)):
            try:
                return Stream(await _attempt(address))
            except _Passing as passing:
                last = passing
        left = end - trio.current_time()
        if left <= 0:
            raise ConnectError(address, last.cause, last.remedy)
        await trio.sleep(min(pause, left))
        pause = min(pause * 1.5, LONGEST_PAUSE)


async def _attempt(address: Address) -> socket.socket:
    if isinstance(address, VsockAddress):
        try:
            return await _connected(socket.AF_VSOCK, (address.cid, address.port))
        except OSError as error:
            raise _explain_vsock(address, error) from error
    assert isinstance(address, UnixAddress | FirecrackerConnectAddress)
    try:
        sock = await _connected(socket.AF_UNIX, address.path)
    except OSError as error:
        raise _explain_unix(address, address.path, error) from error
    if isinstance(address, FirecrackerConnectAddress):
        try:
            await _dial_guest(sock, address)
        except BaseException:
            sock.close()
            raise
    return sock


async def _connected(family: socket.AddressFamily, target: str | tuple[int, int]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        try:
            sock.connect(target)
        except BlockingIOError as error:
            if error.errno != errno.EINPROGRESS:
                raise  # a Unix socket whose queue is full says EAGAIN and has not begun to connect: connect(2)
            await trio.lowlevel.wait_writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code)) from None
    except BaseException:
        sock.close()
        raise
    return sock


async def _dial_guest(sock: socket.socket, address: FirecrackerConnectAddress) -> None:
    """Ask the VMM for a port of its guest (Firecracker's docs/vsock.md): `CONNECT port`, answered by a line `OK port`.

    The answer is read byte by byte: what follows its newline belongs to the guest's stream.
    """
    silent = _Passing(
        f"nobody listens on port {address.port} in the guest", "start the side in the guest, or correct the port"
    )
    try:
        # A fresh socket's buffer takes a line of this length in one piece.
        sock.send(f"CONNECT {address.port}\n".encode())
        line = bytearray()
        while not line.endswith(b"\n") and len(line) < MAX_ANSWER:
            await trio.lowlevel.wait_readable(sock)
            try:
                byte = sock.recv(1)
            except BlockingIOError:
                continue
            if not byte:
                break
            line += byte
    except (ConnectionResetError, BrokenPipeError) as error:
        raise silent from error
    except OSError as error:
        raise _explain_unix(address, address.path, error) from error
    if not line:
        raise silent
    if not (line.startswith(b"OK ") and line.endswith(b"\n")):
        raise ConnectError(
            address,
            f"the socket answered {bytes(line)!r} instead of OK",
            "give the path of a Firecracker or vhost-device-vsock socket, without the port",
        )


async def _accepted(address: Address, listener: Listener, deadline: float) -> Stream:
    with trio.move_on_after(deadline):
        return await listener.accept()
    raise ConnectError(
        address,
        f"nobody connected within {deadline:g} seconds",
        f"start the side that dials, for example with {FirecrackerConnectAddress.form}",
    )


def _explain_unix(address: Address, path: str, error: OSError) -> Exception:
    """What an errno of connect(2) on a Unix socket means here, and what to do."""
    code = error.errno
    if code == errno.ECONNREFUSED:
        what = _what_is_no_socket(path)
        if what is not None:
            hint = "in ADDRESS/NAME the volume's name is what follows the last slash: is it missing?"
            return ConnectError(address, f"{path} is {what}, not a socket", hint)
        return _Passing(f"nobody listens on {path}", "start the server, or correct the path")
    if code == errno.ENOENT:
        return _Passing(f"there is no socket {path}", "start the server, or correct the path")
    if code == errno.EAGAIN:
        return _Passing(f"the server at {path} has too many connections waiting", "try again later")
    if code == errno.EACCES:
        return ConnectError(
            address,
            f"this user may not use {path}",
            "write permission on the socket and search permission on its directories is needed",
        )
    if code == errno.EPROTOTYPE:
        return ConnectError(address, f"{path} is not a stream socket", "give the path of a fusepipe server's socket")
    return _explain_other(address, error)


def _what_is_no_socket(path: str) -> str | None:
    """Say what is at `path` if it is not a socket: connect(2) answers ECONNREFUSED there too."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return None
    if stat.S_ISSOCK(mode):
        return None
    return "a directory" if stat.S_ISDIR(mode) else "a file"


def _explain_vsock(address: VsockAddress, error: OSError) -> Exception:
    """What an errno of socket(2) or connect(2) on AF_VSOCK means here, and what to do."""
    code = error.errno
    if code == errno.EAFNOSUPPORT:
        return ConnectError(
            address,
            "this kernel does not know AF_VSOCK",
            "load the module vsock (in a guest vmw_vsock_virtio_transport), or use unix:PATH",
        )
    if code == errno.ENODEV:
        return _Passing(
            "this machine has no vsock device",
            "give the VM one and load the module vmw_vsock_virtio_transport (vsock_loopback for vsock:local)",
        )
    if code in (errno.ETIMEDOUT, errno.ECONNREFUSED, errno.ECONNRESET):
        return _Passing(
            f"nobody listens on port {address.port} of CID {address.cid}",
            "start the server there (on Firecracker's host with firecracker:PATH:PORT), or correct the CID and port",
        )
    return _explain_other(address, error)


def _explain_other(address: Address, error: OSError) -> Exception:
    text = error.strerror or str(error)
    remedy = "check the address and the server"
    return _Passing(text, remedy) if error.errno in _PASSING else ConnectError(address, text, remedy)
