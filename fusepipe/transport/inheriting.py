"""Sockets that this process was started with."""

import errno
import os
import socket
import stat


class InheritError(Exception):
    """A file descriptor that is not what it should be.  The text says what it is instead."""


def inherit(fd: int) -> socket.socket:
    """Take over file descriptor `fd`, which must be a connected stream socket; it is close-on-exec from now on.

    Raises InheritError, after which the descriptor is as it was.
    """
    try:
        mode = os.fstat(fd).st_mode
    except OSError as error:
        if error.errno == errno.EBADF:
            raise InheritError(f"file descriptor {fd} is not open in this process") from None
        raise InheritError(f"file descriptor {fd} cannot be examined: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise InheritError(f"file descriptor {fd} is not a socket")
    sock = socket.socket(fileno=fd)
    try:
        _check(sock, fd)
    except BaseException:
        sock.detach()
        raise
    sock.set_inheritable(False)
    return sock


def _check(sock: socket.socket, fd: int) -> None:
    if sock.type != socket.SOCK_STREAM:
        raise InheritError(f"file descriptor {fd} is a socket, but not a stream socket")
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise InheritError(f"file descriptor {fd} is a listening socket, and a connected one is needed")
    try:
        sock.getpeername()
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.EINVAL):
            raise InheritError(f"file descriptor {fd} is a socket that is not connected") from None
        raise InheritError(f"file descriptor {fd} cannot be used: {error.strerror}") from error
