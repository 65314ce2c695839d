"""The session process: one client's session, its crash, its memory and its file descriptors.

A launcher starts it with one end of a control socket, on which it says what to be and gives connections.  It ends with
exit status 0 when its client has been gone for the session's grace, after BYE, or after SIGTERM; with 1 after an
unexpected error, with 2 where another process could do no better, with 3 where it was told to make room for one.  A
launcher that dies changes nothing for the connections that are there, but nobody can come back.

Started for every mount, so nothing is imported that it does not use; trio above all.
"""

import faulthandler
import os
import resource
import secrets
import select
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from enum import Enum, auto
from time import monotonic
from typing import NoReturn, TypeAlias

from fusepipe import log
from fusepipe.server import control
from fusepipe.server.dispatcher import dispatcher
from fusepipe.server.handlers import HANDLERS
from fusepipe.server.leaving import cannot_leave, hand_in, take_over
from fusepipe.server.mounted import mounts_below
from fusepipe.server.native import Native
from fusepipe.server.options import CANNOT_GO_ON, FDS_PER_REQUEST, LEAST_DRAIN, LEFT, ServerOptions
from fusepipe.server.sandbox import BY_HANDLE, Sandbox, enter
from fusepipe.server.session import Session
from fusepipe.server.settling import in_slot, settling
from fusepipe.server.tables import Tables
from fusepipe.syscalls import facts, install_interrupt_handler
from fusepipe.wire import Remembered, ServerSession

INTERRUPT_SIGNAL = signal.SIGUSR1
STATISTICS_SIGNAL = signal.SIGUSR2
"""Asks a session process to log what it holds."""

WAKES = 4096
"""Bytes; each wakes the main thread."""

LONGEST_POLL = 1e9
"""Milliseconds; poll(2) takes no more than 2^31."""

MIN_FD_BUDGET = 16
MAX_FD_BUDGET = 32768
"""Where inodes can be opened by handle again, more descriptors than this only keep kernel memory in use."""


def main() -> NoReturn:
    """What runs in the process: `python -c ... CONTROL_FD PLACE`."""
    pid = _pid()
    try:
        status = _run(socket.socket(fileno=int(sys.argv[1])), pid)
    except BaseException as error:
        log.get_logger("server").error("a session process failed", pid=pid, error=error)
        status = 1
    # Without an interpreter's shutdown: threads may wait in system calls that cannot be interrupted.
    os._exit(status)


def _pid() -> int:
    """This process's id as everybody else sees it: in its own pid namespace it is 1."""
    try:
        return int(os.readlink("/proc/self"))
    except OSError:
        return os.getpid()


