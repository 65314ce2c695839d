"""A session on a directory, in this process, with the server's own tables and handlers and without a mount."""

import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fusepipe import log
from fusepipe.server.dispatcher import dispatcher
from fusepipe.server.handlers import HANDLERS
from fusepipe.server.native import Native
from fusepipe.server.session import Session
from fusepipe.server.tables import Tables, create_memfd
from fusepipe.syscalls import install_interrupt_handler
from fusepipe.wire import ServerLimits, ServerSession
from fusepipe.wire import messages as m
from tests.server.sessions import PATIENCE


class Served:
    """A session on a directory, in this process."""

    def __init__(self, path: Path, *, native: bool) -> None:
        limits = ServerLimits()
        memfd = create_memfd(limits.slots)
        self.tables = Tables(memfd, str(path), fd_budget=256, privileged=not os.geteuid())
        os.close(memfd)
        logger = log.get_logger("server")
        install_interrupt_handler(signal.SIGUSR1)
        self.native = Native(self.tables, signal.SIGUSR1, logger) if native else None
        locks = self.native.slot_locks if self.native else [threading.Lock() for _ in range(limits.slots)]
        self.wire = ServerSession(
            b"0123456789abcdef",
            limits,
            self.tables.slots,
            token_bytes=secrets.token_bytes,
            read_only=False,
            slot_locks=locks,
            traffic=self.native.traffic if self.native else None,
        )
        self.dispatched: list[m.Op] = []
        run = dispatcher(self.tables, HANDLERS, logger)

        def dispatch(event: Any) -> Any:
            self.dispatched.append(event.op)
            return run(event)

        self.session = Session(
            self.wire,
            locks,
            dispatch,
            interrupt_signal=signal.SIGUSR1,
            keep=False,
            on_end=lambda: None,
            logger=logger,
            native=self.native,
        )

    def connect(self, *, body_crc: bool = False) -> socket.socket:
        ours, theirs = socket.socketpair()
        self.session.add(theirs, body_crc=body_crc)
        return ours


@contextmanager
def serving(path: Path, *, native: bool = True) -> Iterator[Served]:
    first = threading.Thread(target=int)  # with a process's first thread the thread sanitizer begins one of its own
    first.start()
    first.join()
    before = set(os.listdir("/proc/self/task"))
    served = Served(path, native=native)
    try:
        yield served
    finally:
        served.session.close(5.0)
        served.tables.close()
    end = time.monotonic() + PATIENCE
    while not set(os.listdir("/proc/self/task")) <= before:  # a joined thread stays there for a moment
        assert time.monotonic() < end, "threads are left"
        time.sleep(0.01)
