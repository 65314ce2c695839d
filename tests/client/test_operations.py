"""The operations, called without a mount against a volume in memory."""

import errno
import os
import stat
from collections.abc import Awaitable, Callable
from typing import Any

import pyfuse3
import pytest
import trio

from fusepipe.client import operations as operations_module
from fusepipe.client.boundary import boundary
from fusepipe.client.cleanup import Cleanup
from fusepipe.client.errors import CallError
from fusepipe.client.link import Link
from fusepipe.client.operations import Features, Operations
from fusepipe.client.options import Cache
from fusepipe.device import CurrentRequest, Opcode, SetattrFlag
from fusepipe.wire import OpenedFlag
from fusepipe.wire import messages as m
from tests.client.servers import Server, linked, until
from tests.client.volumes import MemoryVolume

ROOT = pyfuse3.ROOT_INODE
DEFAULT = Cache()


class Context:
    """What pyfuse3 says of the caller; its own class cannot be made here."""

    def __init__(self, uid: int = 1000, gid: int = 1001, pid: int = 0) -> None:
        self.uid = uid
        self.gid = gid
        self.pid = pid or os.getpid()
        self.umask = 0


class OnTheDevice:
    """A filter, as far as operations use it; the kernel agreed to nothing yet."""

    def agreed(self) -> None:
        return None


class World:
    """Operations with a link, and the volume behind it."""

    def __init__(self, link: Link, server: Server, volume: MemoryVolume, cache: Cache) -> None:
        self.link = link
        self.server = server
        self.volume = volume
        self.cleanup = Cleanup(link)
        self.operations: Any = Operations(link, self.cleanup, cache)
        self.ctx = Context()

    @property
    def last(self) -> Any:
        return self.server.requests[-1]

    async def errno_of(self, call: Awaitable[object]) -> int:
        with pytest.raises(pyfuse3.FUSEError) as raised:
            await call
        return raised.value.errno


def run(test: Callable[[World], Awaitable[None]], cache: Cache = DEFAULT, features: Features | None = None) -> None:
    async def main() -> None:
        volume = MemoryVolume()
        async with linked(volume) as (link, server):
            world = World(link, server, volume, cache)
            if features is not None:
                world.operations.features = features
            with trio.fail_after(20):
                await test(world)

    trio.run(main)


def test_a_file_from_its_creation_to_its_end() -> None:
    async def test(world: World) -> None:
        ops, ctx = world.operations, world.ctx
        info, entry = await ops.create(ROOT, b"file", stat.S_IFREG | 0o640, os.O_RDWR | os.O_CREAT, ctx)
        assert (world.last.uid, world.last.gid) == (1000, 1001)
        assert await ops.write(info.fh, 3, b"abc") == 3
        assert bytes(await ops.read(info.fh, 0, 100)) == b"\0\0\0abc"
        assert (await ops.getattr(entry.st_ino, ctx)).st_size == 6
        await ops.flush(info.fh)
        await ops.fsync(info.fh, True)
        assert world.last == m.FsyncRequest(info.fh, True)
        linked_entry = await ops.link(entry.st_ino, ROOT, b"other", ctx)
        assert (linked_entry.st_ino, linked_entry.st_nlink) == (entry.st_ino, 2)
        await ops.rename(ROOT, b"other", ROOT, b"third", 1, ctx)
        assert world.last.flags == 1
        await ops.unlink(ROOT, b"third", ctx)
        await ops.unlink(ROOT, b"file", ctx)
        assert await world.errno_of(ops.unlink(ROOT, b"file", ctx)) == errno.ENOENT
        await ops.release(info.fh)
        await ops.forget([(entry.st_ino, 2)])
        world.cleanup.send()
        await until(lambda: not world.volume.handles)
        assert world.volume.counts == {ROOT: 1}

    run(test)


