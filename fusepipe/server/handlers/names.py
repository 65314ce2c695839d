"""Names: finding, making, linking, removing and renaming them."""

from ...syscalls import Identity
from ...wire import Buffer
from ...wire import messages as m
from ..tables import Tables
from .handler import NOTHING, Reply, entry


def lookup(tables: Tables, request: m.LookupRequest, _: Buffer) -> Reply:
    """LOOKUP.  Concurrent with everything; each of any number for the same name counts once."""
    return m.LookupReply(entry(tables.tree.lookup(request.parent, request.name))), NOTHING


def readlink(tables: Tables, request: m.ReadlinkRequest, _: Buffer) -> Reply:
    """READLINK.  Concurrent with everything."""
    return m.ReadlinkReply(tables.tree.readlink(request.node)), NOTHING


def mknod(tables: Tables, request: m.MknodRequest, _: Buffer) -> Reply:
    """MKNOD, as the caller.  Concurrent with everything; of two for the same name the kernel lets one win."""
    who = Identity(request.uid, request.gid, request.groups, request.umask)
    made = tables.tree.mknod(request.parent, request.name, request.mode, request.rdev, who)
    return m.MknodReply(entry(made)), NOTHING


def mkdir(tables: Tables, request: m.MkdirRequest, _: Buffer) -> Reply:
    """MKDIR, as the caller.  Concurrent with everything; of two for the same name the kernel lets one win."""
    who = Identity(request.uid, request.gid, request.groups, request.umask)
    return m.MkdirReply(entry(tables.tree.mkdir(request.parent, request.name, request.mode, who))), NOTHING


def symlink(tables: Tables, request: m.SymlinkRequest, _: Buffer) -> Reply:
    """SYMLINK, as the caller.  Concurrent with everything; of two for the same name the kernel lets one win."""
    who = Identity(request.uid, request.gid, request.groups)
    return m.SymlinkReply(entry(tables.tree.symlink(request.parent, request.name, request.target, who))), NOTHING


def link(tables: Tables, request: m.LinkRequest, _: Buffer) -> Reply:
    """LINK.  Concurrent with everything."""
    return m.LinkReply(entry(tables.tree.link(request.node, request.new_parent, request.new_name))), NOTHING


def unlink(tables: Tables, request: m.UnlinkRequest, _: Buffer) -> Reply:
    """UNLINK.  Concurrent with everything; an inode that loses its last name stays usable for who knows its node."""
    tables.tree.unlink(request.parent, request.name)
    return m.UnlinkReply(), NOTHING


def rmdir(tables: Tables, request: m.RmdirRequest, _: Buffer) -> Reply:
    """RMDIR.  Concurrent with everything; the directory stays usable for who knows its node."""
    tables.tree.rmdir(request.parent, request.name)
    return m.RmdirReply(), NOTHING


def rename(tables: Tables, request: m.RenameRequest, _: Buffer) -> Reply:
    """RENAME, with the flags of renameat2(2).  Concurrent with everything; the kernel makes it one step."""
    tables.tree.rename(request.parent, request.name, request.new_parent, request.new_name, request.flags)
    return m.RenameReply(), NOTHING
