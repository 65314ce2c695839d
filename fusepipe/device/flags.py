"""Flags of the kernel's FUSE interface, by number as in include/uapi/linux/fuse.h."""

from enum import IntFlag


class InitFlag(IntFlag):
    """What kernel and filesystem agree on in INIT; bits above 31 travel in `flags2`."""

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    SPLICE_WRITE = 1 << 7
    SPLICE_MOVE = 1 << 8
    SPLICE_READ = 1 << 9
    FLOCK_LOCKS = 1 << 10
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    PARALLEL_DIROPS = 1 << 18
    HANDLE_KILLPRIV = 1 << 19
    POSIX_ACL = 1 << 20
    MAX_PAGES = 1 << 22
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    CREATE_SUPP_GROUP = 1 << 34
    DIRECT_IO_ALLOW_MMAP = 1 << 36


class Opcode:
    """Opcodes that Python asks for; everything else about them stays in C."""

    RELEASE = 18
    SETXATTR = 21
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    IOCTL = 39
    FALLOCATE = 43
    LSEEK = 46
    COPY_FILE_RANGE = 47
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


class SetattrFlag:
    """What SETATTR changes (FATTR_*)."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8
    KILL_SUIDGID = 1 << 11

    SENT = MODE | UID | GID | SIZE | ATIME | MTIME | ATIME_NOW | MTIME_NOW | KILL_SUIDGID
    """Those that the server is told; the others say which fields of the request are filled."""


class WriteFlag:
    """How WRITE is meant (FUSE_WRITE_*)."""

    CACHE = 1 << 0
    KILL_SUIDGID = 1 << 2

    SENT = CACHE | KILL_SUIDGID
    """Those that the server is told."""


class OpenFlag:
    """What the answer to an opening says of the file (FOPEN_*)."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    NOFLUSH = 1 << 5


class Ioctl:
    """Commands that read or set inode flags (FS_IOC_*, include/uapi/linux/fs.h), by number on 64-bit machines."""

    GETFLAGS = 0x80086601
    SETFLAGS = 0x40086602
    GETFLAGS_32 = 0x80046601
    SETFLAGS_32 = 0x40046602
    FSGETXATTR = 0x801C581F
    FSSETXATTR = 0x401C5820
