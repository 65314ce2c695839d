"""The operations of the mount: each makes one message of a request, and one answer of its reply.

No state of inodes or handles is kept here: node ids and handles are the server's.  pyfuse3 runs many operations at a
time in one trio loop; `Link.current` belongs to an operation only until it first waits.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, ReaddirToken, RequestContext, SetattrFields, StatvfsData

from fusepipe.client.attributes import NANOSECONDS, Attributes, to_statvfs
from fusepipe.client.boundary import boundary
from fusepipe.client.cleanup import Cleanup
from fusepipe.client.errors import CallError
from fusepipe.client.identity import groups_of, sees_trusted
from fusepipe.client.link import Link
from fusepipe.client.native_path import NativePath
from fusepipe.client.options import Cache
from fusepipe.device import Filter, InitFlag, Opcode, SetattrFlag, WriteFlag
from fusepipe.wire import OpenedFlag, read_page
from fusepipe.wire import messages as m

KEEP, NOFLUSH = int(OpenedFlag.KEEP), int(OpenedFlag.NOFLUSH)  # an IntFlag is slow to ask

SMALLEST_PAGE = 4096
"""What READDIR asks for at least; assumed where its size is not known (fs/fuse/readdir.c)."""

ACL_NAMES = frozenset({b"system.posix_acl_access", b"system.posix_acl_default"})


class Features(NamedTuple):
    """What INIT was agreed to, as far as operations ask."""

    leaves_umask: bool = False
    """The kernel leaves the umask to the host, where a default ACL may replace it."""
    sends_group: bool = False
    """The kernel sends the supplementary group that matters for a new file."""
    maps_direct: bool = False
    """Files opened past the page cache can be mapped shared."""
    writes_back: bool = False
    """The kernel keeps written data for a while before it sends them."""


class Operations(pyfuse3.Operations):
    """The requests of one mount."""

    supports_dot_lookup = False  # for NFS export of the mount, which is not offered
    enable_acl = True

    def __init__(self, link: Link, cleanup: Cleanup, cache: Cache, *, shared_locks: bool = False) -> None:
        self.initialised = trio.Event()
        """Set while INIT is being answered."""
        self._link = link
        self._call = link.call
        self._cleanup = cleanup
        self._cache = cache
        self._filter: Filter | None = None
        self._shared_locks = shared_locks
        self._attributes = self._make_attributes(numbers_apart=False)
        self._native: NativePath | None = None
        self._flush_matters = False  # a file was opened whose FLUSH may fail
        self.enable_writeback_cache = cache.write_back

    def beside(self, native: NativePath) -> None:
        """Native threads serve what is hot; to be called before the first request."""
        self._native = native

    def use(self, device_filter: Filter) -> None:
        """The filter is on the device; to be called before the first request."""
        self._filter = device_filter
        self._attributes = self._make_attributes(numbers_apart=True)

    def _make_attributes(self, *, numbers_apart: bool) -> Attributes:
        """Where locks are shared, names are not remembered: who got a lock looks for files that others just made or
        removed, as SQLite does for its journal.
        """
        return Attributes(self._cache.seconds, numbers_apart=numbers_apart, names=not self._shared_locks)

    def init(self) -> None:
        """INIT arrived; it is answered before anything else runs."""
        self.initialised.set()

    @cached_property
    def features(self) -> Features:
        """What was agreed; for requests, all of which come after INIT."""
        agreed = self._filter.agreed() if self._filter is not None else None
        if agreed is None:
            return Features()
        return Features(
            agreed.supports(InitFlag.DONT_MASK),
            agreed.supports(InitFlag.CREATE_SUPP_GROUP),
            agreed.supports(InitFlag.DIRECT_IO_ALLOW_MMAP),
            agreed.supports(InitFlag.WRITEBACK_CACHE),
        )

    @property
    def seconds(self) -> float:
        """For how long the kernel may keep names and attributes."""
        return self._cache.seconds

    def changed(self, node: int) -> None:
        """Makes the kernel ask for the attributes of a node, where it does not see by itself that they have changed.

        Waits for nobody, as long as it is about attributes alone (fs/fuse/inode.c, fuse_reverse_inval_inode).
        """
        with contextlib.suppress(OSError):  # the kernel has forgotten it meanwhile, or the mount is going away
            pyfuse3.invalidate_inode(node, attr_only=True)

    # ---- names ------------------------------------------------------------------------------------------------------

    def _name(self, name: bytes) -> bytes:
        """The kernel lets names of up to 1024 bytes through (FUSE_NAME_MAX)."""
        if len(name) > self._link.agreed.max_name:
            raise CallError(errno.ENAMETOOLONG)
        return name

    def _groups(self, ctx: RequestContext) -> Sequence[int]:
        return groups_of(self._link.current, ctx.uid, ctx.pid, sent_by_kernel=self.features.sends_group)

    def _umask(self) -> int:
        return self._link.current.umask if self.features.leaves_umask else 0

    @boundary
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        try:
            reply = (await self._call(m.LookupRequest(parent_inode, self._name(name)))).reply
        except CallError as error:
            if error.errno != errno.ENOENT or (absent := self._attributes.no_entry()) is None:
                raise
            return absent
        assert isinstance(reply, m.LookupReply)
        return self._attributes.of_entry(reply.entry)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Only without the filter, which collects these itself."""
        for node, count in inode_list:
            self._cleanup.forget(node, count)

    @boundary
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        reply = (await self._call(m.ReadlinkRequest(inode))).reply
        assert isinstance(reply, m.ReadlinkReply)
        return reply.target

    @boundary
    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        request = m.MknodRequest(
            parent_inode, self._name(name), mode, rdev, self._umask(), ctx.uid, ctx.gid, self._groups(ctx)
        )
        reply = (await self._call(request)).reply
        assert isinstance(reply, m.MknodReply)
        return self._attributes.of_entry(reply.entry)

    @boundary
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        request = m.MkdirRequest(
            parent_inode, self._name(name), mode, self._umask(), ctx.uid, ctx.gid, self._groups(ctx)
        )
        reply = (await self._call(request)).reply
        assert isinstance(reply, m.MkdirReply)
        return self._attributes.of_entry(reply.entry)

    @boundary
    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        request = m.SymlinkRequest(parent_inode, self._name(name), target, ctx.uid, ctx.gid, self._groups(ctx))
        reply = (await self._call(request)).reply
        assert isinstance(reply, m.SymlinkReply)
        return self._attributes.of_entry(reply.entry)

    @boundary
    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        reply = (await self._call(m.LinkRequest(inode, new_parent_inode, self._name(new_name)))).reply
        assert isinstance(reply, m.LinkReply)
        return self._attributes.of_entry(reply.entry)

    @boundary
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._call(m.UnlinkRequest(parent_inode, self._name(name)))

    @boundary
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._call(m.RmdirRequest(parent_inode, self._name(name)))

    @boundary
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        await self._call(
            m.RenameRequest(parent_inode_old, self._name(name_old), parent_inode_new, self._name(name_new), flags)
        )

    # ---- attributes -------------------------------------------------------------------------------------------------

    @boundary
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        reply = (await self._call(m.GetattrRequest(inode, self._link.current.handle))).reply
        assert isinstance(reply, m.GetattrReply)
        return self._attributes.of_node(inode, reply.attr)

    @boundary
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        valid = self._link.current.valid & SetattrFlag.SENT or _valid_of(fields)
        atime, atime_ns = divmod(attr.st_atime_ns, NANOSECONDS)
        mtime, mtime_ns = divmod(attr.st_mtime_ns, NANOSECONDS)
        request = m.SetattrRequest(
            node=inode,
            handle=fh or 0,
            valid=valid,
            mode=attr.st_mode,
            uid=attr.st_uid,
            gid=attr.st_gid,
            size=attr.st_size,
            atime=atime,
            atime_ns=atime_ns,
            mtime=mtime,
            mtime_ns=mtime_ns,
        )
        reply = (await self._call(request)).reply
        assert isinstance(reply, m.SetattrReply)
        return self._attributes.of_node(inode, reply.attr)

    @boundary
    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        groups = groups_of(self._link.current, ctx.uid, ctx.pid, sent_by_kernel=False)
        await self._call(m.AccessRequest(inode, mode, ctx.uid, ctx.gid, groups))
        return True

    @boundary
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        reply = (await self._call(m.StatfsRequest(self._link.current.node or pyfuse3.ROOT_INODE))).reply
        assert isinstance(reply, m.StatfsReply)
        return to_statvfs(reply)

    @boundary
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        current = self._link.current
        if current.opcode == Opcode.SETXATTR:
            # pyfuse3 looks first where the program asks for create or replace; here the host does, in one step.
            if current.flags & os.XATTR_CREATE:
                raise CallError(errno.ENODATA)
            return b""
        try:
            reply = (await self._call(m.GetxattrRequest(inode, name))).reply
        except CallError as error:
            if error.errno == errno.EOPNOTSUPP and name in ACL_NAMES:
                # Else the kernel, which asks before it checks permissions, would refuse everything (fs/fuse/acl.c).
                raise CallError(errno.ENODATA) from None
            raise
        assert isinstance(reply, m.GetxattrReply)
        return reply.value

    @boundary
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        current = self._link.current
        request = m.SetxattrRequest(inode, name, value, current.flags)
        if current.kill:
            await self._clear_set_gid(inode)
        await self._call(request)

    async def _clear_set_gid(self, inode: int) -> None:
        """An ACL set by who is not in the file's group: as chmod(2) does, it clears set-gid (fs/posix_acl.c)."""
        found = (await self._call(m.GetattrRequest(inode, 0))).reply
        assert isinstance(found, m.GetattrReply)
        if found.attr.mode & stat.S_ISGID:
            mode = found.attr.mode & ~stat.S_ISGID
            await self._call(m.SetattrRequest(inode, 0, SetattrFlag.MODE, mode, 0, 0, 0, 0, 0, 0, 0))

    @boundary
    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        reply = (await self._call(m.ListxattrRequest(inode))).reply
        assert isinstance(reply, m.ListxattrReply)
        # Names that only CAP_SYS_ADMIN may see, which a local filesystem hides from others (xattr(7)).
        for_all = [name for name in reply.names if not name.startswith(b"trusted.")]
        if len(for_all) < len(reply.names) and sees_trusted(ctx.uid, ctx.pid):
            return reply.names
        return for_all

    @boundary
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._call(m.RemovexattrRequest(inode, name))

    # ---- files ------------------------------------------------------------------------------------------------------

    def opened(self, handle: int, flags: int) -> FileInfo:
        """What the kernel is told of an open file.

        Without "keep" it drops what it has cached of the file, so an open sees what others have written; the server
        knows when that is not needed.  Where nothing may be cached, reads and writes pass the page cache by; that needs
        a kernel that can map such files, else they go through it, and every open and every call asks the server for the
        file's size and times.

        The kernel asks FLUSH all the same where it writes back, and before Linux 5.16; `flush` answers it then.

        "Nonseekable" stands for "FLUSH need not be asked": the filter puts that in its place (device/open_flags.h).
        """
        if self._shared_locks:
            flags &= ~NOFLUSH  # it says which locks end
        self._flush_matters |= not flags & NOFLUSH
        return FileInfo(
            handle,
            direct_io=self.features.maps_direct and not self._cache.seconds,
            keep_cache=bool(flags & KEEP),
            nonseekable=bool(flags & NOFLUSH) and self._filter is not None,
        )

    def host_flags(self, flags: int) -> int:
        """The flags for the host's file.

        With write-back any handle of a file that was opened for writing carries any page of it, and reads the rest of a
        page that a program wrote a part of; where a write appends the kernel has decided already.
        """
        if not self._cache.write_back:
            return flags
        if flags & os.O_ACCMODE == os.O_WRONLY:
            flags = flags & ~os.O_ACCMODE | os.O_RDWR
        return flags & ~(os.O_APPEND | os.O_DIRECT)

    @boundary
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        request = m.OpenRequest(inode, self.host_flags(flags), bool(self._link.current.kill), self._cache.keep, 0)
        reply = (await self._call(request)).reply
        assert isinstance(reply, m.OpenReply)
        return self.opened(reply.handle, reply.flags)

    @boundary
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        request = m.CreateRequest(
            parent=parent_inode,
            name=self._name(name),
            flags=self.host_flags(flags),
            mode=mode,
            umask=self._umask(),
            uid=ctx.uid,
            gid=ctx.gid,
            groups=self._groups(ctx),
            kill=bool(self._link.current.kill),
        )
        reply = (await self._call(request)).reply
        assert isinstance(reply, m.CreateReply)
        return self.opened(reply.handle, reply.flags), self._attributes.of_entry(reply.entry)

    @boundary
    async def read(self, fh: int, off: int, size: int) -> bytes:
        return (await self._call(m.ReadRequest(fh, off, size))).payload  # type: ignore[return-value]  # any buffer will do

    @boundary
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        reply = (await self._call(m.WriteRequest(fh, off, self._link.current.flags & WriteFlag.SENT), buf)).reply
        assert isinstance(reply, m.WriteReply)
        return reply.size

    @boundary
    async def flush(self, fh: int) -> None:
        if self._flush_matters or (self._native is not None and self._native.flush_matters):
            await self._call(m.FlushRequest(fh, self._link.current.owner if self._shared_locks else 0))

    @boundary
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._call(m.FsyncRequest(fh, datasync))

    async def release(self, fh: int) -> None:
        """Only without the filter, which collects these itself."""
        self._cleanup.close(fh)

    # ---- directories ------------------------------------------------------------------------------------------------

    @boundary
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        reply = (await self._call(m.OpendirRequest(inode, 0))).reply  # pyfuse3 takes no flags
        assert isinstance(reply, m.OpendirReply)
        return reply.handle

    @boundary
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        size = min(self._link.current.size or SMALLEST_PAGE, self._link.agreed.max_read)
        payload = (await self._call(m.ReaddirRequest(fh, start_id, size))).payload
        fits = True
        for listed in read_page(payload):
            fits = fits and pyfuse3.readdir_reply(token, listed.name, self._attributes.of_listed(listed), listed.offset)
            if listed.node and not fits:
                self._cleanup.forget(listed.node)  # the kernel will not: it has never seen the entry

    @boundary
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._call(m.FsyncdirRequest(fh, datasync))

    async def releasedir(self, fh: int) -> None:
        """Only without the filter, which collects these itself."""
        self._cleanup.close(fh)


def _valid_of(fields: SetattrFields) -> int:
    """What SETATTR changes, where only pyfuse3 tells: it has put the present time in the place of "now"."""
    return (
        SetattrFlag.MODE * fields.update_mode
        | SetattrFlag.UID * fields.update_uid
        | SetattrFlag.GID * fields.update_gid
        | SetattrFlag.SIZE * fields.update_size
        | SetattrFlag.ATIME * fields.update_atime
        | SetattrFlag.MTIME * fields.update_mtime
    )
