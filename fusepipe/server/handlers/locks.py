"""Locks that the host's programs and other sessions see.  tables/locks.py says how they are held."""

import errno
import os
from contextlib import suppress

from ...wire import Buffer
from ...wire import messages as m
from ..tables import UNLOCK, Tables
from .handler import NOTHING, Reply


def getlk(tables: Tables, request: m.GetlkRequest, _: Buffer) -> Reply:
    """GETLK.  Concurrent with everything; what it says may be over when it is said."""
    return m.GetlkReply(*tables.locks.find(*request)), NOTHING


def setlk(tables: Tables, request: m.SetlkRequest, _: Buffer) -> Reply:
    """SETLK.  Concurrent with everything; the host's kernel puts what concerns one file one after the other."""
    tables.locks.set(*request, wait=False)
    return m.SetlkReply(), NOTHING


def setlkw(tables: Tables, request: m.SetlkwRequest, _: Buffer) -> Reply:
    """SETLKW.  Concurrent with everything; takes as long as others hold the lock, and INTERRUPT ends the waiting."""
    tables.locks.set(*request, wait=True)
    return m.SetlkwReply(), NOTHING


def flock(tables: Tables, request: m.FlockRequest, _: Buffer) -> Reply:
    """FLOCK.  Concurrent with everything, also on the same handle."""
    tables.tree.flock(request.handle, request.type, wait=False)
    return m.FlockReply(), NOTHING


def flockw(tables: Tables, request: m.FlockwRequest, _: Buffer) -> Reply:
    """FLOCKW.  Concurrent with everything; takes as long as others hold the lock, and INTERRUPT ends the waiting."""
    tables.tree.flock(request.handle, request.type, wait=True)
    return m.FlockwReply(), NOTHING


def release(tables: Tables, request: m.ReleaseRequest, _: Buffer) -> Reply:
    """RELEASE.  Concurrent with everything; a call that uses the handle keeps the file open, but not its locks."""
    with suppress(OSError):  # a handle that is not known is told of below
        tables.tree.flock(request.handle, UNLOCK, wait=False)
    tables.locks.end_handle(request.handle)
    if tables.tree.cleanup((), (request.handle,), ()):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return m.ReleaseReply(), NOTHING
