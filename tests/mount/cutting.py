"""A Unix socket that carries connections on to a server, and cuts them all when a test says so."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter
from pathlib import Path
from typing import Literal, Self

To = Literal["server", "client"]


class CuttingRelay:
    """Listens on `path` and carries every connection on to the Unix socket `server`.

    While `open` is not set, whoever dials is sent away.  For use from any thread.
    """

    def __init__(self, path: Path, server: Path) -> None:
        self.open = threading.Event()
        self.open.set()
        self.passed: Counter[To] = Counter()
        """How many bytes went to each side, of all connections.  Guarded by `_lock`, as all that follows."""
        self._server = server
        self._lock = threading.Lock()  # a leaf
        self._sockets: list[socket.socket] = []
        self._budget: int | None = None
        self._dialled = 0
        self._ends: dict[int, tuple[int, To]] = {}
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._accepting = threading.Thread(target=self._accept)
        self._connections: list[threading.Thread] = []
        self._accepting.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.open.clear()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join(30)
        self.cut()
        for thread in self._connections:
            thread.join(30)
        self._listener.close()

    def cut(self) -> None:
        """Ends every connection."""
        with self._lock:
            _shut(*self._sockets)

    def cut_after(self, count: int) -> None:
        """Ends every connection when so many more bytes have passed, both ways together."""
        with self._lock:
            self._budget = count

    def cut_next(self, count: int, to: To, *, skip: int = 0) -> None:
        """Ends the next connection that is dialled, or one after it, when so many of its bytes have passed to one side.

        Takes the place of what was said before about connections that have not been dialled.
        """
        with self._lock:
            self._ends = {self._dialled + skip: (count, to)}

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                if not self.open.is_set():
                    client.close()
                    continue
                server = socket.socket(socket.AF_UNIX)
                try:
                    server.connect(str(self._server))
                except OSError:
                    client.close()
                    server.close()
                    continue
                with self._lock:
                    self._sockets += [client, server]
                    end = self._ends.pop(self._dialled, None)
                    self._dialled += 1
                thread = threading.Thread(target=self._connection, args=(client, server, end))
                self._connections = [one for one in self._connections if one.is_alive()] + [thread]
                thread.start()

    def _connection(self, client: socket.socket, server: socket.socket, end: tuple[int, To] | None) -> None:
        """Both directions of a connection, until they have ended; then its sockets are closed."""
        there = threading.Thread(target=self._carry, args=(client, server, "server", end))
        there.start()
        self._carry(server, client, "client", end)
        there.join()
        with self._lock:
            for one in (client, server):
                self._sockets.remove(one)
                one.close()

    def _carry(self, source: socket.socket, target: socket.socket, to: To, end: tuple[int, To] | None) -> None:
        left = end[0] if end is not None and end[1] == to else None
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                data = data[:left]
                with self._lock:
                    to_end = self._spend(len(data))
                    if to_end is not None:
                        data = data[:to_end]
                    self.passed[to] += len(data)
                target.sendall(data)
                if to_end is not None:
                    self.cut()
                    return
                if left is not None and not (left := left - len(data)):
                    break
        _shut(source, target)

    def _spend(self, count: int) -> int | None:
        """Take these bytes off the budget: how many of them may pass before all ends, None where it does not."""
        if self._budget is None:
            return None
        if self._budget <= count:
            count, self._budget = self._budget, None
            return count
        self._budget -= count
        return None


def _shut(*sockets: socket.socket) -> None:
    for one in sockets:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
