"""A host that is full, over quota, read-only or failing: the errno comes where POSIX says, and what was synced stays.

Where data are written through (`ttl`), `write` says it; where they are kept for a while (`exclusive`), `fsync` and
`close` do.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.conftest import Failing, MountOn, loop_mounted, make_image, run
from tests.mount import mounttable
from tests.mount.expect import fails
from tests.mount.harness import Mount
from tests.support import world

MIB = 1 << 20
BLOCK = b"0123456789abcdef" * 4096

FULL = {"ext4": errno.ENOSPC, "tmpfs": errno.ENOSPC, "btrfs quota": errno.EDQUOT}
"""Volumes with little room, and what a write beyond it is answered."""

SHUTDOWN = 0x8004587D
"""EXT4_IOC_SHUTDOWN, _IOR('X', 125, __u32): include/uapi/linux/ext4.h."""

SHUTDOWN_NOLOGFLUSH = 2
"""Nothing more reaches the disk, as when the power fails."""


def synced(path: Path, content: bytes) -> None:
    """A file that has reached the disk, as fsync says; its name too."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        assert os.write(fd, content) == len(content)
        os.fsync(fd)
    finally:
        os.close(fd)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def fill(fd: int, most: int) -> tuple[str, int]:
    """Write and fsync until an errno comes: which of them said which.  Blocks that fsync said yes to are whole."""
    for _ in range(most // len(BLOCK)):
        call = "write"
        try:
            write_all(fd, BLOCK)
            call = "fsync"
            os.fsync(fd)
        except OSError as error:
            assert error.errno is not None
            return call, error.errno
    raise AssertionError(f"{most} bytes fit")


def write_all(fd: int, content: bytes) -> None:
    """write(2) until all is written."""
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


def copy(path: Path, content: bytes) -> tuple[str, int]:
    """What a program hears that makes a file and does not sync it: which call said which errno; 0 where none did."""
    call = "open"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT)
        try:
            call = "write"
            write_all(fd, content)
            call = "close"
        finally:
            os.close(fd)
    except OSError as error:
        assert error.errno is not None
        return call, error.errno
    return call, 0


@pytest.fixture
def small(request: pytest.FixtureRequest, open_path: Path) -> Iterator[tuple[Path, int]]:
    """An empty folder with room for less than 24 MiB, and the errno beyond that."""
    kind = str(request.param)
    path = open_path / "volume"
    if kind == "tmpfs":
        path.mkdir()
        mounttable.mount("tmpfs", path, "tmpfs", 0, "size=8m")
        yield path, FULL[kind]
        mounttable.umount(path)
        return
    if kind == "ext4":
        with loop_mounted(make_image(open_path / "image", 16, "mkfs.ext4", "-q"), path):
            yield path, FULL[kind]
        return
    with loop_mounted(make_image(open_path / "image", 160, "mkfs.btrfs", "-q"), path):
        run("btrfs", "quota", "enable", path)
        run("btrfs", "subvolume", "create", path / "limited")
        run("btrfs", "qgroup", "limit", "8M", path / "limited")
        yield path / "limited", FULL[kind]


@pytest.mark.parametrize("small", FULL, indirect=True)
def test_no_room(small: tuple[Path, int], mount_on: MountOn, cache: str) -> None:
    """Data beyond the room fail at write or fsync; what was synced is whole, and with room again all goes on."""
    volume, number = small
    mount = mount_on(volume)
    late = cache == "exclusive"
    synced(mount.path / "before", BLOCK * 16)
    fd = os.open(mount.path / "filler", os.O_WRONLY | os.O_CREAT)
    try:
        assert fill(fd, 32 * MIB) == ("fsync" if late else "write", number)
    finally:
        _close(fd)
    call, said = copy(mount.path / "beside", BLOCK * 16)
    assert (call, said) in ((("close" if late else "write"), number), ("open", number))
    with fails(number):
        fd = os.open(mount.path / "allocated", os.O_WRONLY | os.O_CREAT)
        try:
            os.posix_fallocate(fd, 0, 8 * MIB)
        finally:
            os.close(fd)
    for top in (mount.path, volume):
        assert (top / "before").read_bytes() == BLOCK * 16
        filled = (top / "filler").read_bytes()
        whole = len(filled) // len(BLOCK)
        assert whole >= 16
        assert filled[: whole * len(BLOCK)] == BLOCK * whole
    for name in ("filler", "beside", "allocated"):
        (mount.path / name).unlink(missing_ok=True)
    assert _eventually_fits(mount.path / "after", BLOCK * 16)
    assert (volume / "after").read_bytes() == BLOCK * 16
    assert (volume / "before").read_bytes() == BLOCK * 16


def _close(fd: int) -> None:
    """close(2) of a file whose pages could not all be sent: it may say so once more."""
    with contextlib.suppress(OSError):
        os.close(fd)


def _eventually_fits(path: Path, content: bytes) -> bool:
    """Whether a file can be made again; btrfs gives room back some time after a file is gone."""
    return world.wait_until(lambda: copy(path, content) == ("close", 0), 60)