def _run(channel: socket.socket, pid: int) -> int:
    """Serve one session; returns the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    woken, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    # A signal that comes just before the main thread waits would be handled only after its wait.
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    stop = _Stop()
    signal.signal(signal.SIGTERM, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])  # the launcher has blocked it
    received = control.receive(channel)
    if received is None:
        return 0
    begin, (memfd, root, *sockets) = received
    assert isinstance(begin, control.Begin)
    broker = sockets.pop(0) if begin.broker else -1
    log.apply(begin.log)
    log.log_uncaught()
    logger = log.get_logger("server").bind(volume=begin.volume, pid=pid)
    faulthandler.enable()
    os.umask(0)  # the mode that comes with a request is what the guest's kernel made of its umask
    os.chdir("/")
    install_interrupt_handler(INTERRUPT_SIGNAL)
    most_fds = _raise_fd_limit()
    mounted = mounts_below(root) if begin.restored else []  # their paths are out of reach afterwards
    sandbox = enter(root, begin.prepared, level=begin.options.sandbox, read_only=begin.read_only)
    if not _tell(channel, sandbox, begin, logger):
        return 0 if begin.trial else CANNOT_GO_ON
    if begin.policy.squash_all is not None:
        become(*begin.policy.squash_all)
    if not sandbox.handles or begin.policy.squash_all is not None:
        if broker >= 0:
            os.close(broker)
        broker = -1
    capabilities = facts().capabilities
    tables = Tables(
        memfd,
        sandbox.root,
        fd_budget=_fd_budget(begin.options, most_fds, by_handle=broker >= 0 or BY_HANDLE in capabilities),
        privileged={"setuid", "setgid"} <= capabilities,
        read_only=begin.read_only,
        policy=begin.policy,
        proc_fd=sandbox.proc_fd,
        broker_fd=broker,
    )
    for fd in sockets:
        tables.tree.keep(fd)
    remembered, given = None, list[_Given]()
    if begin.restored:
        remembered = tables.memory.remembered()
        given = _restore(channel, sandbox.root, mounted, tables, begin, logger)
        if not _can_go_on(tables, remembered, logger):
            return CANNOT_GO_ON
    for fd in (memfd, sandbox.root, sandbox.proc_fd, broker):
        if fd >= 0:
            os.close(fd)
    # Runs in the main thread, which the kernel prefers for it, so no worker's system call ends early (signal(7)).
    signal.signal(STATISTICS_SIGNAL, lambda *_: logger.info("statistics of a session", **tables.statistics()))
    # A traced request has to pass where it is logged.
    native = begin.options.native and not log.tracing("server")
    shared = Native(tables, INTERRUPT_SIGNAL, logger) if native else None
    locks: Sequence[AbstractContextManager[object]]
    locks = shared.slot_locks if shared else [threading.Lock() for _ in range(len(tables.slots))]
    wire = ServerSession(
        begin.session_id,
        begin.options.limits,
        tables.slots,
        token_bytes=secrets.token_bytes,
        read_only=begin.read_only,
        software="fusepipe",
        slot_locks=locks,
        traffic=shared.traffic if shared else None,
        memory=tables.memory,
        remembered=remembered,
    )
    if shared is not None and wire.agreed is not None:
        shared.agreed(wire.agreed)
    if shared is not None and begin.locks:
        shared.has_locks()
    dispatch = dispatcher(tables, HANDLERS, logger)
    session = Session(
        wire,
        locks,
        in_slot(tables, dispatch),
        interrupt_signal=INTERRUPT_SIGNAL,
        keep=begin.options.session_grace > 0,
        on_end=lambda: _wake(wake),
        logger=logger,
        native=shared,
        settle=in_slot(tables, settling(tables, dispatch, logger)),
        waits_since=monotonic() if begin.restored else None,
    )
    for sock, give in given:
        session.add(sock, give.first_frame, body_crc=give.body_crc)
    end = _End.STAYS
    while end is _End.STAYS:
        end = _take_connections(channel, woken, stop, session, begin.options.session_grace)
        if end is _End.LEAVES and (cause := cannot_leave(tables)):
            control.send(channel, control.Stays(cause), [])
            end = _End.STAYS
    if end is _End.AWAY:
        logger.info("the client has not come back in time", seconds=begin.options.session_grace)
    # One that no client has yet, or nobody wants any more, ends.
    if end is _End.LEAVES and begin.options.session_grace > 0 and wire.agreed and not session.ended.is_set():
        session.leave(max(begin.options.drain, LEAST_DRAIN))
        if not session.ended.is_set():
            hand_in(channel, tables)
            logger.info("a session process makes room for another one")
            return LEFT
    session.close(begin.options.drain)
    logger.debug("a session process ends", **tables.statistics())
    return 1 if session.failed else 0


_Given: TypeAlias = tuple[socket.socket, control.Give]


class _End(Enum):
    """Why no more connections are taken."""

    STAYS = auto()
    """They are."""
    ENDED = auto()
    """The session has ended, or SIGTERM came, or nobody can give any more."""
    AWAY = auto()
    """The client has been away for the session's grace."""
    LEAVES = auto()
    """Another process is to go on."""


class _Stop:
    """Handles SIGTERM: notes that it came."""

    def __init__(self) -> None:
        self.came = False

    def __call__(self, *_: object) -> None:
        self.came = True


def _wake(pipe: int) -> None:
    """Wake the main thread; also from other threads."""
    with suppress(BlockingIOError):  # full: it is woken already
        os.write(pipe, b"\0")


def _restore(
    channel: socket.socket, root: int, mounted: list[bytes], tables: Tables, begin: control.Begin, logger: log.Logger
) -> "list[_Given]":
    """Make known to the tables what another process knew beside them: the connections that came meanwhile."""
    for path in mounted:
        with suppress(OSError):  # it is gone, or hidden by another one
            tables.tree.know_filesystem(root, path)
    given: list[_Given] = []
    pins, locks = begin.pins, begin.locks
    while pins or locks:
        received = control.receive(channel)
        if received is None:
            break
        message, fds = received
        if isinstance(message, control.Give):
            given.append((socket.socket(fileno=fds[0]), message))
            continue
        if isinstance(message, control.Locks):
            take_over(message, fds, tables)
            locks -= 1
            continue
        assert isinstance(message, control.Pins)
        for node, fd in zip(message.nodes, fds, strict=bool(fds)):
            tables.tree.restore_pin(node, fd)
        pins -= len(message.nodes)
    lost = tables.tree.prove()
    if lost:
        # Most often they were removed, and the guest has not forgotten them yet.
        logger.info("inodes are gone, or cannot be told to lie in the volume", count=lost)
    return given


