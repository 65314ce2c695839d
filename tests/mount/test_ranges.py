"""Ranges: allocated, punched and zeroed on the host, copied there without data on the pipe, shared where it can."""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount import mounttable
from tests.mount.conftest import MountFactory, Place, loop_filesystem
from tests.mount.expect import fails
from tests.mount.harness import Mount

MIB = 1 << 20
KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE = 1, 2, 8, 16, 32
FICLONE = 0x40049409
LIBC_FALLOCATE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open(sys.argv[1], os.O_RDWR)
if libc.fallocate(fd, int(sys.argv[2]), ctypes.c_long(int(sys.argv[3])), ctypes.c_long(int(sys.argv[4]))):
    sys.exit(ctypes.get_errno())
"""


def same_attributes(place: Place, name: str) -> os.stat_result:
    """What the guest shows of a file it has just changed is what the host shows."""
    guest, host = os.stat(place.mnt / name), os.stat(place.src / name)
    fields = ("st_size", "st_blocks", "st_mtime_ns", "st_ctime_ns", "st_mode")
    assert [getattr(guest, field) for field in fields] == [getattr(host, field) for field in fields]
    return guest


def fallocate(path: Path, mode: int, offset: int, length: int) -> None:
    """fallocate(1), which opens the file anew, so that no cached page of ours plays a part."""
    options = {0: [], KEEP_SIZE: ["-n"], PUNCH_HOLE | KEEP_SIZE: ["-p"], ZERO_RANGE: ["-z"]}[mode]
    subprocess.run(["fallocate", *options, "-o", str(offset), "-l", str(length), path], check=True, timeout=60)


def test_allocation_is_real_and_seen_at_once(place: Place) -> None:
    with (place.mnt / "file").open("w+b", buffering=0) as file:
        os.stat(place.mnt / "file")  # so that the kernel has attributes to forget
        os.posix_fallocate(file.fileno(), 0, 3 * MIB)
        found = same_attributes(place, "file")
        assert (found.st_size, found.st_blocks * 512 >= 3 * MIB) == (3 * MIB, True)
        before = found.st_ctime_ns
        fallocate(place.mnt / "file", KEEP_SIZE, 3 * MIB, MIB)
        found = same_attributes(place, "file")
        assert (found.st_size, found.st_blocks * 512 >= 4 * MIB) == (3 * MIB, True)
        assert found.st_ctime_ns > before


def test_punched_and_zeroed_ranges_in_every_view(place: Place) -> None:
    """The file, an open descriptor, a mapping and the host all see the hole."""
    path = place.mnt / "file"
    path.write_bytes(b"x" * 4 * MIB)
    with path.open("r+b", buffering=0) as file, mmap.mmap(file.fileno(), 4 * MIB) as mapped:
        mapped[MIB] = mapped[2 * MIB] = ord("m")
        os.stat(path)
        fallocate(path, PUNCH_HOLE | KEEP_SIZE, MIB, MIB)
        assert same_attributes(place, "file").st_blocks * 512 < 4 * MIB
        assert mapped[MIB : MIB + 3] == bytes(3)
        fallocate(path, ZERO_RANGE, 3 * MIB - 5, 10)
        expected = b"x" * MIB + bytes(MIB) + b"m" + b"x" * (MIB - 6) + bytes(10) + b"x" * (MIB - 5)
        assert mapped[:] == expected
        assert os.pread(file.fileno(), 5 * MIB, 0) == expected
    assert (place.src / "file").read_bytes() == expected


def test_what_the_fuse_kernel_does_not_let_through(place: Place) -> None:
    (place.mnt / "file").write_bytes(b"x" * MIB)
    for mode in (COLLAPSE_RANGE, INSERT_RANGE):
        tried = subprocess.run(
            ["python3", "-c", LIBC_FALLOCATE, place.mnt / "file", str(mode), "0", "65536"], timeout=60
        )
        assert tried.returncode in ((errno.EOPNOTSUPP,) if place.mount.target != "plain" else (0, errno.EOPNOTSUPP))


@pytest.mark.once
def test_what_the_host_does_not_have(tmpfs: Path, mounts: MountFactory, real: str) -> None:
    mount = mounts(source=tmpfs)
    (mount.path / "file").write_bytes(b"x" * MIB)
    assert subprocess.run(
        ["fallocate", "-z", "-l", "65536", mount.path / "file"], timeout=60, capture_output=True
    ).returncode
    fallocate(mount.path / "file", PUNCH_HOLE | KEEP_SIZE, 0, MIB)
    assert (tmpfs / "file").stat().st_blocks == 0
    with (mount.path / "file").open("r+b") as file, fails(errno.ENOSPC):
        os.posix_fallocate(file.fileno(), 0, 1 << 30)


def test_a_read_only_volume(mounts: MountFactory, real: str, scratch: Path) -> None:
    (scratch / "source0").mkdir()
    (scratch / "source0" / "file").write_bytes(b"data")
    options = ("--read-only",) if real != "serve" else ()
    mount = mounts(*options, read_only_volume=real == "serve", source=scratch / "source0")
    for flags in (os.O_RDWR, os.O_WRONLY):
        with fails(errno.EROFS):
            os.open(mount.path / "file", flags)
    with (mount.path / "file").open("rb") as file:
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 4


# ---- copies ---------------------------------------------------------------------------------------------------------


def copy(source: Path, target: Path, size: int, offset: int = 0, to: int = 0) -> None:
    with source.open("rb") as from_file, target.open("r+b" if target.exists() else "w+b") as to_file:
        while size:
            done = os.copy_file_range(from_file.fileno(), to_file.fileno(), size, offset, to)
            assert done
            size, offset, to = size - done, offset + done, to + done


def test_copies_are_seen_at_once(place: Place) -> None:
    data = os.urandom(3 * MIB)
    (place.mnt / "from").write_bytes(data)
    (place.mnt / "to").write_bytes(b"." * MIB)
    with (place.mnt / "to").open("rb") as reader:
        assert reader.read(10) == b"." * 10
        copy(place.mnt / "from", place.mnt / "to", 2 * MIB, offset=7, to=5)
        assert same_attributes(place, "to").st_size == 2 * MIB + 5
        assert os.pread(reader.fileno(), 4 * MIB, 0) == b"." * 5 + data[7 : 2 * MIB + 7]
    assert (place.src / "to").read_bytes() == b"." * 5 + data[7 : 2 * MIB + 7]


def test_dirty_pages_of_a_mapping_are_copied(place: Place) -> None:
    (place.mnt / "from").write_bytes(bytes(MIB))
    with (place.mnt / "from").open("r+b") as file, mmap.mmap(file.fileno(), MIB) as mapped:
        mapped[5000:5005] = b"dirty"
        copy(place.mnt / "from", place.mnt / "to", MIB)
    assert (place.src / "to").read_bytes()[5000:5005] == b"dirty"


def test_with_write_back(mounts: MountFactory, real: str) -> None:
    """What the guest has not sent yet is in its place before the host moves, clears or copies ranges."""
    mount = mounts("--cache", "exclusive")
    with (mount.path / "file").open("w+b", buffering=0) as file:
        file.write(b"x" * 4 * MIB)
        fallocate(mount.path / "file", PUNCH_HOLE | KEEP_SIZE, MIB, MIB)
        os.posix_fallocate(file.fileno(), 0, 5 * MIB)
        os.pwrite(file.fileno(), b"dirty", 3 * MIB)
        copy(mount.path / "file", mount.path / "copy", 5 * MIB)
        expected = b"x" * MIB + bytes(MIB) + b"x" * MIB + b"dirty" + b"x" * (MIB - 5) + bytes(MIB)
        assert os.fstat(file.fileno()).st_size == os.stat(mount.path / "copy").st_size == 5 * MIB
        assert (mount.path / "copy").read_bytes() == (mount.source / "copy").read_bytes() == expected
        nameless = os.open(mount.path, os.O_TMPFILE | os.O_WRONLY, 0o600)
        os.write(nameless, b"part of a page")
        os.link(f"/proc/self/fd/{nameless}", mount.path / "named", src_dir_fd=nameless, follow_symlinks=True)
        os.close(nameless)
    mount.unmount()
    assert (mount.source / "file").read_bytes() == expected
    assert (mount.source / "named").read_bytes() == b"part of a page"


def bytes_on_the_wire(mount: Mount, seen: int) -> int:
    """The sizes of all frames that the client has traced, but of the first `seen` lines."""
    assert mount.client is not None
    lines = [json.loads(line) for line in mount.client.errors().splitlines()[seen:]]
    return sum(line.get("bytes", 0) + line.get("payload", 0) for line in lines if line["event"] in ("request", "reply"))


@pytest.mark.parametrize("program", ["cp", "copy_file_range"])
def test_no_data_on_the_wire(mounts: MountFactory, real: str, program: str) -> None:
    mount = mounts("--trace", "wire", "--log-format", "json")
    assert mount.client is not None
    data = os.urandom(32 * MIB)
    (mount.source / "from").write_bytes(data)
    seen = len(mount.client.errors().splitlines())
    if program == "cp":
        subprocess.run(["cp", "--reflink=auto", mount.path / "from", mount.path / "to"], check=True, timeout=60)
    else:
        copy(mount.path / "from", mount.path / "to", len(data))
    assert bytes_on_the_wire(mount, seen) < 64 * 1024
    assert (mount.source / "to").read_bytes() == data
    seen = len(mount.client.errors().splitlines())
    assert (mount.path / "to").read_bytes() == data
    assert bytes_on_the_wire(mount, seen) > len(data)  # the measure works


def test_between_two_filesystems_of_one_volume(mounts: MountFactory, real: str, scratch: Path) -> None:
    """Where the host cannot copy, the guest's kernel reads and writes."""
    source = scratch / "source0"
    (source / "other").mkdir(parents=True)
    mounttable.mount("tmpfs", source / "other", "tmpfs", 0, "size=64m")
    try:
        mount = mounts(source=source)
        data = os.urandom(MIB)
        (mount.path / "from").write_bytes(data)
        copy(mount.path / "from", mount.path / "other" / "to", MIB)
        assert (source / "other" / "to").read_bytes() == data
        mount.unmount()
    finally:
        mounttable.umount(source / "other", mounttable.MNT_DETACH)


