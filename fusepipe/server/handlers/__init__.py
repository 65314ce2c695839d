"""What the server does for each operation.

A handler gets the tables, the request's message and its payload, and gives back the reply's message and its payload,
whose memory is its own.  It raises OSError for an errno.  Handlers run in any worker's thread, any number at the same
time, and keep no state: what they know is in the tables.
"""

from ...wire.messages import Op
from .attributes import access, getattr_, ioctl, setattr_, statx
from .cleanup import cleanup
from .directories import fsyncdir, opendir, readdir
from .files import create, flush, fsync, open_, read, tmpfile, write
from .filesystem import statfs
from .handler import Handler
from .locks import flock, flockw, getlk, release, setlk, setlkw
from .names import link, lookup, mkdir, mknod, readlink, rename, rmdir, symlink, unlink
from .ranges import copy_file_range, fallocate, lseek
from .xattrs import getxattr, listxattr, removexattr, setxattr

HANDLERS: dict[Op, Handler] = {
    Op.LOOKUP: lookup,
    Op.READLINK: readlink,
    Op.MKNOD: mknod,
    Op.MKDIR: mkdir,
    Op.SYMLINK: symlink,
    Op.LINK: link,
    Op.UNLINK: unlink,
    Op.RMDIR: rmdir,
    Op.RENAME: rename,
    Op.GETATTR: getattr_,
    Op.SETATTR: setattr_,
    Op.ACCESS: access,
    Op.STATFS: statfs,
    Op.GETXATTR: getxattr,
    Op.SETXATTR: setxattr,
    Op.LISTXATTR: listxattr,
    Op.REMOVEXATTR: removexattr,
    Op.OPEN: open_,
    Op.CREATE: create,
    Op.READ: read,
    Op.WRITE: write,
    Op.FLUSH: flush,
    Op.FSYNC: fsync,
    Op.OPENDIR: opendir,
    Op.READDIR: readdir,
    Op.FSYNCDIR: fsyncdir,
    Op.CLEANUP: cleanup,
    Op.FALLOCATE: fallocate,
    Op.LSEEK: lseek,
    Op.COPY_FILE_RANGE: copy_file_range,
    Op.IOCTL: ioctl,
    Op.TMPFILE: tmpfile,
    Op.STATX: statx,
    Op.GETLK: getlk,
    Op.SETLK: setlk,
    Op.FLOCK: flock,
    Op.RELEASE: release,
    Op.SETLKW: setlkw,
    Op.FLOCKW: flockw,
}
"""Every operation that takes a slot."""

__all__ = ["HANDLERS", "Handler"]
