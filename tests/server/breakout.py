"""What somebody would try who has broken into a session process, run inside its sandbox by test_sandbox.py.

Started with the volume's path, whether it is read-only, and facts about the outside as JSON; prints what each attempt
came to: the errno's name, or "done".
"""

import ctypes
import errno
import json
import os
import socket
import stat
import struct
import sys
import threading
from collections.abc import Callable
from typing import Any

from fusepipe.server.broker import ANSWER, HEADER, OPEN, PROVE, SHOW_MOUNT, SIGN
from fusepipe.server.sandbox import Prepared, enter
from fusepipe.server.seccomp import program
from fusepipe.syscalls import TAG_SIZE, handle_of, open_handle

_LIBC = ctypes.CDLL(None, use_errno=True)
_PROT_EXEC = 4

# Numbers of system calls for which neither Python nor the C library has a function, on x86-64.
PTRACE, PIVOT_ROOT, BPF, IO_URING_SETUP, CLONE3 = 101, 155, 321, 425, 435
OPEN_TREE, MOVE_MOUNT, FSOPEN, PIDFD_OPEN, PIDFD_GETFD = 428, 429, 430, 434, 438
OPEN_BY_HANDLE_AT = 304
KEYCTL, PERF_EVENT_OPEN, USERFAULTFD, PROCESS_VM_READV, KILL, UNSHARE = 250, 298, 323, 310, 62, 272


