"""O_DIRECT, alone and together with cached reads and writes."""

import os
from errno import EINVAL

import pytest

from ..harness import checks
from ..harness.caller import Caller
from ..harness.cases import cases
from ..harness.scene import Make
from ..harness.times import moves
from ..harness.users import OWNER

BLOCK = 4096


@pytest.fixture
def file(owner: Caller, make: Make) -> str:
    make("regular", "file", OWNER)
    if owner.attempt("open", "file", os.O_RDWR | os.O_DIRECT, 0)[0] == EINVAL:
        pytest.skip("no O_DIRECT on this filesystem")
    return "file"


def pattern(length: int, seed: int) -> bytes:
    return bytes((seed + at // 512) % 251 for at in range(length))


@cases("direct/round-trip", blocks=[1, 3, 64, 300])
def test_round_trip(blocks: int, file: str, root: Caller, owner: Caller) -> None:
    data = pattern(blocks * BLOCK, blocks)
    descriptor = owner.open(file, os.O_RDWR | os.O_DIRECT)
    with moves(root, {file: "mtime ctime"}):
        checks.equal(owner.pwrite_direct(descriptor, data, 0), len(data), "written")
    root.expect(file, size=len(data))
    checks.check(owner.pread_direct(descriptor, len(data), 0) == data, "direct read gives something else")
    checks.check(owner.contents(file) == data, "cached read gives something else")
    checks.equal(owner.pread_direct(descriptor, BLOCK, len(data)), b"", "read at the end")


@cases("direct/beside-cached")
def test_beside_cached(file: str, owner: Caller) -> None:
    """Each sees at once what the other wrote."""
    direct = owner.open(file, os.O_RDWR | os.O_DIRECT)
    cached = owner.open(file, os.O_RDWR)
    for turn in range(8):
        data = pattern(4 * BLOCK, turn * 40)
        if turn % 2:
            owner.pwrite(cached, data, 0)
            checks.check(owner.pread_direct(direct, len(data), 0) == data, f"direct read is stale in turn {turn}")
        else:
            owner.pwrite_direct(direct, data, 0)
            checks.check(owner.pread(cached, len(data), 0) == data, f"cached read is stale in turn {turn}")
    owner.pwrite_direct(direct, pattern(BLOCK, 7), 100 * BLOCK)
    checks.equal(owner.pread(cached, 100, 50 * BLOCK), bytes(100), "the hole")
    checks.check(owner.pread(cached, BLOCK, 100 * BLOCK) == pattern(BLOCK, 7), "the far block")


@cases("direct/partial-read")
def test_read_over_the_end(file: str, owner: Caller) -> None:
    owner.write_file(file, pattern(BLOCK + 100, 1))
    descriptor = owner.open(file, os.O_RDONLY | os.O_DIRECT)
    checks.equal(owner.pread_direct(descriptor, 2 * BLOCK, 0), pattern(BLOCK + 100, 1), "what is there")


@cases("direct/append")
def test_append(file: str, owner: Caller) -> None:
    descriptor = owner.open(file, os.O_WRONLY | os.O_DIRECT | os.O_APPEND)
    for seed in range(4):
        owner.pwrite_direct(descriptor, pattern(BLOCK, seed), 0)
    checks.equal(owner.contents(file), b"".join(pattern(BLOCK, seed) for seed in range(4)), "contents")


@cases("direct/truncated")
def test_after_truncation(file: str, owner: Caller) -> None:
    descriptor = owner.open(file, os.O_RDWR | os.O_DIRECT)
    owner.pwrite_direct(descriptor, b"x" * 4 * BLOCK, 0)
    owner.truncate(file, BLOCK // 2)
    owner.truncate(file, 4 * BLOCK)
    expected = b"x" * (BLOCK // 2) + bytes(4 * BLOCK - BLOCK // 2)
    checks.check(owner.pread_direct(descriptor, 4 * BLOCK, 0) == expected, "cut bytes come back")
