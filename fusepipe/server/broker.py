"""The broker of a session: opens inodes by file handle for a session process that has no right to.

Who may open handles may open every inode of a filesystem, so a session process may not.  It shows its broker an inode
that it has open, and gets a signature under the inode's handle; later it shows handle and signature, and gets the inode
again.  The broker opens it on the session's own mount of the volume, through which nothing outside can be reached: a
descriptor carries the mount that it was opened through.

A thread of the launcher for each session, so that a filesystem that hangs holds up nobody else.  It answers one request
at a time and never waits for the session to take an answer.
"""

import array
import errno
import hmac
import os
import secrets
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from struct import Struct
from time import monotonic, sleep
from types import TracebackType
from typing import Final, TypeVar

from fusepipe import log
from fusepipe.syscalls import (
    HANDLE_ID_SIZE,
    SIGN_TOGETHER,
    TAG_SIZE,
    device_of,
    handle_of,
    handle_within,
    open_handle,
)

SHOW_MOUNT: Final = 1
SIGN: Final = 2
PROVE: Final = 3
OPEN: Final = 4

HEADER: Final = Struct("@II")
"""As `struct header` of syscalls/broker.c: what is asked, and how many descriptors or items there are."""

ITEM_SIZE: Final = HANDLE_ID_SIZE + TAG_SIZE
"""Bytes of an item: what names the inode (syscalls/file_handles.py), and a signature."""

ANSWER: Final = Struct(f"@i{TAG_SIZE}s")
"""-errno or 0, and a signature; one for each descriptor or item."""

MAX_MOUNTS: Final = 64
"""Filesystems in one volume whose inodes can be opened again; those of more live by their descriptors."""

RATE: Final = 20_000
"""Inodes in a second that a session may ask about for good; the same number at once."""

_MAX_REQUEST: Final = HEADER.size + SIGN_TOGETHER * ITEM_SIZE

_Asked = TypeVar("_Asked", int, bytes)

_logger = log.get_logger("server")


@dataclass(frozen=True)
class Authority:
    """What the brokers of one session share, of all the processes that serve it one after the other."""

    key: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    mounts: set[int] = field(default_factory=set)
    """Numbers of the mounts that were the session's own: also a process before may have shown descriptors of them."""


