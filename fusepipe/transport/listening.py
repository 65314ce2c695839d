"""Listening for connections on Unix sockets and on vsock."""

import errno
import fcntl
import os
import socket
import stat

import trio

from fusepipe.transport.addresses import (
    VMADDR_CID_ANY,
    Address,
    FirecrackerAddress,
    UnixAddress,
    VsockAddress,
    VsockListenAddress,
)
from fusepipe.transport.socket_file import SocketFile
from fusepipe.transport.streams import Stream

BACKLOG = 128
"""Connections that the kernel keeps waiting for `accept`; further ones get EAGAIN or are refused, and try again."""

LOCK_PATIENCE = 5.0
"""Seconds to wait for another server that is just taking the same directory's socket."""

# accept(2): the connection is gone already, or the network had an error that concerns only it.
_GONE = frozenset({errno.ECONNABORTED, errno.EPROTO, errno.EINTR, errno.ECONNRESET, errno.ENOTCONN})
# Not enough of something for one more socket; it may be there later.
_SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


class ListenError(Exception):
    """No listening on this address.  `cause` says why, `remedy` what to do; the text of the exception has both."""

    def __init__(self, address: Address, cause: str, remedy: str) -> None:
        super().__init__(f"cannot listen on {address}: {cause}; {remedy}")
        self.address = address
        self.cause = cause
        self.remedy = remedy


class OutOfResources(Exception):
    """`accept` had no file descriptor or memory for one more connection.  It waits in the queue: try again later."""


class Listener(trio.abc.Listener[Stream]):
    """A listening socket.  Its socket file, if any, is removed when it is closed."""

    def __init__(self, address: Address, sock: socket.socket, path: str | None) -> None:
        self.address = address
        self._socket = sock
        self._path = path
        self._identity = None if path is None else _identity(path)

    async def accept(self) -> Stream:
        """Wait for the next connection; without an end, since nobody may ever come.

        Raises OutOfResources, and trio.ClosedResourceError once the listener is closed.
        """
        if self._socket.fileno() == -1:
            raise trio.ClosedResourceError("this listener was closed")
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                return Stream(self._socket.accept()[0])
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno in _GONE:
                    continue
                if error.errno in _SHORT:
                    raise OutOfResources(error.strerror) from error
                raise

    async def aclose(self) -> None:
        """Stop listening.  Connections that were not accepted are reset.  Doing it twice is no error."""
        self.close()
        await trio.lowlevel.checkpoint()

    @property
    def fd(self) -> int:
        """The listening socket's descriptor, which stays the listener's."""
        return self._socket.fileno()

    def release(self) -> None:
        """Close the socket here, where another process goes on listening on it: its file stays."""
        self._path = None
        self.close()

    def close(self) -> None:
        """What `aclose` does, without giving other tasks a turn."""
        if self._socket.fileno() != -1:
            trio.lowlevel.notify_closing(self._socket)
            # First the name, so that nobody finds a socket on which nobody listens; only if it is still ours.
            if self._path is not None and self._identity is not None and _identity(self._path) == self._identity:
                os.unlink(self._path)
            self._socket.close()


async def listen(address: Address, file: SocketFile | None = None) -> Listener:
    """Listen on `unix:`, `firecracker:`, `vsock:` or `vsock-listen:`; `file` says whose a socket's file is.

    A socket file on which nobody listens, left by a server that was killed, is replaced.  Raises ListenError, also
    where somebody does listen.
    """
    if isinstance(address, UnixAddress):
        return await _listen_unix(address, address.path, file or SocketFile())
    if isinstance(address, FirecrackerAddress):
        return await _listen_unix(address, address.socket_path, file or SocketFile())
    await trio.lowlevel.checkpoint()
    if isinstance(address, VsockAddress):
        return _listen_vsock(address, address.cid, address.port)
    if isinstance(address, VsockListenAddress):
        return _listen_vsock(address, VMADDR_CID_ANY, address.port)
    raise ListenError(address, "this kind of address cannot listen", f"use {UnixAddress.form} or {VsockAddress.form}")


def take_over(address: Address, fd: int) -> Listener:
    """Go on listening where another process has listened, on its socket, which is this one's from now on."""
    path = None
    if isinstance(address, UnixAddress):
        path = address.path
    elif isinstance(address, FirecrackerAddress):
        path = address.socket_path
    return Listener(address, socket.socket(fileno=fd), path)


