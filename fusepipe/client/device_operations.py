"""The operations that libfuse or pyfuse3 do not know, on requests that the filter has taken.

As in operations.py, each makes one message of a request and one answer of its reply; here both are the kernel's own
structures.  Without the filter the kernel gets ENOSYS for them, and does without.
"""

import errno
from collections.abc import Mapping

from fusepipe.client.boundary import boundary
from fusepipe.client.errors import CallError
from fusepipe.client.identity import groups_of, keeps_set_id
from fusepipe.client.link import Link
from fusepipe.client.operations import Operations
from fusepipe.client.taken import Operation
from fusepipe.device import CurrentRequest, Ioctl, Opcode, OpenFlag
from fusepipe.device.structures import (
    Birth,
    CopyFileRangeIn,
    CreateIn,
    FallocateIn,
    IoctlIn,
    LseekIn,
    StatxIn,
    copy_file_range_out,
    created_out,
    ioctl_out,
    lseek_out,
    statx_out,
    write_out,
)
from fusepipe.wire import messages as m

COMMANDS = {
    Ioctl.GETFLAGS: Ioctl.GETFLAGS,
    Ioctl.SETFLAGS: Ioctl.SETFLAGS,
    Ioctl.GETFLAGS_32: Ioctl.GETFLAGS,
    Ioctl.SETFLAGS_32: Ioctl.SETFLAGS,
    Ioctl.FSGETXATTR: Ioctl.FSGETXATTR,
    Ioctl.FSSETXATTR: Ioctl.FSSETXATTR,
}
"""The ioctls that the server knows, under all their numbers."""

ARGUMENT_SIZE = {Ioctl.SETFLAGS: 4, Ioctl.FSSETXATTR: 28}
"""What those that set something take, in bytes.  Before Linux 5.13 the kernel sent as many as the number says."""


class DeviceOperations:
    """The operations on one link, beside those that pyfuse3 knows."""

    def __init__(self, link: Link, operations: Operations) -> None:
        self._call = link.call
        self._operations = operations

    def table(self) -> Mapping[int, Operation]:
        """Each operation by its opcode."""
        return {
            Opcode.IOCTL: self.ioctl,
            Opcode.FALLOCATE: self.fallocate,
            Opcode.LSEEK: self.lseek,
            Opcode.COPY_FILE_RANGE: self.copy_file_range,
            Opcode.TMPFILE: self.tmpfile,
            Opcode.STATX: self.statx,
            Opcode.COPY_FILE_RANGE_64: self.copy_file_range_64,
        }

    @boundary
    async def fallocate(self, current: CurrentRequest, arguments: bytes) -> bytes:
        """The kernel lets KEEP_SIZE, PUNCH_HOLE and ZERO_RANGE through (fs/fuse/file.c, fuse_file_fallocate)."""
        asked = FallocateIn.read(arguments)
        kill = not keeps_set_id(current.uid, current.pid)
        request = m.FallocateRequest(asked.handle, asked.mode, asked.offset, asked.length, kill)
        await self._call(request, current=current)
        return b""

    @boundary
    async def lseek(self, current: CurrentRequest, arguments: bytes) -> bytes:
        """SEEK_DATA and SEEK_HOLE; the kernel asks for nothing else (fs/fuse/file.c, fuse_file_llseek).

        Data that it has not written back are a hole on the host, and it does not write them back before it asks: then
        it is told to do without, and answers as if files had no holes.
        """
        if self._operations.features.writes_back:
            raise CallError(errno.ENOSYS)
        asked = LseekIn.read(arguments)
        request = m.LseekRequest(asked.handle, asked.offset, asked.whence)
        reply = (await self._call(request, current=current)).reply
        assert isinstance(reply, m.LseekReply)
        return lseek_out(reply.offset)

    @boundary
    async def copy_file_range(self, current: CurrentRequest, arguments: bytes) -> bytes:
        """Of kernels before 6.18: the answer has room for 32 bits, and no more is ever asked for."""
        return write_out(await self._copied(current, arguments))

    @boundary
    async def copy_file_range_64(self, current: CurrentRequest, arguments: bytes) -> bytes:
        """Of later ones."""
        return copy_file_range_out(await self._copied(current, arguments))

    async def _copied(self, current: CurrentRequest, arguments: bytes) -> int:
        asked = CopyFileRangeIn.read(arguments)
        if asked.flags:
            raise CallError(errno.EINVAL)  # there are none yet (copy_file_range(2))
        request = m.CopyFileRangeRequest(
            handle=asked.handle,
            offset=asked.offset,
            to_handle=asked.to_handle,
            to_offset=asked.to_offset,
            length=asked.length,
            kill=not keeps_set_id(current.uid, current.pid),
        )
        reply = (await self._call(request, current=current)).reply
        assert isinstance(reply, m.CopyFileRangeReply)
        return reply.length

    @boundary
    async def ioctl(self, current: CurrentRequest, arguments: bytes) -> bytes:
        """Inode flags and projects; the kernel has asked whether the caller may set them (fs/file_attr.c)."""
        asked = IoctlIn.read(arguments)
        command = COMMANDS.get(asked.command)
        if command is None:
            raise CallError(errno.ENOTTY)
        size = ARGUMENT_SIZE.get(command, 0)
        request = m.IoctlRequest(asked.handle, command, asked.data[:size], current.uid, current.gid)
        reply = (await self._call(request, current=current)).reply
        assert isinstance(reply, m.IoctlReply)
        if size:
            self._operations.changed(current.node)
        return ioctl_out(reply.data)

    @boundary
    async def tmpfile(self, current: CurrentRequest, arguments: bytes) -> bytes:
        """O_TMPFILE, since Linux 6.1."""
        asked = CreateIn.read(arguments)
        features = self._operations.features
        request = m.TmpfileRequest(
            parent=current.node,
            flags=self._operations.host_flags(asked.flags),
            mode=asked.mode,
            umask=asked.umask if features.leaves_umask else 0,
            uid=current.uid,
            gid=current.gid,
            groups=groups_of(current, current.uid, current.pid, sent_by_kernel=features.sends_group),
        )
        reply = (await self._call(request, current=current)).reply
        assert isinstance(reply, m.TmpfileReply)
        opened = self._operations.opened(reply.handle, reply.flags)
        flags = (
            OpenFlag.DIRECT_IO * opened.direct_io
            | OpenFlag.KEEP_CACHE * opened.keep_cache
            | OpenFlag.NOFLUSH * opened.nonseekable
        )
        return created_out(reply.entry.node, reply.entry.attr, self._operations.seconds, reply.handle, flags)

    @boundary
    async def statx(self, current: CurrentRequest, arguments: bytes) -> bytes:
        """Asked since Linux 6.6, by who wants to know the birth time."""
        asked = StatxIn.read(arguments)
        request = m.StatxRequest(current.node, asked.handle, asked.flags, asked.mask)
        reply = (await self._call(request, current=current)).reply
        assert isinstance(reply, m.StatxReply)
        return statx_out(reply.attr, Birth._make(reply[1:]), self._operations.seconds)
