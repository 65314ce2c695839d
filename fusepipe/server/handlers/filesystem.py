"""The filesystem that holds a node."""

from ...wire import Buffer
from ...wire import messages as m
from ..tables import Tables
from .handler import NOTHING, Reply


def statfs(tables: Tables, request: m.StatfsRequest, _: Buffer) -> Reply:
    """STATFS.  Concurrent with everything."""
    return m.StatfsReply._make(tables.tree.statfs(request.node)), NOTHING