def call(number: int, *arguments: Any) -> None:
    """A raw system call; raises OSError."""
    plain = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    if _LIBC.syscall(ctypes.c_long(number), *plain) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def in_library(name: str, *arguments: Any) -> None:
    """A function of the C library; raises OSError where it returns -1."""
    if getattr(_LIBC, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def child() -> None:
    """A process that ends at once, should there be one."""
    if not os.fork():
        os._exit(0)


def device(name: str, kind: int, number: int) -> None:
    """A device node of one's own making, opened."""
    try:
        os.mknod(name, kind | 0o600, number, dir_fd=ROOT)
        os.close(os.open(name, os.O_RDONLY | os.O_NONBLOCK, dir_fd=ROOT))
    finally:
        os.unlink(name, dir_fd=ROOT)


def in_thread(attempt: Callable[[], object]) -> None:
    """The same in another thread."""
    raised: list[OSError] = []

    def run() -> None:
        try:
            attempt()
        except OSError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def executable_memory() -> None:
    """Pages that are code, or are to become code."""
    _LIBC.mmap.restype = ctypes.c_void_p
    if _LIBC.mmap(None, ctypes.c_size_t(4096), 3 | _PROT_EXEC, 0x22, -1, ctypes.c_long(0)) == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def by_handle(mount: int, id: bytes) -> None:
    """Opens a directory for reading: newer kernels ask less of who wants that (open_by_handle_at(2))."""
    call(OPEN_BY_HANDLE_AT, mount, id[12:16] + id[8:12] + id[16:], os.O_RDONLY | os.O_DIRECTORY)


def climb(fd: int) -> None:
    """Up and up: what is reached must be where one began, or within the volume."""
    own = os.stat("/")
    above = os.dup(fd)
    for _ in range(64):
        next_one = os.open("..", os.O_PATH | os.O_DIRECTORY, dir_fd=above)
        os.close(above)
        above = next_one
    there = os.fstat(above)
    if (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino):
        raise OSError(errno.EXDEV, "the volume's root")
    os.stat("etc/passwd", dir_fd=above)


def capability(number: int) -> None:
    """To have one back that was given up."""
    header = struct.pack("Ii", 0x20080522, 0)
    every = struct.pack("6I", *[0xFFFFFFFF] * 6)
    in_library("capset", header, every)
    del number


class Broker:
    """This process's broker, asked for what it should not do."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self.root: int = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=ROOT)

    def ask(self, kind: int, shown: list[int] | None = None, item: bytes = b"") -> tuple[bytes, int]:
        """A signature and a descriptor or -1; raises OSError."""
        socket.send_fds(self._socket, [HEADER.pack(kind, 1) + item], shown or [])
        answer, fds, _flags, _address = socket.recv_fds(self._socket, ANSWER.size, 1)
        error, signature = ANSWER.unpack(answer)
        if error:
            raise OSError(-error, os.strerror(-error))
        return signature, fds[0] if fds else -1

    def again(self, name: str, *, prove: bool = False) -> int:
        """What a session does: have an inode signed for, and open it again."""
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=ROOT)
        id, _mount = handle_of(fd)
        tag, _ = self.ask(PROVE, item=id + bytes(TAG_SIZE)) if prove else self.ask(SIGN, [fd])
        os.close(fd)
        return self.ask(OPEN, item=id + tag)[1]

    def attempts(self, about: dict[str, Any]) -> dict[str, Callable[[], object]]:
        """By name.  Errors that are the kernel's or the protocol's own are named first."""
        file, directory = bytes.fromhex(about["file"]), bytes.fromhex(about["directory"])
        none = bytes(TAG_SIZE)
        signature, _ = self.ask(SIGN, [os.open("inside", os.O_PATH, dir_fd=ROOT)])
        long = file[:12] + (40).to_bytes(4, "little") + b"x" * 40
        endless = file[:12] + (1 << 20).to_bytes(4, "little") + file[16:]
        other = (1).to_bytes(8, "little") + file[8:]
        outer, log_file = about["outer"], about["log"]
        return {
            "EXDEV: climb from what it opened": lambda: climb(self.again("a")),
            "EXDEV: climb from what it opened deep": lambda: climb(self.again("a/b")),
            "EXDEV: climb from what it has proved": lambda: climb(self.again("a/b", prove=True)),
            "ENFILE: sign what is not shown": lambda: self.ask(SIGN),
            "EINVAL: sign two for one": lambda: self.ask(SIGN, [ROOT, ROOT]),
            "EINVAL: another kind of request": lambda: self.ask(9),
            "EINVAL: open with a mount shown": lambda: self.ask(OPEN, [self.root], file + signature),
            "EINVAL: open half of a handle": lambda: self.ask(OPEN, item=file),
            "EPERM: a made-up handle": lambda: self.ask(OPEN, item=file + none),
            "EPERM: a made-up handle of a directory": lambda: self.ask(OPEN, item=directory + none),
            "EPERM: a handle with another's signature": lambda: self.ask(OPEN, item=file + signature),
            "EPERM: a long handle": lambda: self.ask(OPEN, item=long + signature),
            "EPERM: an endless handle": lambda: self.ask(OPEN, item=endless + signature),
            "EPERM: a handle of a filesystem that is not the volume's": lambda: self.ask(OPEN, item=other + signature),
            "ESTALE: prove a file that is outside": lambda: self.ask(PROVE, item=file + none),
            "ESTALE: prove a directory that is outside": lambda: self.ask(PROVE, item=directory + none),
            "ESTALE: prove an endless handle": lambda: self.ask(PROVE, item=endless + none),
            "EPERM: prove on a filesystem that is not the volume's": lambda: self.ask(PROVE, item=other + none),
            "EPERM: show the volume's mount again": lambda: self.ask(SHOW_MOUNT, [self.root]),
            "EPERM: show a mount of the host": lambda: self.ask(SHOW_MOUNT, [outer]),
            "EPERM: show the volume's filesystem by a mount of the host": lambda: self.ask(SHOW_MOUNT, [log_file]),
            "EPERM: sign what is the host's": lambda: self.ask(SIGN, [outer]),
            "EPERM: sign what is the host's on the volume's filesystem": lambda: self.ask(SIGN, [log_file]),
        }


def attempts(about: dict[str, Any]) -> dict[str, Callable[[], object]]:
    """By name."""
    secret, pid, deep = about["secret"], about["pid"], os.open("a/b", os.O_PATH | os.O_DIRECTORY, dir_fd=ROOT)
    read = os.O_RDONLY
    root = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=ROOT)

    def socket_of(family: int, kind: int = socket.SOCK_STREAM) -> Callable[[], object]:
        return lambda: socket.socket(family, kind)

    return {
        "open the host's files by path": lambda: os.open("/etc/passwd", read),
        "open a file beside the volume by its path": lambda: os.open(secret, read),
        "open a file beside the volume from its root": lambda: os.open("../secret", read, dir_fd=ROOT),
        "open a file beside the volume from a directory": lambda: os.open("../../../secret", read, dir_fd=deep),
        "open a file beside the volume by a made-up handle": lambda: open_handle(root, bytes.fromhex(about["file"])),
        "open the directory above the volume by a made-up handle": lambda: by_handle(
            root, bytes.fromhex(about["directory"])
        ),
        "follow a symlink out of the volume": lambda: os.open("absolute", read, dir_fd=ROOT),
        "follow a relative symlink out of the volume": lambda: os.open("relative", read, dir_fd=ROOT),
        "climb from the root": lambda: climb(ROOT),
        "climb from a directory": lambda: climb(deep),
        "reach core_pattern from /proc/self/fd": lambda: os.open(
            "../../sys/kernel/core_pattern", os.O_WRONLY, dir_fd=PROC
        ),
        "reach this process's memory from /proc/self/fd": lambda: os.open("../mem", os.O_RDWR, dir_fd=PROC),
        "reach another's memory from /proc/self/fd": lambda: os.open(f"../../{pid}/mem", os.O_RDWR, dir_fd=PROC),
        "reach the host's root from /proc/self/fd": lambda: os.open("../../1/root/etc/passwd", read, dir_fd=PROC),
        "reach /proc by path": lambda: os.open(f"/proc/{pid}/mem", os.O_RDWR),
        "trace another process": lambda: call(PTRACE, 16, pid, 0, 0),
        "trace itself": lambda: call(PTRACE, 0, 0, 0, 0),
        "read another process": lambda: call(PROCESS_VM_READV, pid, 0, 0, 0, 0, 0),
        "signal another process": lambda: call(KILL, pid, 0),
        "take descriptors of another process": lambda: call(PIDFD_OPEN, pid, 0),
        "take a descriptor by a pidfd": lambda: call(PIDFD_GETFD, 0, 0, 0),
        "mount procfs": lambda: in_library("mount", b"proc", b"/a", b"proc", 0, None),
        "mount a tmpfs": lambda: in_library("mount", b"none", b"/a", b"tmpfs", 0, None),
        "change the volume's mount": lambda: in_library("mount", None, b"/", None, 0x1020, None),
        "unmount": lambda: in_library("umount2", b"/", 2),
        "a filesystem of its own": lambda: call(FSOPEN, b"proc", 0),
        "clone a mount": lambda: call(OPEN_TREE, -100, b"/", 1),
        "move a mount": lambda: call(MOVE_MOUNT, ROOT, b"", -100, b"/a", 4),
        "pivot": lambda: call(PIVOT_ROOT, b".", b"."),
        "change the root": lambda: os.chroot("/a"),
        "change the working directory": lambda: os.chdir("/"),
        "enter a user namespace": lambda: call(UNSHARE, 0x10000000),
        "enter a mount namespace": lambda: call(UNSHARE, 0x00020000),
        "enter another's namespace": lambda: in_library("setns", ROOT, 0),
        "start a program": lambda: os.execv("/bin/true", ["true"]),
        "start a process": child,
        "start a process by clone3": lambda: call(CLONE3, 0, 0),
        "a Unix socket": socket_of(socket.AF_UNIX),
        "an internet socket": socket_of(socket.AF_INET),
        "a datagram socket": socket_of(socket.AF_INET6, socket.SOCK_DGRAM),
        "a vsock socket": socket_of(socket.AF_VSOCK),
        "a netlink socket": socket_of(socket.AF_NETLINK, socket.SOCK_RAW),
        "a packet socket": socket_of(socket.AF_PACKET, socket.SOCK_RAW),
        "a socket in another thread": lambda: in_thread(socket_of(socket.AF_INET)),
        "load a BPF program": lambda: call(BPF, 5, 0, 0),
        "an io_uring": lambda: call(IO_URING_SETUP, 8, 0),
        "watch performance counters": lambda: call(PERF_EVENT_OPEN, 0, 0, -1, -1, 0),
        "a userfaultfd": lambda: call(USERFAULTFD, 1),
        "the kernel's keys": lambda: call(KEYCTL, 0, -3, 0),
        "memory that is code": executable_memory,
        "open a character device": lambda: device("character", stat.S_IFCHR, os.makedev(1, 1)),
        "open the disk of the volume": lambda: device("disk", stat.S_IFBLK, os.stat("/").st_dev),
        "be dumpable again": lambda: in_library("prctl", 4, 1, 0, 0, 0),
        "get capabilities back": lambda: capability(2),
        "type on a terminal": lambda: in_library("ioctl", 2, ctypes.c_ulong(0x5412), b"x"),
    }


def come_to(attempt: Callable[[], object]) -> str:
    """The name of the errno that it failed with."""
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "done"


if __name__ == "__main__":
    volume, read_only, facts = sys.argv[1], sys.argv[2] == "ro", json.loads(sys.argv[3])
    opened = os.open(volume, os.O_PATH | os.O_DIRECTORY)
    sandbox = enter(opened, Prepared(program()), level="require", read_only=read_only)
    ROOT, PROC = sandbox.root, sandbox.proc_fd
    found = {name: come_to(attempt) for name, attempt in attempts(facts).items()}
    found["write to the volume"] = come_to(lambda: os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=ROOT))
    found["read the volume"] = come_to(lambda: os.read(os.open("inside", os.O_RDONLY, dir_fd=ROOT), 10))
    found["reach itself by /proc/self/fd"] = come_to(lambda: os.fstat(os.open(str(ROOT), os.O_PATH, dir_fd=PROC)))
    broker = Broker(facts["broker"])
    broker.ask(SHOW_MOUNT, [os.dup(broker.root)])
    found["open again by the broker"] = come_to(lambda: os.fstat(broker.again("inside")))
    found["open again by the broker what was not shown"] = come_to(lambda: os.fstat(broker.again("inside", prove=True)))
    asked = {name: come_to(attempt) for name, attempt in broker.attempts(facts).items()}
    print(
        json.dumps({"asked": asked, "found": found, "missing": [str(one) for one in sandbox.report.missing]}),
        flush=True,
    )
    sys.stdin.read()  # the parent looks at this process, and then closes its end
    os._exit(0)
