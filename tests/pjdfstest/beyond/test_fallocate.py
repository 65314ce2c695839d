"""fallocate(2) with its modes."""

import os
from errno import EBADF, EINVAL, EISDIR, ENODEV, EOPNOTSUPP, ESPIPE

from ..harness import checks
from ..harness.caller import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE, Caller
from ..harness.cases import cases
from ..harness.scene import Make
from ..harness.times import moves, unchanged
from ..harness.users import OWNER

PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
ZERO = FALLOC_FL_ZERO_RANGE
SIZE = 100_000
DATA = bytes(1 + at % 250 for at in range(SIZE))


def lacks(behind: Caller, user: Caller, mode: int) -> bool:
    """Whether the filesystem behind does not know this mode; then the target must say so as well."""
    descriptor = behind.setup.open("probe", os.O_CREAT | os.O_RDWR, 0o666)
    number, _ = behind.attempt("fallocate", descriptor, mode, 0, 4096)
    if number == EOPNOTSUPP:
        user.fails(EOPNOTSUPP).fallocate(user.setup.open("probe", os.O_RDWR), mode, 0, 4096)
    behind.setup.close(descriptor)
    behind.setup.unlink("probe")
    return number == EOPNOTSUPP


@cases(
    "fallocate/allocate", keep=[0, FALLOC_FL_KEEP_SIZE], start=[0, 50_000, SIZE, 150_000], length=[1, 10_000, 100_000]
)
def test_allocate(keep: int, start: int, length: int, behind: Caller, root: Caller, owner: Caller, make: Make) -> None:
    if lacks(behind, owner, keep):
        return
    make("regular", "file", OWNER)
    owner.setup.write_file("file", DATA)
    descriptor = owner.open("file", os.O_RDWR)
    owner.fallocate(descriptor, keep, start, length)
    size = SIZE if keep else max(SIZE, start + length)
    after = root.expect("file", size=size)
    checks.check(root.contents("file") == DATA.ljust(size, b"\0"), "contents")
    checks.check(after.blocks * 512 >= max(SIZE, start + length) - start, "nothing was allocated")


@cases("fallocate/punch", start=[0, 1, 4096, 50_000, 90_000, SIZE], length=[1, 4096, 20_000, 1 << 20])
def test_punch_hole(start: int, length: int, behind: Caller, root: Caller, owner: Caller, make: Make) -> None:
    if lacks(behind, owner, PUNCH):
        return
    make("regular", "file", OWNER)
    owner.setup.write_file("file", DATA)
    descriptor = owner.open("file", os.O_RDWR)
    checks.equal(owner.pread(descriptor, 10, start), DATA[start : start + 10], "before")
    if start < SIZE:
        with moves(root, {"file": "ctime"}):
            owner.fallocate(descriptor, PUNCH, start, length)
    else:
        owner.fallocate(descriptor, PUNCH, start, length)
    root.expect("file", size=SIZE)
    expected = DATA[:start] + bytes(max(0, min(length, SIZE - start))) + DATA[start + length :]
    checks.check(root.contents("file") == expected, "contents")
    checks.check(owner.pread(descriptor, SIZE, 0) == expected, "contents by the descriptor")


@cases("fallocate/punch-frees")
def test_punching_frees_blocks(behind: Caller, root: Caller, owner: Caller, make: Make) -> None:
    if lacks(behind, owner, PUNCH):
        return
    make("regular", "file", OWNER)
    owner.setup.write_file("file", b"x" * (1 << 20))
    descriptor = owner.open("file", os.O_RDWR)
    owner.fsync(descriptor)
    before = root.lstat("file").blocks
    owner.fallocate(descriptor, PUNCH, 0, 1 << 20)
    owner.fsync(descriptor)
    checks.check(root.lstat("file").blocks < before, f"{before} blocks before, {root.lstat('file').blocks} after")


@cases("fallocate/zero", keep=[0, FALLOC_FL_KEEP_SIZE], start=[0, 1, 50_000, 90_000], length=[1, 4096, 50_000])
def test_zero_range(
    keep: int, start: int, length: int, behind: Caller, root: Caller, owner: Caller, make: Make
) -> None:
    if lacks(behind, owner, ZERO):
        return
    make("regular", "file", OWNER)
    owner.setup.write_file("file", DATA)
    descriptor = owner.open("file", os.O_RDWR)
    owner.fallocate(descriptor, ZERO | keep, start, length)
    size = SIZE if keep else max(SIZE, start + length)
    root.expect("file", size=size)
    expected = (DATA[:start] + bytes(length) + DATA[start + length :])[:size].ljust(size, b"\0")
    checks.check(root.contents("file") == expected, "contents")


@cases("fallocate/mapped")
def test_a_mapping_sees_the_hole(behind: Caller, owner: Caller, make: Make) -> None:
    if lacks(behind, owner, PUNCH):
        return
    make("regular", "file", OWNER)
    owner.setup.write_file("file", DATA)
    descriptor = owner.open("file", os.O_RDWR)
    address = owner.map(descriptor, SIZE, 3, 1)
    owner.poke(address + 8192, b"dirty")
    owner.fallocate(descriptor, PUNCH, 4096, 8192)
    checks.equal(owner.peek(address + 4090, 8210), DATA[4090:4096] + bytes(8192) + DATA[12288:12300], "the mapping")


@cases("fallocate/unlinked")
def test_without_a_name(behind: Caller, owner: Caller, make: Make) -> None:
    if lacks(behind, owner, 0):
        return
    make("regular", "file", OWNER)
    descriptor = owner.open("file", os.O_RDWR)
    make("dir", "dir")
    owner.chmod("file", 0)
    owner.fallocate(descriptor, 0, 0, 5000)
    owner.expect(descriptor, size=5000, mode=0)


@cases("fallocate/errors")
def test_errors(behind: Caller, root: Caller, owner: Caller, make: Make) -> None:
    if lacks(behind, owner, 0):
        return
    make("regular", "file", OWNER)
    make("dir", "dir", OWNER)
    make("fifo", "fifo", OWNER)
    descriptor = owner.open("file", os.O_RDWR)
    with unchanged(root, "file", "dir"):
        owner.fails(EINVAL).fallocate(descriptor, 0, -1, 10)
        owner.fails(EINVAL).fallocate(descriptor, 0, 0, 0)
        owner.fails(EINVAL).fallocate(descriptor, 0, 0, -5)
        owner.fails(EOPNOTSUPP, EINVAL).fallocate(descriptor, FALLOC_FL_PUNCH_HOLE, 0, 4096)
        owner.fails(EOPNOTSUPP, EINVAL).fallocate(descriptor, 0x4000, 0, 4096)
        owner.fails(EBADF).fallocate(owner.open("file", os.O_RDONLY), 0, 0, 10)
        owner.fails(EISDIR, EBADF, ENODEV).fallocate(owner.open("dir", os.O_RDONLY), 0, 0, 10)
        owner.fails(ESPIPE, ENODEV).fallocate(owner.open("fifo", os.O_RDWR), 0, 0, 10)
    owner.fallocate(descriptor, 0, 0, 10)
    root.expect("file", size=10)
