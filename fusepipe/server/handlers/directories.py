"""Open directories."""

from ...wire import Buffer
from ...wire import messages as m
from ..tables import Tables
from .handler import NOTHING, Reply


def opendir(tables: Tables, request: m.OpendirRequest, _: Buffer) -> Reply:
    """OPENDIR.  Concurrent with everything."""
    return m.OpendirReply(*tables.tree.opendir(request.node, request.keep)), NOTHING


def readdir(tables: Tables, request: m.ReaddirRequest, _: Buffer) -> Reply:
    """READDIR.  Concurrent with everything; on one handle one after the other, for it has one reading position."""
    page, entries = tables.tree.readdir(request.handle, request.offset, request.size)
    return m.ReaddirReply(entries), page


def fsyncdir(tables: Tables, request: m.FsyncdirRequest, _: Buffer) -> Reply:
    """FSYNCDIR.  Concurrent with everything; takes as long as the disk."""
    tables.tree.fsync(request.handle, True, request.datasync)
    return m.FsyncdirReply(), NOTHING
