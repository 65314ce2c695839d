"""FALLOCATE, COPY_FILE_RANGE and LSEEK."""

import errno
import os
import random
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fusepipe.wire import Op
from tests.server.volume import ROOT, Volume, fails, needs_root

KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE = 1, 2, 8, 16, 32
PUNCH = PUNCH_HOLE | KEEP_SIZE
COPIED_AT_MOST = 64 << 20

BLOCK = 1 << 16
"""No filesystem has larger blocks, so data and holes of this size show on each."""


@pytest.fixture
def sparse(volume: Volume) -> int:
    """The handle of a file with holes at its beginning, in its middle and at its end."""
    _, handle = volume.create(b"sparse")
    volume.write(handle, b"a" * BLOCK, BLOCK)
    volume.write(handle, b"b" * BLOCK, 3 * BLOCK)
    os.truncate(volume.path / "sparse", 5 * BLOCK)
    return handle


def test_data_and_holes(volume: Volume, sparse: int) -> None:
    def seek(offset: int, whence: int) -> int:
        return int(volume(Op.LSEEK, sparse, offset, whence).offset)

    assert [seek(n * BLOCK, os.SEEK_DATA) // BLOCK for n in (0, 1, 2, 3)] == [1, 1, 3, 3]
    assert [seek(n * BLOCK, os.SEEK_HOLE) // BLOCK for n in (0, 1, 2, 3, 4)] == [0, 2, 2, 4, 4]
    assert seek(BLOCK + 5, os.SEEK_DATA) == BLOCK + 5
    for offset, whence in ((4 * BLOCK, os.SEEK_DATA), (5 * BLOCK, os.SEEK_HOLE), (1 << 63, os.SEEK_HOLE)):
        with fails(errno.ENXIO):
            seek(offset, whence)


def test_other_ways_to_seek_are_refused(volume: Volume, sparse: int) -> None:
    for whence in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END, 5, 0xFFFFFFFF):
        with fails(errno.EINVAL):
            volume(Op.LSEEK, sparse, 0, whence)
    with fails(errno.EBADF):
        volume(Op.LSEEK, 99, 0, os.SEEK_DATA)
    with fails(errno.EBADF):
        volume(Op.LSEEK, volume(Op.OPENDIR, ROOT, 0).handle, 0, os.SEEK_DATA)


def test_seeking_moves_nothing(volume: Volume, sparse: int) -> None:
    volume(Op.LSEEK, sparse, 0, os.SEEK_DATA)
    assert volume.read(sparse, 1, BLOCK) == b"a"
    assert volume.write(sparse, b"c", 0) == 1
    assert volume.read(sparse, 2, 0) == b"c\0"


# ---- allocating -----------------------------------------------------------------------------------------------------


def allocate(volume: Volume, handle: int, mode: int, offset: int, length: int, *, kill: bool = False) -> None:
    volume(Op.FALLOCATE, handle, mode, offset, length, kill)


def test_allocating(volume: Volume) -> None:
    _, handle = volume.create(b"f")
    allocate(volume, handle, 0, 0, 3 * BLOCK)
    found = os.stat(volume.path / "f")
    assert (found.st_size, found.st_blocks * 512) == (3 * BLOCK, 3 * BLOCK)
    allocate(volume, handle, KEEP_SIZE, 3 * BLOCK, BLOCK)
    found = os.stat(volume.path / "f")
    assert (found.st_size, found.st_blocks * 512) == (3 * BLOCK, 4 * BLOCK)
    volume.write(handle, b"x" * 3 * BLOCK)
    allocate(volume, handle, PUNCH, BLOCK, BLOCK)
    assert volume.read(handle, 3 * BLOCK) == b"x" * BLOCK + bytes(BLOCK) + b"x" * BLOCK
    assert os.stat(volume.path / "f").st_blocks * 512 == 3 * BLOCK


def test_errors_of_allocating(volume: Volume) -> None:
    entry, handle = volume.create(b"f")
    for mode, offset, length, number in (
        (0, 0, 0, errno.EINVAL),
        (0, 1 << 63, 1, errno.EINVAL),
        (0, 0, 1 << 63, errno.EINVAL),
        (0, (1 << 63) - 1, 1, errno.EFBIG),
        (PUNCH_HOLE, 0, 1, errno.EOPNOTSUPP),
        (0x4000, 0, 1, errno.EOPNOTSUPP),
        (0xFFFFFFFF, 0, 1, errno.EOPNOTSUPP),
    ):
        with fails(number):
            allocate(volume, handle, mode, offset, length)
    for wrong in (99, volume.open(entry.node, os.O_RDONLY), volume(Op.OPENDIR, ROOT, 0).handle):
        with fails(errno.EBADF):
            allocate(volume, wrong, 0, 0, 1)


def test_what_a_filesystem_does_not_have(memory: Path, serve: Callable[..., Volume]) -> None:
    volume = serve(memory)
    _, handle = volume.create(b"f")
    for mode in (ZERO_RANGE, COLLAPSE_RANGE, INSERT_RANGE):
        with fails(errno.EOPNOTSUPP):
            allocate(volume, handle, mode, 0, 4096)


@needs_root
def test_a_full_filesystem(tmp_path: Path, mounted: Callable[[str, Path], None], serve: Callable[..., Volume]) -> None:
    mounted("tmpfs", tmp_path)
    subprocess.run(["mount", "-o", "remount,size=1m", tmp_path], check=True)
    volume = serve(tmp_path)
    _, handle = volume.create(b"f")
    with fails(errno.ENOSPC):
        allocate(volume, handle, 0, 0, 2 << 20)
    assert os.stat(tmp_path / "f").st_size == 0
    allocate(volume, handle, 0, 0, 1 << 19)
    volume.close()


@needs_root
@pytest.mark.parametrize("operation", ["allocate", "copy"])
def test_set_id_goes_only_where_the_client_says_so(volume: Volume, operation: str) -> None:
    _, handle = volume.create(b"f")
    volume.write(handle, b"data")
    for kill, expected in ((False, 0o6755), (True, 0o755)):
        os.chmod(volume.path / "f", 0o6755)
        if operation == "allocate":
            allocate(volume, handle, 0, 0, 10, kill=kill)
        else:
            volume(Op.COPY_FILE_RANGE, handle, 0, handle, 4, 4, kill)
        assert stat.S_IMODE(os.stat(volume.path / "f").st_mode) == expected


def test_a_read_only_volume(open_path: Path, serve: Callable[..., Volume]) -> None:
    (open_path / "f").write_bytes(b"data")
    volume = serve(open_path, read_only=True)
    handle = volume.open(volume.lookup(b"f").node, os.O_RDONLY)
    with fails(errno.EROFS):
        allocate(volume, handle, 0, 0, 10)
    with fails(errno.EROFS):
        volume(Op.COPY_FILE_RANGE, handle, 0, handle, 10, 4, False)
    assert volume(Op.LSEEK, handle, 0, os.SEEK_HOLE).offset == 4


@pytest.mark.parametrize("seed", range(6))
def test_random_ranges_against_bytes(disk: Volume, seed: int) -> None:
    """All modes that move or clear data, and copies within the file, on a filesystem that has all of them."""
    rng = random.Random(seed)
    _, handle = disk.create(b"f")
    model = bytearray()
    block = os.statvfs(disk.path).f_bsize
    for _ in range(120):
        offset, length = rng.randrange(0, 40 * block), rng.randrange(1, 10 * block)
        match rng.choice(("write", "allocate", "keep", "punch", "zero", "collapse", "insert", "copy")):
            case "write":
                data = rng.randbytes(length)
                disk.write(handle, data, offset)
                model = model.ljust(offset, b"\0")
                model[offset : offset + length] = data
            case "allocate":
                allocate(disk, handle, 0, offset, length)
                model = model.ljust(offset + length, b"\0")
            case "keep":
                allocate(disk, handle, KEEP_SIZE, offset, length)
            case "punch":
                allocate(disk, handle, PUNCH, offset, length)
                model[offset : offset + length] = bytes(len(model[offset : offset + length]))
            case "zero":
                allocate(disk, handle, ZERO_RANGE, offset, length)
                model = model.ljust(offset + length, b"\0")
                model[offset : offset + length] = bytes(length)
            case "collapse" | "insert" as mode:
                offset, length = offset // block * block, -(-length // block) * block
                if offset + length >= len(model) if mode == "collapse" else offset >= len(model):
                    with fails(errno.EINVAL):
                        allocate(disk, handle, COLLAPSE_RANGE if mode == "collapse" else INSERT_RANGE, offset, length)
                elif mode == "collapse":
                    allocate(disk, handle, COLLAPSE_RANGE, offset, length)
                    del model[offset : offset + length]
                else:
                    allocate(disk, handle, INSERT_RANGE, offset, length)
                    model[offset:offset] = bytes(length)
            case "copy":
                to = offset + length + rng.randrange(block)
                length = min(length, max(0, len(model) - offset))
                while length:
                    done = disk(Op.COPY_FILE_RANGE, handle, offset, handle, to, length, False).length
                    assert 0 < done <= length
                    model = model.ljust(to, b"\0")
                    model[to : to + done] = model[offset : offset + done]
                    offset, to, length = offset + done, to + done, length - done
        assert disk.read(handle, 1 << 20) == model
    assert (disk.path / "f").read_bytes() == model


# ---- copying --------------------------------------------------------------------------------------------------------


def test_copying(volume: Volume) -> None:
    _, source = volume.create(b"source")
    _, target = volume.create(b"target")
    volume.write(source, bytes(range(200)))

    def copy(offset: int, to: int, length: int) -> int:
        return int(volume(Op.COPY_FILE_RANGE, source, offset, target, to, length, False).length)

    assert copy(10, 3, 20) == 20
    assert volume.read(target) == bytes(3) + bytes(range(10, 30))
    assert copy(190, 0, 1000) == 10
    assert copy(200, 0, 1000) == copy(1 << 40, 0, 1) == copy(0, 0, 0) == 0
    with fails(errno.EINVAL):
        copy(1 << 63, 0, 1)
    with fails(errno.EINVAL):
        copy(0, 1 << 63, 1)


def test_one_call_copies_a_limited_number_of_bytes(disk: Volume) -> None:
    _, source = disk.create(b"source")
    _, target = disk.create(b"target")
    os.truncate(disk.path / "source", 3 * COPIED_AT_MOST)
    copied = disk(Op.COPY_FILE_RANGE, source, 0, target, 0, (1 << 64) - 1, False).length
    assert 0 < copied <= COPIED_AT_MOST
    assert os.stat(disk.path / "target").st_size == copied


def test_errors_of_copying(volume: Volume) -> None:
    entry, handle = volume.create(b"f")
    volume.write(handle, b"0123456789")
    with fails(errno.EINVAL):  # overlapping
        volume(Op.COPY_FILE_RANGE, handle, 0, handle, 5, 10, False)
    reads = volume.open(entry.node, os.O_RDONLY)
    appends = volume.open(entry.node, os.O_RDWR | os.O_APPEND)
    directory = volume(Op.OPENDIR, ROOT, 0).handle
    for source, target in ((handle, reads), (handle, appends), (99, handle), (handle, 99), (directory, handle)):
        with fails(errno.EBADF):
            volume(Op.COPY_FILE_RANGE, source, 0, target, 20, 4, False)
    assert volume.count("handles") == 4