def test_directories_symlinks_and_nodes() -> None:
    async def test(world: World) -> None:
        ops, ctx = world.operations, world.ctx
        made = await ops.mkdir(ROOT, b"dir", stat.S_IFDIR | 0o755, ctx)
        assert stat.S_ISDIR(made.st_mode)
        link = await ops.symlink(made.st_ino, b"link", b"../target", ctx)
        assert await ops.readlink(link.st_ino, ctx) == b"../target"
        await ops.mknod(made.st_ino, b"node", stat.S_IFCHR | 0o600, os.makedev(5, 1), ctx)
        assert world.last.rdev == os.makedev(5, 1)
        assert await world.errno_of(ops.rmdir(ROOT, b"dir", ctx)) == errno.ENOTEMPTY
        handle = await ops.opendir(made.st_ino, ctx)
        await ops.fsyncdir(handle, False)
        assert await ops.access(made.st_ino, os.R_OK, ctx) is True
        stats = await ops.statfs(ctx)
        assert (stats.f_namemax, stats.f_bavail, stats.f_ffree) == (255, 400, 200)

    run(test)


def test_entries_that_pyfuse3_does_not_take_are_forgotten() -> None:
    async def test(world: World) -> None:
        world.volume.add("a")
        world.volume.add("b")
        handle = await world.operations.opendir(ROOT, world.ctx)
        await world.operations.readdir(handle, 0, pyfuse3.ReaddirToken())  # a token made here has no room at all
        assert world.last == m.ReaddirRequest(handle, 0, 4096)
        assert world.volume.counts == {ROOT: 1, 2: 1, 3: 1}
        world.cleanup.send()
        await until(lambda: world.volume.counts == {ROOT: 1})

    run(test)


@pytest.mark.parametrize(("cache", "seconds"), [(Cache(2.5), 2.5), (Cache(0), 0)])
def test_timeouts_follow_the_cache_mode(cache: Cache, seconds: float) -> None:
    async def test(world: World) -> None:
        ops, ctx = world.operations, world.ctx
        world.volume.add("there")
        found = await ops.lookup(ROOT, b"there", ctx)
        assert (found.entry_timeout, found.attr_timeout) == (seconds, seconds)
        assert (await ops.getattr(found.st_ino, ctx)).attr_timeout == seconds
        if seconds:
            absent = await ops.lookup(ROOT, b"absent", ctx)
            assert (absent.st_ino, absent.entry_timeout) == (0, seconds)
        else:
            assert await world.errno_of(ops.lookup(ROOT, b"absent", ctx)) == errno.ENOENT

    run(test, cache)


@pytest.mark.parametrize("cache", [Cache(1), Cache(0)])
@pytest.mark.parametrize("maps_direct", [True, False])
def test_nothing_is_cached_past_an_open(cache: Cache, maps_direct: bool) -> None:
    async def test(world: World) -> None:
        world.volume.add("file")
        node = (await world.operations.lookup(ROOT, b"file", world.ctx)).st_ino
        info = await world.operations.open(node, os.O_RDONLY, world.ctx)
        assert not info.keep_cache
        assert bool(info.direct_io) == (maps_direct and not cache.seconds)
        assert world.last.keep == 1000 * cache.seconds

    run(test, cache, Features(maps_direct=maps_direct))


@pytest.mark.parametrize(
    "flags", [OpenedFlag(0), OpenedFlag.KEEP, OpenedFlag.NOFLUSH, OpenedFlag.KEEP | OpenedFlag.NOFLUSH]
)
def test_the_server_decides_about_kept_pages_and_flush(flags: OpenedFlag) -> None:
    async def test(world: World) -> None:
        world.operations.use(OnTheDevice())
        world.volume.opened_flags = int(flags)
        info, _ = await world.operations.create(ROOT, b"file", 0o644, os.O_RDWR, world.ctx)
        node = (await world.operations.lookup(ROOT, b"file", world.ctx)).st_ino
        again = await world.operations.open(node, os.O_RDONLY, world.ctx)
        for each in (info, again):
            assert bool(each.keep_cache) is (OpenedFlag.KEEP in flags)
            assert bool(each.nonseekable) is (OpenedFlag.NOFLUSH in flags)

    run(test)


