"""Open files."""

from ...syscalls import Identity
from ...wire import Buffer
from ...wire import messages as m
from ..tables import Tables
from .handler import NOTHING, Reply, entry


def open_(tables: Tables, request: m.OpenRequest, _: Buffer) -> Reply:
    """OPEN.  Concurrent with everything; may wait for a lease that a host program holds, and INTERRUPT ends that."""
    return m.OpenReply(*tables.tree.open(request.node, request.flags, request.kill, request.keep)), NOTHING


def create(tables: Tables, request: m.CreateRequest, _: Buffer) -> Reply:
    """CREATE, as the caller.  Concurrent with everything; entry and handle are always those of one inode."""
    who = Identity(request.uid, request.gid, request.groups, request.umask)
    made, *opened = tables.tree.create(request.parent, request.name, request.flags, request.mode, request.kill, who)
    return m.CreateReply(entry(made), *opened), NOTHING


def tmpfile(tables: Tables, request: m.TmpfileRequest, _: Buffer) -> Reply:
    """TMPFILE, as the caller.  Concurrent with everything."""
    who = Identity(request.uid, request.gid, request.groups, request.umask)
    made, *opened = tables.tree.tmpfile(request.parent, request.flags, request.mode, who)
    return m.TmpfileReply(entry(made), *opened), NOTHING


def read(tables: Tables, request: m.ReadRequest, _: Buffer) -> Reply:
    """READ.  Concurrent with everything, also on the same handle."""
    return m.ReadReply(), tables.tree.read(request.handle, request.offset, request.size)


def write(tables: Tables, request: m.WriteRequest, payload: Buffer) -> Reply:
    """WRITE.  Concurrent with everything, also on the same handle; the kernel puts appends one after the other."""
    return m.WriteReply(tables.tree.write(request.handle, request.offset, request.flags, payload)), NOTHING


def flush(tables: Tables, request: m.FlushRequest, _: Buffer) -> Reply:
    """FLUSH.  Concurrent with everything.  The locks of `owner` on the file end, also where closing fails."""
    try:
        tables.tree.flush(request.handle)
    finally:
        if request.owner:
            tables.locks.end_owner(request.handle, request.owner)
    return m.FlushReply(), NOTHING


def fsync(tables: Tables, request: m.FsyncRequest, _: Buffer) -> Reply:
    """FSYNC.  Concurrent with everything; takes as long as the disk."""
    tables.tree.fsync(request.handle, False, request.datasync)
    return m.FsyncReply(), NOTHING
