"""A Unix socket that carries connections on to a server, and cuts them all when a test says so."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from typing import Self


class CuttingRelay:
    """Listens on `path` and carries every connection on to the Unix socket `server`.

    While `open` is not set, whoever dials is sent away.  For use from any thread.
    """

    def __init__(self, path: Path, server: Path) -> None:
        self.open = threading.Event()
        self.open.set()
        self._server = server
        self._lock = threading.Lock()  # guards what follows; a leaf
        self._sockets: list[socket.socket] = []
        self._budget: int | None = None
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.open.clear()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(30)
        self.cut()
        for thread in self._threads:
            thread.join(30)
        self._listener.close()
        for one in self._sockets:
            one.close()

    def cut(self) -> None:
        """Ends every connection."""
        with self._lock:
            sockets = [one for one in self._sockets if one.fileno() != -1]
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def cut_after(self, count: int) -> None:
        """Ends every connection when so many more bytes have passed, both ways together."""
        with self._lock:
            self._budget = count

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                if not self.open.is_set():
                    client.close()
                    continue
                server = socket.socket(socket.AF_UNIX)
                with self._lock:
                    self._sockets += [client, server]
                try:
                    server.connect(str(self._server))
                except OSError:
                    client.shutdown(socket.SHUT_RDWR)
                    continue
                for source, target in ((client, server), (server, client)):
                    thread = threading.Thread(target=self._carry, args=(source, target))
                    self._threads.append(thread)
                    thread.start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                with self._lock:
                    now = self._budget is not None and self._budget <= len(data)
                    if now:
                        data, self._budget = data[: self._budget], None
                    elif self._budget is not None:
                        self._budget -= len(data)
                target.sendall(data)
                if now:
                    self.cut()
                    return
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
