"""Takes an identity, then executes requests until the suite hangs up."""

import fcntl
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

from .. import protocol
from . import libc, procedures

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _SIGKILL = 1, 4, 9
_SOCKET = 3
_CLONE_NEWNS, _MS_REC_PRIVATE = 0x20000, 0x44000

CALLS: dict[str, Callable[..., Any]] = {
    "open": procedures.open_,
    "openat": procedures.openat,
    "dup": procedures.duplicate,
    "close": os.close,
    "read": os.read,
    "write": os.write,
    "pread": os.pread,
    "pwrite": os.pwrite,
    "pread_direct": procedures.pread_direct,
    "pwrite_direct": procedures.pwrite_direct,
    "lseek": os.lseek,
    "fsync": os.fsync,
    "fdatasync": os.fdatasync,
    "ftruncate": libc.ftruncate,
    "truncate": libc.truncate,
    "fallocate": libc.fallocate,
    "posix_fallocate": os.posix_fallocate,
    "copy_file_range": libc.copy_file_range,
    "getdents": libc.getdents,
    "mkdir": libc.mkdir,
    "mkfifo": libc.mkfifo,
    "mknod": libc.mknod,
    "symlink": libc.symlink,
    "readlink": os.readlink,
    "link": libc.link,
    "linkat": libc.linkat,
    "unlink": libc.unlink,
    "rmdir": libc.rmdir,
    "rename": libc.rename,
    "renameat2": libc.renameat2,
    "chmod": libc.chmod,
    "lchmod": libc.lchmod,
    "fchmod": libc.fchmod,
    "chown": libc.chown,
    "lchown": libc.lchown,
    "fchown": libc.fchown,
    "utimensat": libc.utimensat,
    "futimens": libc.futimens,
    "stat": libc.stat,
    "fstat": libc.fstat,
    "birth_time": libc.birth_time,
    "access": os.access,
    "statvfs": lambda path: tuple(os.statvfs(path)),
    "getxattr": lambda path, name, follow: os.getxattr(path, name, follow_symlinks=follow),
    "setxattr": lambda path, name, value, flags, follow: os.setxattr(path, name, value, flags, follow_symlinks=follow),
    "listxattr": lambda path, follow: os.listxattr(path, follow_symlinks=follow),
    "removexattr": lambda path, name, follow: os.removexattr(path, name, follow_symlinks=follow),
    "getxattr_sized": libc.getxattr_sized,
    "listxattr_sized": libc.listxattr_sized,
    "umask": os.umask,
    "chdir": os.chdir,
    "getcwd": os.getcwdb,
    "pid": os.getpid,
    "flock": fcntl.flock,
    "fcntl": fcntl.fcntl,
    "map": procedures.map_,
    "unmap": procedures.unmap,
    "msync": libc.msync,
    "peek": libc.peek,
    "poke": libc.poke,
    "mount": libc.mount,
    "umount": libc.umount,
    "set_lock": procedures.set_lock,
    "get_lock": procedures.get_lock,
    "get_flags": procedures.get_flags,
    "set_flags": procedures.set_flags,
    "bind_socket": procedures.bind_socket,
    "connect_socket": procedures.connect_socket,
    "names": procedures.names,
    "make_many": procedures.make_many,
    "unlink_every_other": procedures.unlink_every_other,
    "stat_many": procedures.stat_many,
    "link_until_error": procedures.link_until_error,
    "write_until_error": procedures.write_until_error,
    "write_records": procedures.write_records,
    "read_file": procedures.read_file,
    "write_file": procedures.write_file,
    "remove_tree": procedures.remove_tree,
    "spawn": procedures.spawn,
    "kill": procedures.kill,
    "run": procedures.run,
    "database": procedures.database,
    "query": procedures.query,
    "queries": procedures.queries,
    "enter": procedures.enter,
    "leave": procedures.leave,
}


def reopen_base() -> None:
    """A directory that was opened in another mount namespace stays there: find it again in this one."""
    path = os.readlink(f"/proc/self/fd/{procedures.BASE_DIRECTORY}")
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.dup2(descriptor, procedures.BASE_DIRECTORY, inheritable=False)
    os.close(descriptor)


def take_identity(uid: int, gid: int, groups: tuple[int, ...], own_mounts: bool) -> None:
    """Become that user for good; with `own_mounts` in a mount namespace that vanishes with the process."""
    if own_mounts:
        libc.unshare(_CLONE_NEWNS)
        libc.mount(None, "/", None, _MS_REC_PRIVATE)
        reopen_base()
    os.umask(0)
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    libc.prctl(_PR_SET_DUMPABLE, 1)  # else /proc/self/fd belongs to root
    os.chdir("/")


def execute(name: str, arguments: tuple[Any, ...]) -> tuple[int, Any]:
    """One call: (errno, value)."""
    try:
        return 0, CALLS[name](*arguments)
    except OSError as error:
        if error.errno is None:
            raise
        return error.errno, None


def place_descriptors(sock: int, base: int) -> None:
    """Put the two inherited descriptors where everything expects them, and nothing above them."""
    copies = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 16) for descriptor in (sock, base)]
    os.dup2(copies[0], _SOCKET, inheritable=False)
    os.dup2(copies[1], procedures.BASE_DIRECTORY, inheritable=False)
    os.closerange(procedures.FIRST_FREE_DESCRIPTOR, max(sock, base, *copies) + 1)


def main() -> None:
    """Arguments: the two descriptors, uid, gid, groups (comma separated), whether to have own mounts (0 or 1)."""
    sock_fd, base_fd, uid, gid, groups, own_mounts = sys.argv[1:7]
    place_descriptors(int(sock_fd), int(base_fd))
    take_identity(int(uid), int(gid), tuple(int(group) for group in groups.split(",") if group), own_mounts == "1")
    with socket.socket(fileno=_SOCKET) as sock:
        while True:
            try:
                request: protocol.Request = protocol.receive(sock)
            except EOFError:
                return
            protocol.send(sock, [execute(name, arguments) for name, arguments in request])
