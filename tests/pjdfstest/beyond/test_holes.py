"""Sparse files: SEEK_DATA and SEEK_HOLE (lseek(2))."""

import os
from errno import EINVAL, ENXIO

from ..harness import checks
from ..harness.caller import Caller
from ..harness.cases import cases
from ..harness.scene import Make
from ..harness.users import OWNER

KIB = 1024
BLOCK = 64 * KIB


def sparse(owner: Caller, make: Make, flags: int = os.O_RDWR) -> int:
    """A file of 16 blocks with data in blocks 2 and 8 only."""
    make("regular", "file", OWNER)
    descriptor = owner.open("file", flags)
    owner.setup.ftruncate(descriptor, 16 * BLOCK)
    owner.setup.pwrite(descriptor, b"a" * BLOCK, 2 * BLOCK)
    owner.setup.pwrite(descriptor, b"b" * BLOCK, 8 * BLOCK)
    owner.setup.fsync(descriptor)
    return descriptor


@cases("lseek/data", start=[0, BLOCK, 2 * BLOCK - 1, 3 * BLOCK, 8 * BLOCK - 1])
def test_next_data(start: int, owner: Caller, make: Make) -> None:
    descriptor = sparse(owner, make)
    expected = 2 * BLOCK if start < 2 * BLOCK else 8 * BLOCK
    checks.equal(owner.lseek(descriptor, start, os.SEEK_DATA), expected, "next data")
    checks.equal(owner.lseek(descriptor, 0, os.SEEK_CUR), expected, "the offset")
    checks.equal(owner.read(descriptor, 1), b"a" if expected == 2 * BLOCK else b"b", "what stands there")


@cases("lseek/hole", start=[0, 5, 2 * BLOCK, 2 * BLOCK + 4096, 3 * BLOCK + 1, 8 * BLOCK])
def test_next_hole(start: int, owner: Caller, make: Make) -> None:
    descriptor = sparse(owner, make)
    expected = {2: 3 * BLOCK, 8: 9 * BLOCK}.get(start // BLOCK, start)
    checks.equal(owner.lseek(descriptor, start, os.SEEK_HOLE), expected, "next hole")


@cases("lseek/no-more-data")
def test_no_more_data(owner: Caller, make: Make) -> None:
    descriptor = sparse(owner, make)
    owner.fails(ENXIO).lseek(descriptor, 9 * BLOCK, os.SEEK_DATA)
    owner.fails(ENXIO).lseek(descriptor, 15 * BLOCK, os.SEEK_DATA)


@cases("lseek/behind-the-end")
def test_behind_the_end(owner: Caller, make: Make) -> None:
    descriptor = sparse(owner, make)
    for whence in (os.SEEK_DATA, os.SEEK_HOLE):
        owner.fails(ENXIO).lseek(descriptor, 16 * BLOCK, whence)
        owner.fails(ENXIO).lseek(descriptor, 16 * BLOCK + 1, whence)
        owner.fails(ENXIO).lseek(descriptor, -1, whence)


@cases("lseek/full-file")
def test_file_without_holes(owner: Caller, make: Make) -> None:
    make("regular", "file", OWNER)
    owner.setup.write_file("file", b"x" * 100_000)
    descriptor = owner.open("file", os.O_RDONLY)
    checks.equal(owner.lseek(descriptor, 0, os.SEEK_DATA), 0, "data")
    checks.equal(owner.lseek(descriptor, 0, os.SEEK_HOLE), 100_000, "the hole at the end")
    checks.equal(owner.lseek(descriptor, 99_999, os.SEEK_DATA), 99_999, "data")


@cases("lseek/plain")
def test_plain_seeks(owner: Caller, make: Make) -> None:
    descriptor = sparse(owner, make)
    checks.equal(owner.lseek(descriptor, 100, os.SEEK_SET), 100, "offset")
    checks.equal(owner.lseek(descriptor, 1 << 40, os.SEEK_SET), 1 << 40, "offset behind the end")
    checks.equal(owner.read(descriptor, 10), b"", "read there")
    checks.equal(owner.lseek(descriptor, -10, os.SEEK_END), 16 * BLOCK - 10, "offset from the end")
    owner.fails(EINVAL).lseek(descriptor, -1, os.SEEK_SET)
    owner.fails(EINVAL).lseek(descriptor, -(17 * BLOCK), os.SEEK_END)
    owner.fails(EINVAL).lseek(descriptor, 0, 99)


@cases("sparse/blocks")
def test_holes_take_no_space(owner: Caller, root: Caller, make: Make) -> None:
    descriptor = sparse(owner, make)
    checks.check(root.lstat("file").blocks * 512 < 8 * BLOCK, f"{root.lstat('file').blocks} blocks for two of 64 KiB")
    checks.equal(owner.pread(descriptor, BLOCK, 3 * BLOCK), bytes(BLOCK), "a hole")
