"""What becomes of a request that was running when the process of its session died, and that has come again.

Whether it had taken effect is not known.  So it is run again where that changes nothing, answered where what it changed
proves itself, and else EIO, for it alone; for LOOKUP never, whose errors would take away what the guest has mounted
below (fs/fuse/dir.c, fuse_dentry_revalidate).
"""

import errno
import os
from collections.abc import Callable
from typing import Final

from fusepipe import log
from fusepipe.server.dispatcher import Dispatch
from fusepipe.server.tables import Tables
from fusepipe.wire import ROWS, Buffer, Message, Op, encode_errno, encode_reply
from fusepipe.wire import messages as m
from fusepipe.wire.server_session import Arrived

MOST_DEATHS: Final = 2
"""Processes that may die while they run a request: it may be what they die of, and is not run any more."""

AGAIN: Final = frozenset(
    {Op.LOOKUP, Op.READDIR, Op.OPENDIR, Op.FLUSH, Op.FSYNC, Op.FSYNCDIR, Op.CLEANUP, Op.RELEASE}
    | {Op.SETLK, Op.SETLKW, Op.FLOCK, Op.FLOCKW}
    | {op for op in Op if ROWS[op].repeatable}
)
"""Operations that are run again.

A lookup and an entry of a listing may then be counted twice.  CLEANUP and RELEASE go on where they ended
(syscalls/cleanup.c).  Locks have ended with the process.
"""

_FROM_CACHE: Final = 1  # FUSE_WRITE_CACHE: the data have their place, whatever the handle says


def settling(tables: Tables, dispatch: Dispatch, logger: log.Logger) -> Dispatch:
    """What runs requests in place of `dispatch` that a process before this one was running.  From any thread."""

    def settle(event: Arrived) -> tuple[bytes, Buffer]:
        slot, seq, op, request, *_ = event
        if tables.tree.slot_deaths() >= MOST_DEATHS:
            logger.error("a request is given up: the processes that ran it have died", op=op.name.lower())
            # An error that passes: see the dispatcher.
            return encode_errno(slot, seq, errno.EINTR if op is Op.LOOKUP else errno.EIO), b""
        tables.tree.release_made()
        if _runs_again(tables, op, request):
            return dispatch(event)
        try:
            done = _CHECKS[op](tables, request) if op in _CHECKS else None
        except OSError:
            return dispatch(event)  # its directory is not there: that is its error, too
        if done is None:
            logger.warning("what became of a request is not known, and its answer is EIO", op=op.name.lower())
            return encode_errno(slot, seq, errno.EIO), b""
        if not done:
            return dispatch(event)
        return encode_reply(slot, seq, op, _REPLIES[op]), b""

    return settle


def _runs_again(tables: Tables, op: Op, request: Message) -> bool:
    if isinstance(request, m.OpenRequest):
        return not request.flags & os.O_TRUNC
    if isinstance(request, m.WriteRequest):
        try:
            return bool(request.flags & _FROM_CACHE) or not tables.tree.appends(request.handle)
        except OSError:
            return True  # which says why it cannot be
    return op in AGAIN


def _removal(tables: Tables, request: m.UnlinkRequest | m.RmdirRequest) -> bool | None:
    return tables.tree.removal_is_done(request.parent, request.name)


def _rename(tables: Tables, request: m.RenameRequest) -> bool | None:
    return tables.tree.rename_is_done(*request)


_CHECKS: Final[dict[Op, Callable[[Tables, Message], bool | None]]] = {
    Op.UNLINK: _removal,  # type: ignore[dict-item]  # each gets its operation's request
    Op.RMDIR: _removal,  # type: ignore[dict-item]
    Op.RENAME: _rename,  # type: ignore[dict-item]
}
_REPLIES: Final[dict[Op, Message]] = {
    Op.UNLINK: m.UnlinkReply(),
    Op.RMDIR: m.RmdirReply(),
    Op.RENAME: m.RenameReply(),
}


def in_slot(tables: Tables, dispatch: Dispatch) -> Dispatch:
    """The same, with the request's slot known to what runs it."""
    enter, leave = tables.tree.slot_enter, tables.tree.slot_leave

    def run(event: Arrived) -> tuple[bytes, Buffer]:
        enter(event.slot)
        try:
            return dispatch(event)
        finally:
            leave()

    return run
