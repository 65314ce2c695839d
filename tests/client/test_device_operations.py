"""The operations on taken requests, called without a mount against a volume in memory."""

import errno
import os
import stat
import struct
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pyfuse3
import pytest
import trio

from fusepipe.client.cleanup import Cleanup
from fusepipe.client.device_operations import DeviceOperations
from fusepipe.client.identity import keeps_set_id
from fusepipe.client.link import Link
from fusepipe.client.operations import Features, Operations
from fusepipe.client.options import Cache
from fusepipe.device import CurrentRequest, Ioctl, Opcode, OpenFlag
from fusepipe.wire import messages as m
from tests.client.servers import Server, linked
from tests.client.volumes import MemoryVolume

ROOT = pyfuse3.ROOT_INODE


class World:
    """The operations by opcode, and a file of 10 bytes that is open."""

    def __init__(self, link: Link, server: Server, volume: MemoryVolume, cache: Cache, features: Features) -> None:
        self.server = server
        operations: Any = Operations(link, Cleanup(link), cache)
        operations.features = features
        self.changed: list[int] = []
        operations.changed = self.changed.append
        self.table = DeviceOperations(link, operations).table()
        self.file = volume.add("file", b"0123456789")
        self.node = volume.entry(self.file).node
        self.handle = volume.handle(self.file)
        self.unique = 0

    @property
    def last(self) -> Any:
        return self.server.requests[-1]

    async def __call__(self, opcode: int, form: str, *fields: int, data: bytes = b"", **more: int) -> bytes:
        """The body of the answer to a request of who runs the tests, or of `uid`."""
        self.unique += 2
        asks: dict[str, int] = {"node": self.node, "uid": os.getuid(), "gid": os.getgid(), "pid": os.getpid(), **more}
        current = CurrentRequest(unique=self.unique, opcode=opcode, **asks)
        return await self.table[opcode](current, struct.pack("=" + form, *fields) + data)

    async def errno_of(self, call: Awaitable[bytes]) -> int:
        with pytest.raises(pyfuse3.FUSEError) as raised:
            await call
        return raised.value.errno


def run(test: Callable[[World], Awaitable[None]], cache: Cache | None = None, features: Features | None = None) -> None:
    async def main() -> None:
        volume = MemoryVolume()
        async with linked(volume) as (link, server):
            with trio.fail_after(30):
                await test(World(link, server, volume, cache or Cache(), features or Features()))

    trio.run(main)


def test_data_that_are_not_written_back_are_no_holes() -> None:
    """ENOSYS makes the kernel answer by itself, for good."""

    async def test(world: World) -> None:
        seek = ("QQII", world.handle, 0, os.SEEK_DATA, 0)
        assert await world.errno_of(world(Opcode.LSEEK, *seek)) == errno.ENOSYS
        assert not world.server.requests

    run(test, features=Features(writes_back=True))


def test_copies_have_no_flags_yet_and_two_forms_of_answer() -> None:
    async def test(world: World) -> None:
        arguments = (world.handle, 2, world.node, world.handle, 20, 5)
        assert await world(Opcode.COPY_FILE_RANGE, "7Q", *arguments, 0) == struct.pack("=II", 5, 0)
        assert await world(Opcode.COPY_FILE_RANGE_64, "7Q", *arguments, 0) == struct.pack("=Q", 5)
        assert world.last == m.CopyFileRangeRequest(world.handle, 2, world.handle, 20, 5, kill=os.getuid() != 0)
        assert await world.errno_of(world(Opcode.COPY_FILE_RANGE_64, "7Q", *arguments, 1)) == errno.EINVAL

    run(test)


def test_who_changes_a_file_decides_about_set_id() -> None:
    async def test(world: World) -> None:
        for uid, kill in ((1000, True), (os.getuid(), os.getuid() != 0)):
            await world(Opcode.FALLOCATE, "QQQII", world.handle, 0, 100, 0, 0, uid=uid)
            assert world.last.kill is kill

    run(test)


@pytest.mark.skipif(os.geteuid() != 0, reason="a root without a capability is made by root")
def test_root_may_lack_the_capability() -> None:
    child = subprocess.Popen(["setpriv", "--bounding-set", "-fsetid", "sleep", "60"])
    try:
        while "sleep" not in Path(f"/proc/{child.pid}/comm").read_text():
            assert child.poll() is None
        assert not keeps_set_id(0, child.pid)
        assert keeps_set_id(0, os.getpid())
        assert not keeps_set_id(1000, os.getpid())
    finally:
        child.kill()
        child.wait()
    assert keeps_set_id(0, child.pid)  # it cannot be seen any more