@pytest.fixture(params=[("btrfs", 256), ("xfs", 320)], ids=["btrfs", "xfs"])
def sharing(request: pytest.FixtureRequest, scratch: Path) -> Iterator[Path]:
    """An empty filesystem that can share blocks between files."""
    kind, size = request.param
    path = loop_filesystem(scratch, kind, size)
    yield path
    mounttable.umount(path)


def shared_extents(path: Path) -> tuple[int, int]:
    """How many extents a file has, and how many of them it shares with others (filefrag(8))."""
    os.sync()
    said = subprocess.run(["filefrag", "-v", path], check=True, capture_output=True, text=True, timeout=60).stdout
    lines = [line for line in said.splitlines() if line.lstrip()[:1].isdigit()]
    return len(lines), sum("shared" in line for line in lines)


@pytest.mark.once
def test_copies_share_blocks_where_the_host_can(sharing: Path, mounts: MountFactory, real: str) -> None:
    """The kernel passes no FICLONE to FUSE, so cp --reflink=always fails; but cp asks for copy_file_range, too."""
    mount = mounts(source=sharing)
    data = os.urandom(80 * MIB)  # in more than one call
    (mount.path / "from").write_bytes(data)
    os.sync()
    before = os.statvfs(sharing)
    subprocess.run(["cp", "--reflink=auto", mount.path / "from", mount.path / "to"], check=True, timeout=60)
    extents, shared = shared_extents(sharing / "to")
    assert extents == shared > 0
    after = os.statvfs(sharing)
    assert (before.f_bfree - after.f_bfree) * after.f_frsize < 8 * MIB
    assert (sharing / "to").read_bytes() == data
    with (mount.path / "from").open("rb") as file, (mount.path / "clone").open("wb") as clone, fails(errno.EOPNOTSUPP):
        fcntl.ioctl(clone, FICLONE, file.fileno())
