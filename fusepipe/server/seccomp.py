"""The filter for system calls of session processes: an allow-list, made into a program by libseccomp.

It is made by who launches sessions, once: session processes do not load the library.
"""

import ctypes
import tempfile
from errno import ENOSYS, EPERM
from functools import cache
from typing import Final

ALLOWED: Final = {
    "files, by descriptors and by names below them": "openat openat2 close close_range read write readv writev pread64 "
    "pwrite64 preadv pwritev preadv2 pwritev2 lseek fstat newfstatat statx statfs fstatfs getdents64 ftruncate "
    "fallocate fsync fdatasync copy_file_range flock mkdirat mknodat symlinkat linkat unlinkat renameat renameat2 "
    "fchmod fchmodat fchmodat2 fchownat utimensat faccessat faccessat2 readlinkat getxattr setxattr listxattr "
    "removexattr name_to_handle_at dup umask",
    "whose files they become, and with what rights": "setresuid setresgid setgroups setfsgid capget capset "
    "getuid geteuid getresuid getgid getegid getresgid getgroups",
    "sockets and pipes that are there": "recvmsg sendmsg recvfrom sendto shutdown getsockopt getsockname "
    "getpeername poll ppoll",
    "memory, threads, signals and time": "munmap mremap madvise brk futex set_robust_list rseq exit exit_group "
    "sched_yield sched_getaffinity getpid gettid tgkill rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack "
    "restart_syscall nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time getrandom getcpu",
}
"""System calls that are allowed whatever their arguments; those with conditions stand in `program`."""

_BY_HANDLE: Final = (
    "open_by_handle_at"  # needs CAP_DAC_READ_SEARCH, on newer kernels for directories CAP_SYS_ADMIN alone
)

_MAP_EXECUTABLE: Final = 0x4  # PROT_EXEC
_CLONE_THREAD: Final = 0x00010000
_CLONE_FS: Final = 0x00000200
_IOCTLS: Final = {
    "FIONBIO": 0x5421,  # Python's setblocking
    "FS_IOC_GETFLAGS": 0x80086601,
    "FS_IOC_SETFLAGS": 0x40086602,
    "FS_IOC_FSGETXATTR": 0x801C581F,
    "FS_IOC_FSSETXATTR": 0x401C5820,
}
_FCNTLS: Final = {
    "F_DUPFD": 0,
    "F_GETFD": 1,
    "F_SETFD": 2,
    "F_GETFL": 3,
    "F_SETFL": 4,
    "F_OFD_GETLK": 36,
    "F_OFD_SETLK": 37,
    "F_OFD_SETLKW": 38,
    "F_DUPFD_CLOEXEC": 1030,
    "F_ADD_SEALS": 1033,
    "F_GET_SEALS": 1034,
}
_PRCTLS: Final = {"PR_SET_NAME": 15, "PR_GET_NAME": 16}


_ALLOW: Final = 0x7FFF0000  # SCMP_ACT_ALLOW of seccomp.h
_EQUAL: Final = 4  # SCMP_CMP_EQ
_MASKED_EQUAL: Final = 7  # SCMP_CMP_MASKED_EQ


def _refuse(error: int) -> int:
    return 0x00050000 | error  # SCMP_ACT_ERRNO


class _Condition(ctypes.Structure):
    """struct scmp_arg_cmp: what an argument is compared with, under a mask or not."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("comparison", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


class _Filter:
    """A filter that libseccomp makes.  Raises OSError."""

    def __init__(self, action: int) -> None:
        self._library = ctypes.CDLL("libseccomp.so.2")
        self._library.seccomp_init.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(self._library.seccomp_init(action))
        if not self._context:
            raise OSError(0, "libseccomp makes no filter")

    def rule(self, action: int, name: str, *conditions: _Condition) -> None:
        """One that this libseccomp or this machine does not know is left out: it stays refused."""
        number = self._library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            return
        array = (_Condition * len(conditions))(*conditions)
        error = self._library.seccomp_rule_add_array(self._context, action, number, len(conditions), array)
        if error:
            raise OSError(-error, f"libseccomp refuses the rule for {name}")

    def program(self) -> bytes:
        with tempfile.TemporaryFile() as file:
            error = self._library.seccomp_export_bpf(self._context, file.fileno())
            if error:
                raise OSError(-error, "libseccomp makes no program")
            file.seek(0)
            return file.read()

    def close(self) -> None:
        self._library.seccomp_release(self._context)


@cache
def program(*, by_handle: bool = False) -> bytes:
    """The filter, as struct sock_filter; `by_handle`: for who opens inodes by handle without a broker.

    Raises OSError where libseccomp is missing or of no use.

    What is not allowed answers EPERM: no request of a guest comes to that.
    """
    filter = _Filter(_refuse(EPERM))
    try:
        for names in ALLOWED.values():
            for name in names.split():
                filter.rule(_ALLOW, name)
        if by_handle:
            filter.rule(_ALLOW, _BY_HANDLE)
        for name in ("mmap", "mprotect"):
            filter.rule(_ALLOW, name, _Condition(2, _MASKED_EQUAL, _MAP_EXECUTABLE, 0))
        # Threads, and no processes.  Of clone3 a filter cannot see the arguments; the C library uses clone instead.
        filter.rule(_ALLOW, "clone", _Condition(0, _MASKED_EQUAL, _CLONE_THREAD, _CLONE_THREAD))
        filter.rule(_refuse(ENOSYS), "clone3")
        filter.rule(_ALLOW, "unshare", _Condition(0, _EQUAL, _CLONE_FS))
        for name, position, numbers in (("ioctl", 1, _IOCTLS), ("fcntl", 1, _FCNTLS), ("prctl", 0, _PRCTLS)):
            for number in numbers.values():
                filter.rule(_ALLOW, name, _Condition(position, _EQUAL, number))
        return filter.program()
    finally:
        filter.close()