def test_without_the_filter_nobody_puts_noflush_in_its_place() -> None:
    async def test(world: World) -> None:
        world.volume.opened_flags = int(OpenedFlag.NOFLUSH)
        info, _ = await world.operations.create(ROOT, b"file", 0o644, os.O_RDWR, world.ctx)
        assert not info.nonseekable

    run(test)


def test_inode_numbers_travel_beside_node_ids_only_with_the_filter() -> None:
    async def test(world: World) -> None:
        ops, ctx = world.operations, world.ctx
        ino = world.volume.add("file").ino
        found = await ops.lookup(ROOT, b"file", ctx)
        assert (found.st_ino, found.generation) == (2, 0)
        assert (await ops.getattr(2, ctx)).st_ino == 2
        ops.use(OnTheDevice())
        found = await ops.lookup(ROOT, b"file", ctx)
        assert (found.st_ino, found.generation) == (2, ino)
        assert (await ops.getattr(2, ctx)).st_ino == ino

    run(test)


def test_umask_and_group_come_from_the_request_where_the_kernel_sends_them() -> None:
    async def test(world: World) -> None:
        world.link.current = CurrentRequest(umask=0o027, has_group=1, group=77)
        await world.operations.mkdir(ROOT, b"dir", stat.S_IFDIR | 0o777, world.ctx)
        assert (world.last.umask, world.last.groups) == (0o027, (77,))
        world.link.current = CurrentRequest(umask=0o022)
        await world.operations.create(ROOT, b"file", 0o666, os.O_RDWR, world.ctx)
        assert (world.last.umask, world.last.groups) == (0o022, ())

    run(test, features=Features(leaves_umask=True, sends_group=True))


def test_without_them_groups_come_from_proc_and_the_kernel_applied_the_umask() -> None:
    async def test(world: World) -> None:
        world.link.current = CurrentRequest(umask=0o027)
        await world.operations.mkdir(ROOT, b"dir", stat.S_IFDIR | 0o777, world.ctx)
        assert (world.last.umask, world.last.groups) == (0, tuple(sorted(os.getgroups())))
        await world.operations.mkdir(ROOT, b"root", stat.S_IFDIR | 0o777, Context(uid=0))
        assert world.last.groups == ()

    run(test)


class Fields:
    """Which attributes SETATTR changes, as pyfuse3 says it."""

    def __init__(self, *names: str) -> None:
        for name in ("atime", "mtime", "ctime", "mode", "uid", "gid", "size"):
            setattr(self, f"update_{name}", name in names)


def test_setattr_says_what_the_kernel_said() -> None:
    async def test(world: World) -> None:
        attr = pyfuse3.EntryAttributes()
        attr.st_size = 10
        attr.st_mtime_ns = -1
        world.link.current = CurrentRequest(
            valid=SetattrFlag.SIZE | SetattrFlag.MTIME_NOW | SetattrFlag.KILL_SUIDGID | 1 << 6 | 1 << 10
        )
        world.volume.add("file")
        node = (await world.operations.lookup(ROOT, b"file", world.ctx)).st_ino
        await world.operations.setattr(node, attr, Fields("size", "mtime"), 5, world.ctx)
        assert world.last.handle == 5
        assert world.last.valid == SetattrFlag.SIZE | SetattrFlag.MTIME_NOW | SetattrFlag.KILL_SUIDGID
        assert (world.last.mtime, world.last.mtime_ns) == (-1, 999_999_999)
        assert world.last.size == 10

    run(test)


