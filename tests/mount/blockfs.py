"""A filesystem that does not answer when told so: the slow or dead disk below a volume.

    python blockfs.py MOUNTPOINT [--interruptible]

It speaks the kernel's protocol on /dev/fuse itself (include/uapi/linux/fuse.h), without any library, so that it shares
no code with what is tested.  The root directory has the files that one looks up: `OPERATION-ANYTHING`, where OPERATION
is `quick`, `lookup`, `open`, `read`, `write`, `fsync`, `getattr`, `fallocate`, `seek` or `copy`.  A request of that
operation on such a file is not answered until `go` is read from standard input; one line on standard output tells each:
`blocked OPERATION NAME`.
Without `--interruptible` INTERRUPT is ignored, like by a disk that hangs.  `end` or the end of input unmounts.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import struct
import sys

LOOKUP, FORGET, GETATTR, OPEN, READ, WRITE, STATFS, RELEASE, FSYNC, GETXATTR, LISTXATTR, FLUSH, INIT, OPENDIR = (
    1, 2, 3, 14, 15, 16, 17, 18, 20, 22, 23, 25, 26, 27,
)  # fmt: skip
READDIR, RELEASEDIR, ACCESS, INTERRUPT, BATCH_FORGET, FALLOCATE, LSEEK, COPY = 28, 29, 34, 36, 42, 43, 46, 47
BLOCKING = {
    LOOKUP: "lookup", OPEN: "open", READ: "read", WRITE: "write", FSYNC: "fsync", GETATTR: "getattr",
    FALLOCATE: "fallocate", LSEEK: "seek", COPY: "copy",
}  # fmt: skip
KINDS = {"quick", *BLOCKING.values()}
ENOENT, EINTR, ENOSYS = 2, 4, 38
MNT_DETACH = 2
DIRECT_IO = 1
PARALLEL_DIROPS = 1 << 18  # without it one blocked LOOKUP would hold up all others in the directory
SIZE = 1 << 20
HEADER = struct.Struct("<IIQQIIIHH")

_libc = ctypes.CDLL(None, use_errno=True)


class BlockFS:
    """One mount of it, answering in one thread."""

    def __init__(self, mountpoint: str, interruptible: bool) -> None:
        self.device = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self.device},rootmode=40000,user_id=0,group_id=0,allow_other"
        if _libc.mount(b"blockfs", os.fsencode(mountpoint), b"fuse", 0, options.encode()):
            raise OSError(ctypes.get_errno(), "mount")
        self.interruptible = interruptible
        self.names = {1: b"/"}
        self.nodes: dict[bytes, int] = {}
        self.waiting: dict[int, tuple[int, int, bytes]] = {}
        self.blocking = True

    def serve(self, mountpoint: str) -> None:
        """Answer until told to end."""
        print("ready", flush=True)
        try:
            while True:
                readable, _, _ = select.select([self.device, sys.stdin], [], [])
                if sys.stdin in readable:
                    line = os.read(sys.stdin.fileno(), 100)
                    if not line or b"end" in line:
                        return
                    self.go()
                if self.device in readable:
                    try:
                        request = os.read(self.device, SIZE + 4096)
                    except InterruptedError:
                        continue
                    except OSError:
                        return  # unmounted by somebody else
                    self.request(request)
        finally:
            self.go()
            _libc.umount2(os.fsencode(mountpoint), MNT_DETACH)

    def go(self) -> None:
        """Answer all that waits, and block no more."""
        self.blocking = False
        waiting, self.waiting = self.waiting, {}
        for unique, (opcode, node, body) in waiting.items():
            self.answer(unique, opcode, node, body)

    def request(self, request: bytes) -> None:
        _, opcode, unique, node, *_ = HEADER.unpack_from(request)
        body = request[HEADER.size :]
        if opcode in (FORGET, BATCH_FORGET):
            return
        if opcode == INTERRUPT:
            (which,) = struct.unpack_from("<Q", body)
            if self.interruptible and which in self.waiting:
                del self.waiting[which]
                self.reply(which, error=EINTR)
            return
        name = body.rstrip(b"\0") if opcode == LOOKUP else self.names.get(node, b"")
        if self.blocking and name.decode(errors="replace").split("-")[0] == BLOCKING.get(opcode):
            self.waiting[unique] = (opcode, node, body)
            print("blocked", BLOCKING[opcode], name.decode(errors="replace"), flush=True)
        else:
            self.answer(unique, opcode, node, body)

    def answer(self, unique: int, opcode: int, node: int, body: bytes) -> None:
        if opcode == INIT:
            major, _, readahead, _ = struct.unpack_from("<IIII", body)
            limits = (major, 31, readahead, PARALLEL_DIROPS, 64, 48, SIZE, 1, 256, 0, 0, 0)
            self.reply(unique, struct.pack("<IIIIHHIIHHII24x", *limits))
        elif opcode == LOOKUP:
            name = body.rstrip(b"\0")
            if name.decode(errors="replace").split("-")[0] not in KINDS:
                self.reply(unique, error=ENOENT)
                return
            node = self.nodes.setdefault(name, len(self.nodes) + 2)
            self.names[node] = name
            self.reply(unique, struct.pack("<QQQQII", node, 0, 0, 0, 0, 0) + self.attributes(node))
        elif opcode == GETATTR:
            self.reply(unique, struct.pack("<QII", 0, 0, 0) + self.attributes(node))
        elif opcode in (OPEN, OPENDIR):
            self.reply(unique, struct.pack("<QII", node, DIRECT_IO if opcode == OPEN else 0, 0))
        elif opcode == READ:
            _, offset, size = struct.unpack_from("<QQI", body)
            self.reply(unique, b"x" * max(0, min(size, 4096 - offset)))
        elif opcode == WRITE:
            _, _, size = struct.unpack_from("<QQI", body)
            self.reply(unique, struct.pack("<II", size, 0))
        elif opcode == STATFS:
            self.reply(unique, struct.pack("<QQQQQIII4x24x", 1000, 500, 500, 100, 50, 4096, 255, 4096))
        elif opcode == LSEEK:
            self.reply(unique, struct.pack("<Q", 0))
        elif opcode == COPY:
            self.reply(unique, struct.pack("<II", struct.unpack_from("<Q", body, 40)[0], 0))
        elif opcode in (RELEASE, RELEASEDIR, FLUSH, FSYNC, ACCESS, FALLOCATE):
            self.reply(unique)
        elif opcode == READDIR:
            self.reply(unique, b"")
        else:
            self.reply(unique, error=ENOSYS)

    def attributes(self, node: int) -> bytes:
        mode = 0o040777 if node == 1 else 0o100666
        return struct.pack("<QQQQQQIIIIIIIIII", node, 4096, 8, 1, 1, 1, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def reply(self, unique: int, body: bytes = b"", error: int = 0) -> None:
        with contextlib.suppress(OSError):  # ENOENT: the caller was killed and waits no more
            os.write(self.device, struct.pack("<IiQ", 16 + len(body), -error, unique) + body)


if __name__ == "__main__":
    BlockFS(sys.argv[1], "--interruptible" in sys.argv[2:]).serve(sys.argv[1])