# ---- Unix ----


async def _listen_unix(address: Address, path: str, file: SocketFile) -> Listener:
    folder = os.path.dirname(path) or "."
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ListenError(
            address, f"the directory {folder} cannot be opened: {error.strerror}", "create it, or choose another path"
        ) from error
    try:
        await _lock(address, folder, lock)
        return _take_path(address, path, file)
    finally:
        os.close(lock)


async def _lock(address: Address, folder: str, lock: int) -> None:
    """Lock the directory: of two servers that find the same dead socket one would else remove the other's new one."""
    with trio.move_on_after(LOCK_PATIENCE):
        while True:
            await trio.lowlevel.checkpoint()
            try:
                return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                await trio.sleep(0.05)
            except OSError as error:
                if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF):
                    return None  # a filesystem without flock(2), such as some network filesystems: go on without
                raise
    raise ListenError(address, f"another program holds a lock on the directory {folder}", "choose another directory")


def _take_path(address: Address, path: str, file: SocketFile) -> Listener:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        try:
            sock.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_stale(address, path)
            sock.bind(path)
        # Before anybody can connect, which `listen` allows.
        _give_file(address, path, file)
        sock.listen(BACKLOG)  # cannot fail on a bound Unix socket, so no file is left behind
        return Listener(address, sock, path)
    except OSError as error:
        sock.close()
        raise ListenError(
            address, error.strerror or str(error), "choose a path where this user may create files"
        ) from error
    except BaseException:
        sock.close()
        raise


def _give_file(address: Address, path: str, file: SocketFile) -> None:
    """Set owner and mode of a socket's file, which is removed where that fails.  Raises ListenError."""
    if file == SocketFile():
        return
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    link = f"/proc/self/fd/{fd}"  # leads to the file itself, whatever has its name by now
    try:
        if file.uid is not None or file.gid is not None:
            os.chown(link, -1 if file.uid is None else file.uid, -1 if file.gid is None else file.gid)
        if file.mode is not None:
            os.chmod(link, file.mode)
    except OSError as error:
        os.unlink(path)
        raise ListenError(
            address,
            f"owner and mode of {path} cannot be set: {error.strerror}",
            "run as root, or leave out --socket-owner",
        ) from error
    finally:
        os.close(fd)


def _remove_stale(address: Address, path: str) -> None:
    """Remove a socket file if nobody listens on it; raises ListenError where it is in use or something else."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise ListenError(address, f"{path} exists and is not a socket", "choose another path, or remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(path)
    if code == errno.ECONNREFUSED:
        os.unlink(path)
    elif code in (0, errno.EAGAIN, errno.EPROTOTYPE):
        raise ListenError(address, f"another process listens on {path}", "stop it, or choose another path")
    elif code != errno.ENOENT:
        raise ListenError(
            address,
            f"{path} exists, and whether somebody listens there cannot be found out: {os.strerror(code)}",
            "choose another path, or remove it",
        )


def _identity(path: str) -> tuple[int, int] | None:
    """Device and inode number of a socket file; None when it is gone or out of reach."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


# ---- vsock ----


def _listen_vsock(address: Address, cid: int, port: int) -> Listener:
    try:
        sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            raise ListenError(
                address, "this kernel does not know AF_VSOCK", "load the module vsock, or use unix:PATH"
            ) from error
        raise ListenError(address, error.strerror or str(error), "raise the limit that is named") from error
    try:
        sock.setblocking(False)
        sock.bind((cid, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise ListenError(address, *_explain_vsock(cid, port, error)) from error
    return Listener(address, sock, None)


def _explain_vsock(cid: int, port: int, error: OSError) -> tuple[str, str]:
    """Cause and remedy for an errno of bind(2) or listen(2) on AF_VSOCK."""
    if error.errno == errno.EADDRINUSE:
        return f"another process listens on vsock port {port}", "stop it, or choose another port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"the CID {cid} is not this machine's", f"use vsock:any:{port}"
    if error.errno == errno.EACCES:
        return f"port {port} is below 1024 and this user is not privileged", "choose a port from 1024 on"
    return error.strerror or str(error), "check that this machine has a vsock device"
