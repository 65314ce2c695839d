"""The end of nodes and handles."""

from ... import log
from ...wire import Buffer
from ...wire import messages as m
from ..tables import Tables
from .handler import NOTHING, Reply

_complain = log.Sparing(log.get_logger("server").error)


def cleanup(tables: Tables, request: m.CleanupRequest, _: Buffer) -> Reply:
    """CLEANUP.  Concurrent with everything: a handle holds its inode, so the order of batches does not matter.

    More forgets than lookups, and numbers that are not known, are clamped and logged: the client counts wrongly.
    """
    for handle in (*request.handles, *request.untaken):
        tables.locks.end_handle(handle)
    if wrong := tables.tree.cleanup(request.forgets, request.handles, request.untaken):
        _complain("the client gave back what it does not have", numbers=wrong[:8], count=len(wrong))
    return m.CleanupReply(), NOTHING