class Broker:
    """Serves one session process, by a thread of its own, until the process's end of the socket is closed."""

    def __init__(self, authority: Authority) -> None:
        """Raises OSError."""
        self._ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        """`theirs` is for the session process; whoever has passed it on closes it here."""
        self._authority = authority
        self._mounts: dict[int, int] = {}
        self._root = -1
        self._process = -1
        self._quota = float(RATE)
        self._counted = monotonic()
        self._thread = threading.Thread(target=self._run, name="broker", daemon=True)

    def start(self, pid: int) -> None:
        """`pid` is the session process's, which has not been waited for.  Raises OSError where there is no room."""
        # Stands for this very process, also when another one has its number.
        self._process = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._thread.start()
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, "no more threads can be started") from error

    def close(self, patience: float = 1.0) -> None:
        """End it.  A thread that a filesystem holds up for longer than `patience` seconds ends when that lets go."""
        self.theirs.close()
        if self._thread.ident is None:
            self._end()
            return
        with suppress(OSError):  # it has ended already
            self._ours.shutdown(socket.SHUT_RDWR)
        self._thread.join(patience)

    def __enter__(self) -> "Broker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _end(self) -> None:
        self._ours.close()
        for fd in (self._process, *self._mounts.values()):
            if fd >= 0:
                os.close(fd)
        self._process = -1
        self._mounts.clear()

    def _run(self) -> None:
        try:
            while (received := self._receive()) is not None:
                data, shown = received
                opened = -1
                try:
                    answers, opened = self._answer(data, shown)
                    self._send(b"".join(ANSWER.pack(*answer) for answer in answers), opened)
                finally:
                    for fd in (*shown, opened):
                        if fd >= 0:
                            os.close(fd)
        except BlockingIOError:
            _logger.warning("a session process does not take the answers of its broker")
        except OSError as error:
            _logger.debug("a broker ends", error=error)
        finally:
            self._end()

    def _receive(self) -> tuple[bytes, list[int]] | None:
        """A request, and the descriptors that came with it; the kernel closes what is too much.  None: the end."""
        fds = array.array("i")
        data, ancillary, _flags, _address = self._ours.recvmsg(
            _MAX_REQUEST, socket.CMSG_LEN(SIGN_TOGETHER * fds.itemsize), socket.MSG_CMSG_CLOEXEC
        )
        for _level, _kind, rights in ancillary:
            fds.frombytes(rights[: len(rights) - len(rights) % fds.itemsize])
        if not data:
            for fd in fds:
                os.close(fd)
            return None
        return data, list(fds)

    def _send(self, data: bytes, fd: int) -> None:
        """Raises BlockingIOError where the session has not taken what was sent before."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd >= 0 else []
        self._ours.sendmsg([data], rights, socket.MSG_DONTWAIT)

    def _wait_for_quota(self, count: int) -> None:
        now = monotonic()
        self._quota = min(float(RATE), self._quota + (now - self._counted) * RATE)
        self._counted = now
        self._quota -= count
        if self._quota < 0:
            sleep(-self._quota / RATE)

    def _answer(self, data: bytes, shown: list[int]) -> tuple[list[tuple[int, bytes]], int]:
        """For each that is asked about -errno or 0 and a signature; a descriptor or -1, which is the caller's."""
        kind, count = HEADER.unpack_from(data) if len(data) >= HEADER.size else (0, 0)
        items = [data[at : at + ITEM_SIZE] for at in range(HEADER.size, len(data), ITEM_SIZE)]
        self._wait_for_quota(max(1, len(items), len(shown)))
        if kind == SIGN and not items and len(shown) <= count <= SIGN_TOGETHER and count > 0:
            # Where this process may not open as many, the kernel has brought fewer.
            missing = [(-errno.ENFILE, b"")] * (count - len(shown))
            return [self._outcome(self._sign, fd) for fd in shown] + missing, -1
        if kind == PROVE and not shown and 0 < len(items) == count and len(items[-1]) == ITEM_SIZE:
            return [self._outcome(self._prove, item[:HANDLE_ID_SIZE]) for item in items], -1
        try:
            if kind == OPEN and not shown and len(items) == count == 1 and len(items[0]) == ITEM_SIZE:
                return [(0, b"")], self._open(items[0][:HANDLE_ID_SIZE], items[0][HANDLE_ID_SIZE:])
            if kind == SHOW_MOUNT and not items and len(shown) == count == 1:
                self._show_mount(shown)
                return [(0, b"")], -1
        except OSError as error:
            return [(-(error.errno or errno.EIO), b"")], -1
        return [(-errno.EINVAL, b"")], -1

    def _outcome(self, ask: Callable[[_Asked], bytes], about: _Asked) -> tuple[int, bytes]:
        try:
            return 0, ask(about)
        except OSError as error:
            return -(error.errno or errno.EIO), b""

    def _show_mount(self, shown: list[int]) -> None:
        """Takes the descriptor.  Only of a mount in the session's own namespace, and once for each filesystem."""
        id, mount = handle_of(shown[0])
        self._find_own_mounts()
        if device_of(id) in self._mounts or mount not in self._authority.mounts:
            raise PermissionError(errno.EPERM, "this mount is not the session's own")
        if len(self._mounts) == MAX_MOUNTS:
            raise OSError(errno.ENFILE, "too many filesystems")
        if self._root < 0:
            self._root = shown[0]
        self._mounts[device_of(id)] = shown.pop()

    def _find_own_mounts(self) -> None:
        """Those in the session process's namespace; none where that is also the launcher's."""
        fd = os.open("mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._process)
        with open(fd, "rb") as theirs, open("/proc/self/mountinfo", "rb") as ours:
            mounts = {int(line.split()[0]) for line in theirs} - {int(line.split()[0]) for line in ours}
        self._authority.mounts.update(mounts)

    def _sign(self, fd: int) -> bytes:
        id, mount = handle_of(fd)
        if device_of(id) not in self._mounts:
            raise PermissionError(errno.EPERM, "this filesystem is not known")
        if mount not in self._authority.mounts:
            self._find_own_mounts()  # it may have come since
        if mount not in self._authority.mounts:
            raise PermissionError(errno.EPERM, "this was not opened in the volume")
        return self._tag(id)

    def _prove(self, id: bytes) -> bytes:
        handle_within(self._root, self._mount_of(id), id)
        return self._tag(id)

    def _open(self, id: bytes, tag: bytes) -> int:
        if not hmac.compare_digest(tag, self._tag(id)):
            raise PermissionError(errno.EPERM, "this handle was not signed")
        return open_handle(self._mount_of(id), id)

    def _mount_of(self, id: bytes) -> int:
        mount = self._mounts.get(device_of(id))
        if mount is None:
            raise PermissionError(errno.EPERM, "this filesystem is not known")
        return mount

    def _tag(self, id: bytes) -> bytes:
        return blake2b(id, digest_size=TAG_SIZE, key=self._authority.key).digest()