@pytest.fixture
def ext4_image(open_path: Path) -> Path:
    """An ext4 of 16 MiB with 64 inodes."""
    return make_image(open_path / "image", 16, "mkfs.ext4", "-q", "-N", "64")


def test_no_inodes(mount_on: MountOn, ext4_image: Path, open_path: Path) -> None:
    """Where the host has no more inodes, what makes one says ENOSPC at once, and what needs none works."""
    with loop_mounted(ext4_image, open_path / "volume") as volume, _mounted(mount_on(volume)) as path:
        made = 0
        with fails(errno.ENOSPC):
            for made in range(200):
                (path / f"file{made}").touch()
        with fails(errno.ENOSPC):
            (path / "folder").mkdir()
        with fails(errno.ENOSPC):
            (path / "link").symlink_to("x" * 200)
        with fails(errno.ENOSPC):
            os.mknod(path / "fifo", 0o10644)
        os.link(path / "file0", path / "another name")
        synced(path / "file0", BLOCK)
        (path / "file1").unlink()
        (path / "folder").mkdir()
        assert (volume / "file0").read_bytes() == BLOCK


@contextmanager
def _mounted(mount: Mount) -> Iterator[Path]:
    """The mount's path; it ends before the filesystem below does."""
    yield mount.path
    mount.unmount()


def test_a_mapping_without_room(mount_on: MountOn, open_path: Path) -> None:
    """Stores into a mapping of a sparse file that cannot be written are told by msync."""
    volume = open_path / "volume"
    volume.mkdir()
    mounttable.mount("tmpfs", volume, "tmpfs", 0, "size=1m")
    try:
        with _mounted(mount_on(volume)) as path:
            fd = os.open(path / "file", os.O_RDWR | os.O_CREAT)
            try:
                os.ftruncate(fd, 4 * MIB)
                with mmap.mmap(fd, 4 * MIB) as mapping:
                    mapping[:16] = BLOCK[:16]
                    mapping.flush()
                    mapping[: 4 * MIB] = BLOCK * 64
                    with fails(errno.ENOSPC):
                        mapping.flush()
            finally:
                _close(fd)
            assert (volume / "file").read_bytes()[:16] == BLOCK[:16]
    finally:
        mounttable.umount(volume)


def test_remounted_read_only(mount_on: MountOn, ext4_image: Path, open_path: Path) -> None:
    """The host remounts the filesystem read-only below a mount: EROFS at each call that changes something."""
    with loop_mounted(ext4_image, open_path / "volume") as volume, _mounted(mount_on(volume)) as path:
        synced(path / "file", BLOCK)
        reader = os.open(path / "file", os.O_RDONLY)
        try:
            # The guest's closes are on their way: a file that is open for writing keeps the host from it.
            assert world.wait_until(lambda: _remounts(volume, "ro"), 30)
            for call in (
                lambda: os.open(path / "file", os.O_WRONLY),
                lambda: os.open(path / "new", os.O_WRONLY | os.O_CREAT),
                lambda: os.mkdir(path / "folder"),
                lambda: os.unlink(path / "file"),
                lambda: os.rename(path / "file", path / "other"),
                lambda: os.link(path / "file", path / "other"),
                lambda: os.symlink("x", path / "link"),
                lambda: os.truncate(path / "file", 0),
                lambda: os.chmod(path / "file", 0o600),
                lambda: os.utime(path / "file", (1, 1)),
                lambda: os.setxattr(path / "file", "user.x", b"1"),
            ):
                with fails(errno.EROFS):
                    call()
            assert os.pread(reader, len(BLOCK), 0) == BLOCK
            assert (path / "file").read_bytes() == BLOCK
        finally:
            os.close(reader)
        assert _remounts(volume, "rw")
        synced(path / "file", BLOCK[::-1])
        assert (volume / "file").read_bytes() == BLOCK[::-1]


def _remounts(path: Path, how: str) -> bool:
    flags = mounttable.MS_REMOUNT | (mounttable.MS_RDONLY if how == "ro" else 0)
    try:
        mounttable.mount("none", path, "ext4", flags, "")
    except OSError as error:
        assert error.errno == errno.EBUSY
        return False
    return True


def test_read_only_below_from_the_start(mount_on: MountOn, ext4_image: Path, open_path: Path) -> None:
    """A volume on a filesystem that is read-only: it can be mounted and read, and changes are EROFS."""
    with loop_mounted(ext4_image, open_path / "volume") as volume:
        (volume / "file").write_bytes(BLOCK)
    with loop_mounted(ext4_image, open_path / "volume", "loop,ro") as volume, _mounted(mount_on(volume)) as path:
        assert (path / "file").read_bytes() == BLOCK
        with fails(errno.EROFS):
            (path / "file").open("r+b")
        with fails(errno.EROFS):
            (path / "new").touch()


