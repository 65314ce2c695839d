"""Attributes and permission."""

from ...syscalls import AttributeChanges, Identity
from ...wire import Buffer
from ...wire import messages as m
from ..tables import Tables
from .handler import NOTHING, Reply


def getattr_(tables: Tables, request: m.GetattrRequest, _: Buffer) -> Reply:
    """GETATTR.  Concurrent with everything."""
    return m.GetattrReply(m.Attr._make(tables.tree.getattr(request.node, request.handle))), NOTHING


def setattr_(tables: Tables, request: m.SetattrRequest, _: Buffer) -> Reply:
    """SETATTR.  Concurrent with everything; owner, size, mode and times are set one after the other, in this order."""
    changes = AttributeChanges(
        valid=request.valid,
        mode=request.mode,
        uid=request.uid,
        gid=request.gid,
        size=request.size,
        atime=request.atime,
        mtime=request.mtime,
        atime_ns=request.atime_ns,
        mtime_ns=request.mtime_ns,
    )
    return m.SetattrReply(m.Attr._make(tables.tree.setattr(request.node, request.handle, changes))), NOTHING


def statx(tables: Tables, request: m.StatxRequest, _: Buffer) -> Reply:
    """STATX.  Concurrent with everything."""
    found = tables.tree.statx(request.node, request.handle, request.flags, request.mask)
    return m.StatxReply(m.Attr._make(found[:15]), *found[15:]), NOTHING


def ioctl(tables: Tables, request: m.IoctlRequest, _: Buffer) -> Reply:
    """IOCTL, as the caller.  Concurrent with everything; of two that set flags the last one wins."""
    who = Identity(request.uid, request.gid, ())
    return m.IoctlReply(tables.tree.ioctl(request.handle, request.command, request.data, who)), NOTHING


def access(tables: Tables, request: m.AccessRequest, _: Buffer) -> Reply:
    """ACCESS, for the caller.  Concurrent with everything."""
    tables.tree.access(request.node, request.mask, Identity(request.uid, request.gid, request.groups))
    return m.AccessReply(), NOTHING