def _can_go_on(tables: Tables, remembered: Remembered | None, logger: log.Logger) -> bool:
    """Whether this process can serve what another one began; the log says how, or why not."""
    if remembered is None or remembered.ended:
        return False  # nobody has it, or nobody wants it any more
    now = tables.statistics()
    about = {name: now[name] for name in ("inodes", "handles", "pinned")}
    if now["unreachable"] and not tables.tree.opens_by_handle:
        logger.error("a session cannot go on: its inodes cannot be opened again by file handle", **about)
        return False
    logger.info("a session goes on in another process", **about)
    if now["unreachable"]:
        logger.error("inodes on a filesystem without file handles are lost", count=now["unreachable"])
    if now["lost_locks"]:
        logger.error("locks are lost: files that had some are open without them", files=now["lost_locks"])
    return True


def become(uid: int, gid: int) -> None:
    """Be this user and group from now on, without any privilege that they do not have.  Raises OSError."""
    if (os.getresuid(), os.getresgid()) == ((uid,) * 3, (gid,) * 3):
        return
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def _tell(channel: socket.socket, sandbox: Sandbox, begin: control.Begin, logger: log.Logger) -> bool:
    """Tell the launcher and the log what sandbox there is: whether to go on."""
    report = sandbox.report
    held, missing = ", ".join(report.held), "; ".join(map(str, report.missing))
    with suppress(OSError):  # a launcher that is gone does not ask
        control.send(channel, report, [])
    refused = begin.options.sandbox == "require" and bool(report.missing)
    if not begin.trial and refused:
        remedy = f"{report.missing[0].remedy}; or give --sandbox prefer"
        logger.error("a session cannot have its sandbox", missing=missing, remedy=remedy)
    elif not begin.trial and begin.options.sandbox != "none":
        logger.info("the sandbox of a session", held=held, **({"missing": missing} if missing else {}))
    return not begin.trial and not refused


def _take_connections(channel: socket.socket, woken: int, stop: _Stop, session: Session, grace: float) -> _End:
    """Give the session what arrives on the control socket, until it is to end or to leave, or SIGTERM comes.

    A launcher that is gone leaves a session that has no connection with nothing to wait for.
    """
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(woken, select.POLLIN)
    launcher = True
    while not (stop.came or session.ended.is_set()):
        since = session.waits_since
        left = None if since is None else since + grace - monotonic()
        if left is not None and left <= 0:
            return _End.AWAY
        if not (launcher or session.connected):
            return _End.ENDED
        # Ends with the session or its last connection, with a signal (they write to the pipe), or with a message.
        ready = {fd for fd, _ in poll.poll(None if left is None else min(left * 1000 + 1, LONGEST_POLL))}
        if woken in ready:
            os.read(woken, WAKES)
        if channel.fileno() in ready:
            received = control.receive(channel)
            if received is None:
                poll.unregister(channel)
                launcher = False
                continue
            message, fds = received
            if isinstance(message, control.Leave):
                return _End.LEAVES
            assert isinstance(message, control.Give)
            session.add(socket.socket(fileno=fds[0]), message.first_frame, body_crc=message.body_crc)
    return _End.ENDED


def _raise_fd_limit() -> int:
    """Raise the limit of descriptors as far as this process may: how many that is."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _fd_budget(options: ServerOptions, most: int, *, by_handle: bool) -> int:
    """How many of `most` descriptors inodes and handles get.

    What else needs some: each request that runs, each wait for a lock, connections, and what every process has.
    """
    limits = options.limits
    running = FDS_PER_REQUEST * limits.request_slots + limits.lock_slots
    room = most - min(running, most // 2) - limits.connections - 64
    wanted = options.fd_budget or (min(room, MAX_FD_BUDGET) if by_handle else room)
    return max(MIN_FD_BUDGET, min(wanted, room))


if __name__ == "__main__":
    main()