def test_setattr_without_the_filter_says_what_pyfuse3_knows() -> None:
    async def test(world: World) -> None:
        attr = pyfuse3.EntryAttributes()
        await world.operations.setattr(ROOT, attr, Fields("mode", "uid", "gid", "atime", "mtime"), None, world.ctx)
        flags = SetattrFlag
        assert world.last.valid == flags.MODE | flags.UID | flags.GID | flags.ATIME | flags.MTIME
        assert world.last.handle == 0

    run(test)


def test_getattr_and_statfs_name_what_the_kernel_named() -> None:
    async def test(world: World) -> None:
        world.link.current = CurrentRequest(handle=9, node=ROOT)
        await world.operations.getattr(ROOT, world.ctx)
        assert world.last == m.GetattrRequest(ROOT, 9)
        await world.operations.statfs(world.ctx)
        assert world.last == m.StatfsRequest(ROOT)

    run(test)


def test_kill_flags_reach_the_server() -> None:
    async def test(world: World) -> None:
        world.volume.add("file")
        node = (await world.operations.lookup(ROOT, b"file", world.ctx)).st_ino
        world.link.current = CurrentRequest(kill=1)
        info = await world.operations.open(node, os.O_RDWR | os.O_TRUNC, world.ctx)
        assert world.last == m.OpenRequest(node, os.O_RDWR | os.O_TRUNC, True, 1000, 0)
        world.link.current = CurrentRequest(flags=1 | 2 | 4)
        await world.operations.write(info.fh, 0, b"x")
        assert world.last.flags == 1 | 4

    run(test)


async def as_pyfuse3_sets(world: World, flags: int, name: bytes, value: bytes) -> None:
    """What pyfuse3 does for SETXATTR: first it looks, where a flag is set."""
    world.link.current = CurrentRequest(opcode=Opcode.SETXATTR, flags=flags)
    ops, ctx = world.operations, world.ctx
    if flags & os.XATTR_CREATE:
        assert await world.errno_of(ops.getxattr(ROOT, name, ctx)) == errno.ENODATA
    elif flags & os.XATTR_REPLACE:
        await ops.getxattr(ROOT, name, ctx)
    await ops.setxattr(ROOT, name, value, ctx)


def test_the_host_decides_about_create_and_replace_of_xattrs() -> None:
    async def test(world: World) -> None:
        await as_pyfuse3_sets(world, os.XATTR_CREATE, b"user.a", b"1")
        with pytest.raises(pyfuse3.FUSEError) as raised:
            await as_pyfuse3_sets(world, os.XATTR_CREATE, b"user.a", b"2")
        assert raised.value.errno == errno.EEXIST
        await as_pyfuse3_sets(world, os.XATTR_REPLACE, b"user.a", b"3")
        with pytest.raises(pyfuse3.FUSEError) as raised:
            await as_pyfuse3_sets(world, os.XATTR_REPLACE, b"user.b", b"4")
        assert raised.value.errno == errno.ENODATA
        world.link.current = CurrentRequest()
        assert await world.operations.getxattr(ROOT, b"user.a", world.ctx) == b"3"
        assert await world.operations.listxattr(ROOT, world.ctx) == [b"user.a"]
        await world.operations.removexattr(ROOT, b"user.a", world.ctx)
        assert not any(isinstance(request, m.GetxattrRequest) for request in world.server.requests[:-3])

    run(test)


def test_an_acl_from_outside_the_group_clears_set_gid() -> None:
    async def test(world: World) -> None:
        file = world.volume.add("file", mode=stat.S_IFREG | 0o2770)
        node = (await world.operations.lookup(ROOT, b"file", world.ctx)).st_ino
        world.link.current = CurrentRequest(opcode=Opcode.SETXATTR, kill=0)
        await world.operations.setxattr(node, b"system.posix_acl_access", b"acl", world.ctx)
        assert file.mode == stat.S_IFREG | 0o2770
        world.link.current = CurrentRequest(opcode=Opcode.SETXATTR, kill=1)
        await world.operations.setxattr(node, b"system.posix_acl_access", b"other", world.ctx)
        assert file.mode == stat.S_IFREG | 0o770
        assert file.xattrs == {b"system.posix_acl_access": b"other"}

    run(test)


