"""copy_file_range(2)."""

import os
from errno import EBADF, EINVAL, EISDIR

from ..harness import checks
from ..harness.caller import Caller
from ..harness.cases import cases
from ..harness.scene import Make
from ..harness.times import moves, unchanged
from ..harness.users import OWNER

DATA = bytes(at % 249 for at in range(200_000))


@cases("copy_file_range/range", source=[0, 1, 4096, 100_001], target=[0, 3, 4096, 50_000], length=[1, 4096, 99_999])
def test_ranges(source: int, target: int, length: int, owner: Caller, root: Caller, make: Make) -> None:
    make("regular", "from", OWNER)
    make("regular", "to", OWNER)
    owner.setup.write_file("from", DATA)
    owner.setup.write_file("to", b"." * 10_000)
    into = owner.open("to", os.O_WRONLY)
    outof = owner.open("from", os.O_RDONLY)
    done = 0
    while done < length:
        size = owner.copy_file_range(outof, source + done, into, target + done, length - done)
        assert size > 0, "nothing was copied"
        done += size
    checks.equal(done, length, "copied")
    expected = bytearray(b"." * 10_000).ljust(target + length, b"\0")
    expected[target : target + length] = DATA[source : source + length]
    checks.check(root.contents("to") == bytes(expected), "contents of the target")
    root.expect("from", size=len(DATA))


@cases("copy_file_range/end")
def test_end_of_the_source(owner: Caller, root: Caller, make: Make) -> None:
    make("regular", "from", OWNER)
    make("regular", "to", OWNER)
    owner.setup.write_file("from", b"short")
    outof, into = owner.open("from", os.O_RDONLY), owner.open("to", os.O_WRONLY)
    with moves(root, {"to": "mtime ctime"}):
        checks.equal(owner.copy_file_range(outof, 2, into, 0, 1000), 3, "copied")
    checks.equal(owner.copy_file_range(outof, 5, into, 0, 1000), 0, "copied at the end")
    checks.equal(owner.copy_file_range(outof, 500, into, 0, 1000), 0, "copied behind the end")
    checks.equal(owner.copy_file_range(outof, 0, into, 0, 0), 0, "copied of nothing")
    checks.equal(root.contents("to"), b"ort", "contents")


@cases("copy_file_range/one-file")
def test_within_one_file(owner: Caller, root: Caller, make: Make) -> None:
    make("regular", "file", OWNER)
    owner.setup.write_file("file", b"0123456789")
    descriptor = owner.open("file", os.O_RDWR)
    checks.equal(owner.copy_file_range(descriptor, 0, descriptor, 10, 10), 10, "copied")
    checks.equal(root.contents("file"), b"01234567890123456789", "contents")
    with unchanged(root, "file"):
        owner.fails(EINVAL).copy_file_range(descriptor, 0, descriptor, 5, 10)


@cases("copy_file_range/errors")
def test_errors(owner: Caller, root: Caller, make: Make) -> None:
    make("regular", "from", OWNER)
    make("regular", "to", OWNER)
    make("dir", "dir", OWNER)
    make("fifo", "fifo", OWNER)
    owner.setup.write_file("from", b"data")
    outof, into = owner.open("from", os.O_RDONLY), owner.open("to", os.O_WRONLY)
    with unchanged(root, "to", "dir"):
        owner.fails(EBADF).copy_file_range(into, 0, into, 100, 4)
        owner.fails(EBADF).copy_file_range(outof, 0, outof, 100, 4)
        owner.fails(EBADF).copy_file_range(outof, 0, owner.open("to", os.O_WRONLY | os.O_APPEND), 0, 4)
        owner.fails(EISDIR).copy_file_range(owner.open("dir", os.O_RDONLY), 0, into, 0, 4)
        owner.fails(EINVAL).copy_file_range(owner.open("fifo", os.O_RDWR), 0, into, 0, 4)