@pytest.mark.parametrize("get", [Ioctl.GETFLAGS, Ioctl.GETFLAGS_32])
@pytest.mark.parametrize("set_to", [Ioctl.SETFLAGS, Ioctl.SETFLAGS_32])
def test_inode_flags_of_32_and_64_bit_programs(get: int, set_to: int) -> None:
    async def test(world: World) -> None:
        size = (set_to >> 16) & 0x3FFF  # kernels before 5.13 send as much as the number says
        data = struct.pack("=I", 0x40).ljust(size, b"?")
        answer = await world(Opcode.IOCTL, "QIIQII", world.handle, 0, set_to, 0, size, 0, data=data, uid=5, gid=6)
        assert answer == bytes(16)
        assert world.last == m.IoctlRequest(world.handle, Ioctl.SETFLAGS, data[:4], 5, 6)
        assert world.changed == [world.node]
        answer = await world(Opcode.IOCTL, "QIIQII", world.handle, 0, get, 0, 0, (get >> 16) & 0x3FFF)
        assert answer == bytes(16) + data[:4]
        assert world.changed == [world.node]

    run(test)


def test_the_server_is_asked_about_inode_flags_alone() -> None:
    async def test(world: World) -> None:
        for command in (0x5401, 0xC020660B, 0x40049409, 0):
            call = world(Opcode.IOCTL, "QIIQII", world.handle, 0, command, 0, 0, 0)
            assert await world.errno_of(call) == errno.ENOTTY
        assert not world.server.requests

    run(test)


@pytest.mark.parametrize("leaves_umask", [False, True])
@pytest.mark.parametrize("mode", ["none", "ttl:2.5"])
def test_files_without_names(leaves_umask: bool, mode: str) -> None:
    async def test(world: World) -> None:
        flags = os.O_TMPFILE | os.O_RDWR | os.O_EXCL
        mode_bits = stat.S_IFREG | 0o666
        answer = await world(
            Opcode.TMPFILE, "4I", flags, mode_bits, 0o27, 0, data=b"/\0", node=ROOT, uid=7, has_group=1, group=9
        )
        assert world.last == m.TmpfileRequest(ROOT, flags, mode_bits, 0o27 * leaves_umask, 7, os.getgid(), (9,))
        node, generation, entry, attr, entry_ns, attr_ns = struct.unpack_from("=4QII", answer)
        ino, size, *_ = struct.unpack_from("=6Q10I", answer, 40)
        handle, open_flags, padding = struct.unpack_from("=QII", answer, 128)
        assert len(answer) == 144  # struct fuse_entry_out and struct fuse_open_out
        assert (generation, size, padding) == (0, 0, 0)
        assert node != ino > 1 << 40
        assert handle >= 1000
        kept = mode != "none"
        assert (entry, attr, entry_ns, attr_ns) == ((2, 2, 5 * 10**8, 5 * 10**8) if kept else (0, 0, 0, 0))
        assert open_flags == (0 if kept else OpenFlag.DIRECT_IO)

    run(test, Cache.parse(mode), Features(leaves_umask=leaves_umask, sends_group=True, maps_direct=True))


def test_with_write_back_a_file_without_a_name_can_be_read() -> None:
    """The kernel reads the rest of a page that a program writes a part of."""

    async def test(world: World) -> None:
        flags = os.O_TMPFILE | os.O_WRONLY | os.O_APPEND
        await world(Opcode.TMPFILE, "4I", flags, stat.S_IFREG | 0o600, 0, 0, node=ROOT)
        assert world.last.flags == os.O_TMPFILE | os.O_RDWR

    run(test, Cache.parse("exclusive"), Features(writes_back=True))


def test_birth_times_stand_where_the_kernel_looks_for_them() -> None:
    async def test(world: World) -> None:
        world.file.time_ns = -1
        answer = await world(Opcode.STATX, "IIQII", 1, 0, world.handle, 0x2000, 0xFFF)
        assert world.last == m.StatxRequest(world.node, world.handle, 0x2000, 0xFFF)
        assert len(answer) == 288  # struct fuse_statx_out
        assert struct.unpack_from("=QI", answer) == (1, 0)
        mask, blksize, attributes, nlink, uid, gid, mode = struct.unpack_from("=IIQIIIH", answer, 32)
        assert (mask, blksize, attributes, nlink, uid, gid, mode) == (0xFFF, 4096, 0, 1, 0, 0, stat.S_IFREG | 0o644)
        assert struct.unpack_from("=QQ", answer, 64) == (world.file.ino, 10)
        times = [struct.unpack_from("=qI", answer, 96 + 16 * which) for which in range(4)]
        assert times == [(-1, 999_999_999), (1_000_000_000, 5), (-1, 999_999_999), (-1, 999_999_999)]
        await world(Opcode.STATX, "IIQII", 0, 0, world.handle, 0, 0xFFF)
        assert world.last.handle == 0  # the kernel gave none

    run(test)
