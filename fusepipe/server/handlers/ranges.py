"""Ranges of open files."""

from ...wire import Buffer
from ...wire import messages as m
from ..tables import Tables
from .handler import NOTHING, Reply


def fallocate(tables: Tables, request: m.FallocateRequest, _: Buffer) -> Reply:
    """FALLOCATE.  Concurrent with everything; takes as long as the disk."""
    tables.tree.fallocate(request.handle, request.mode, request.offset, request.length, request.kill)
    return m.FallocateReply(), NOTHING


def copy_file_range(tables: Tables, request: m.CopyFileRangeRequest, _: Buffer) -> Reply:
    """COPY_FILE_RANGE, of a limited number of bytes at a time.  Concurrent with everything."""
    handle, offset, to_handle, to_offset, length, kill = request
    return m.CopyFileRangeReply(tables.tree.copy_range(handle, offset, to_handle, to_offset, length, kill)), NOTHING


def lseek(tables: Tables, request: m.LseekRequest, _: Buffer) -> Reply:
    """LSEEK.  Concurrent with everything, also on the same handle, whose position it does not use."""
    return m.LseekReply(tables.tree.lseek(request.handle, request.offset, request.whence)), NOTHING