def test_the_disk_is_gone(mount_on: MountOn, ext4_image: Path, open_path: Path) -> None:
    """A filesystem that shuts itself down as if power failed: EIO for what needs it, and what was synced is there."""
    with loop_mounted(ext4_image, open_path / "volume") as volume, _mounted(mount_on(volume)) as path:
        for i in range(20):
            synced(path / f"file{i}", f"{i}".encode() * 10_000)
        os.rename(path / "file0", path / "renamed")
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(folder)
        os.close(folder)
        fd = os.open(path / "file1", os.O_WRONLY | os.O_APPEND)
        disk = os.open(volume, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.ioctl(disk, SHUTDOWN, struct.pack("I", SHUTDOWN_NOLOGFLUSH))
        os.close(disk)
        try:
            with fails(errno.EIO):
                os.write(fd, b"lost")
                os.fsync(fd)
        finally:
            _close(fd)
        with fails(errno.EIO, errno.EROFS):
            (path / "folder").mkdir()
    # What is on the disk, elsewhere: the filesystem that is shut down lives on while any process of this machine has a
    # copy of the mount in a namespace of its own.
    disk_as_it_is = shutil.copyfile(ext4_image, open_path / "copy")
    with loop_mounted(disk_as_it_is, open_path / "volume") as volume:
        assert (volume / "renamed").read_bytes() == b"0" * 10_000
        assert not (volume / "file0").exists()
        for i in range(1, 20):
            assert (volume / f"file{i}").read_bytes() == f"{i}".encode() * 10_000


def test_write_fails(mount_on: MountOn, failing: Failing, cache: str) -> None:
    """EIO from the disk at a write: told by write, or by fsync where data were kept; what was synced stays."""
    with _mounted(mount_on(failing.path)) as path:
        synced(path / "file", BLOCK)
        fd = os.open(path / "file", os.O_RDWR)
        failing.fail("write", errno.EIO)
        if cache == "exclusive":
            assert os.pwrite(fd, b"lost" * 1024, 0) == 4096
            with fails(errno.EIO):
                os.fsync(fd)
        else:
            with fails(errno.EIO):
                os.pwrite(fd, b"lost" * 1024, 0)
        failing.heal()
        _close(fd)
        assert (failing.path / "file").read_bytes() == BLOCK
        synced(path / "file", BLOCK[::-1])
        assert (failing.path / "file").read_bytes() == BLOCK[::-1]


def test_close_tells_what_write_could_not(mount_on: MountOn, failing: Failing, cache: str) -> None:
    """EIO that the disk tells at close, or that is met when close sends what was kept, is close's."""
    with _mounted(mount_on(failing.path)) as path:
        synced(path / "file", BLOCK)
        failing.fail("write" if cache == "exclusive" else "flush", errno.EIO)
        fd = os.open(path / "file", os.O_WRONLY)
        if cache == "exclusive":
            assert os.pwrite(fd, b"lost" * 1024, 0) == 4096
        with fails(errno.EIO):
            os.close(fd)
        failing.heal()
        assert (failing.path / "file").read_bytes() == BLOCK


def test_fsync_fails(mount_on: MountOn, failing: Failing) -> None:
    """EIO of the host's fsync is the guest's, each time, until the disk works again."""
    with _mounted(mount_on(failing.path)) as path:
        synced(path / "file", BLOCK)
        fd = os.open(path / "file", os.O_WRONLY)
        try:
            for call in (os.fsync, os.fdatasync):
                assert os.pwrite(fd, b"new", 0) == 3
                failing.fail("fsync", errno.EIO)
                with fails(errno.EIO):
                    call(fd)
                failing.heal()
                call(fd)
        finally:
            os.close(fd)
        assert (failing.path / "file").read_bytes() == b"new" + BLOCK[3:]


def test_each_call_gets_its_errno(mount_on: MountOn, failing: Failing) -> None:
    """What the disk answers arrives at the call that asked it, and nothing stays broken when it works again."""
    numbers = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)
    unlisted = {number: f"unlisted {number}" for number in numbers}  # one for each, since a listing may be kept
    for name in unlisted.values():
        (failing.path / name).mkdir()
    with _mounted(mount_on(failing.path)) as path:
        synced(path / "file", BLOCK)
        calls: dict[str, Callable[[], object]] = {
            "lookup": lambda: os.stat(path / "file"),
            "open": lambda: os.close(os.open(path / "file", os.O_RDONLY)),
            "read": lambda: (path / "file").read_bytes(),
            "setattr": lambda: os.truncate(path / "file", len(BLOCK)),
            "create": lambda: (path / "new").touch(),
            "mkdir": lambda: (path / "folder").mkdir(),
            "unlink": lambda: (path / "file").unlink(),
            "readdir": lambda: os.listdir(path / unlisted[number]),
        }
        for number in numbers:
            for operation, call in calls.items():
                mounttable.drop_dentries(path)
                failing.fail(operation, number)
                with fails(number):
                    call()
                failing.heal()
            assert (path / "file").read_bytes() == BLOCK
            assert sorted(os.listdir(path)) == ["file", *sorted(unlisted.values())]
        for operation in ("create", "mkdir", "unlink"):
            calls[operation]()
        assert (
            sorted(os.listdir(path))
            == sorted(os.listdir(failing.path))
            == ["folder", "new", *sorted(unlisted.values())]
        )