def test_names_that_only_root_may_see() -> None:
    async def test(world: World) -> None:
        world.volume.root.xattrs = {b"trusted.a": b"", b"user.a": b"", b"security.a": b""}
        assert await world.operations.listxattr(ROOT, world.ctx) == [b"user.a", b"security.a"]
        assert await world.operations.listxattr(ROOT, Context(uid=0)) == (b"trusted.a", b"user.a", b"security.a")

    run(test)


def test_a_host_without_acls_is_one_where_no_file_has_an_acl() -> None:
    async def test(world: World) -> None:
        ops, ctx = world.operations, world.ctx
        assert await world.errno_of(ops.getxattr(ROOT, b"system.posix_acl_access", ctx)) == errno.ENODATA
        assert await world.errno_of(ops.getxattr(ROOT, b"system.nfs4_acl", ctx)) == errno.EOPNOTSUPP

    run(test)


@pytest.mark.parametrize("length", [255, 256, 1024])
def test_names_have_a_limit(length: int) -> None:
    async def test(world: World) -> None:
        name = b"\xff" * length
        number = await world.errno_of(world.operations.lookup(ROOT, name, world.ctx))
        assert number == (errno.ENOENT if length == 255 else errno.ENAMETOOLONG)

    run(test, Cache(0))


# ---- the boundary ---------------------------------------------------------------------------------------------------


class Broken:
    """Operations that raise what the test wants."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    @boundary
    async def lookup(self, parent_inode: int, name: bytes) -> None:
        raise self.error

    @boundary
    async def read(self, fh: int, off: int, data: bytes = b"") -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "of_lookup", "of_read"),
    [
        (CallError(errno.EDQUOT), errno.EDQUOT, errno.EDQUOT),
        (CallError(errno.EIO), errno.EIO, errno.EIO),
        (CallError(4000), errno.EINTR, errno.EIO),  # the kernel would not take it, and the program would wait for ever
        (CallError(0), errno.EINTR, errno.EIO),
        (OSError(errno.ENOENT, "of the client's own"), errno.EINTR, errno.EIO),
        (AssertionError("a bug"), errno.EINTR, errno.EIO),
    ],
)
def test_every_error_becomes_a_number(
    error: Exception, of_lookup: int, of_read: int, capfd: pytest.CaptureFixture[str]
) -> None:
    async def main() -> None:
        with pytest.raises(pyfuse3.FUSEError) as raised:
            await Broken(error).lookup(1, b"secret")
        assert raised.value.errno == of_lookup
        with pytest.raises(pyfuse3.FUSEError) as raised:
            await Broken(error).read(7, 4096)
        assert raised.value.errno == of_read

    trio.run(main)
    lines = capfd.readouterr().err.splitlines()
    if isinstance(error, CallError):
        assert lines == []
    else:
        assert len(lines) == 2
        assert 'operation=lookup arguments="1, 6 bytes"' in lines[0] and "secret" not in lines[0]
        assert 'operation=read arguments="7, 4096"' in lines[1]


def test_a_cancelled_operation_stays_cancelled() -> None:
    async def main() -> None:
        class Waiting:
            @boundary
            async def read(self) -> None:
                await trio.sleep_forever()

        with trio.move_on_after(0.01) as scope:
            await Waiting().read()
        assert scope.cancelled_caught

    trio.run(main)


def test_a_bug_fails_one_request_alone(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    async def test(world: World) -> None:
        monkeypatch.setattr(operations_module, "to_statvfs", lambda reply: 1 // 0)
        assert await world.errno_of(world.operations.statfs(world.ctx)) == errno.EIO

    run(test)
    assert "ZeroDivisionError" in capfd.readouterr().err
