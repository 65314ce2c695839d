"""mmap(2): what is written one way is read the other way."""

import os
from errno import EACCES

from ..harness import checks
from ..harness.caller import Caller
from ..harness.cases import cases
from ..harness.scene import Make, Scene
from ..harness.times import moves, pass_after
from ..harness.users import OTHER, OWNER

READ, WRITE = 1, 2
SHARED, PRIVATE = 1, 2
SIZE = 10_000


@cases("mmap/shared/map-then-read")
def test_stores_are_read(owner: Caller, other: Caller, root: Caller, make: Make) -> None:
    make("regular", "file", OWNER)
    root.setup.write_file("file", bytes(SIZE))
    descriptor = owner.open("file", os.O_RDWR)
    address = owner.map(descriptor, SIZE, READ | WRITE, SHARED)
    reader = other.open("file", os.O_RDONLY)
    for offset in (0, 4090, 8192, SIZE - 5):
        owner.poke(address + offset, b"hello")
        checks.equal(owner.pread(descriptor, 5, offset), b"hello", "read by the same process")
        checks.equal(other.pread(reader, 5, offset), b"hello", "read by another process")
    owner.msync(address, SIZE)  # a store into a page that is dirty already marks no time
    with moves(root, {"file": "mtime ctime"}):
        owner.poke(address, b"again")
        owner.msync(address, SIZE)
    owner.unmap(address, SIZE)
    owner.close(descriptor)
    root.expect("file", size=SIZE)
    checks.equal(root.contents("file")[:5], b"again", "contents after unmapping")


@cases("mmap/shared/write-then-map")
def test_writes_are_seen(owner: Caller, other: Caller, root: Caller, make: Make) -> None:
    make("regular", "file", OWNER, mode=0o666)
    root.setup.write_file("file", bytes(SIZE))
    descriptor = owner.open("file", os.O_RDONLY)
    address = owner.map(descriptor, SIZE, READ, SHARED)
    checks.equal(owner.peek(address, 10), bytes(10), "before")
    writer = other.open("file", os.O_WRONLY)
    for offset in (0, 4094, SIZE - 5):
        other.pwrite(writer, b"hello", offset)
        checks.equal(owner.peek(address + offset, 5), b"hello", "after a write")
    other.truncate("file", 100)
    other.truncate("file", SIZE)
    checks.equal(owner.peek(address + 4094, 5), bytes(5), "after cutting and growing")


@cases("mmap/shared/two-mappings")
def test_two_mappings(owner: Caller, other: Caller, root: Caller, make: Make) -> None:
    make("regular", "file", OWNER, mode=0o666)
    root.setup.write_file("file", bytes(SIZE))
    maps = [(user, user.map(user.open("file", os.O_RDWR), SIZE, READ | WRITE, SHARED)) for user in (owner, other)]
    for turn in range(20):
        (writer, there), (reader, here) = maps if turn % 2 else reversed(maps)
        offset = turn * 499
        writer.poke(there + offset, b"turn %d" % turn)
        checks.equal(reader.peek(here + offset, len(b"turn %d" % turn)), b"turn %d" % turn, "the other mapping")


@cases("mmap/private")
def test_private_mappings(owner: Caller, root: Caller, make: Make) -> None:
    make("regular", "file", OWNER)
    root.setup.write_file("file", b"contents" * 1000)
    descriptor = owner.open("file", os.O_RDONLY)
    address = owner.map(descriptor, 8000, READ | WRITE, PRIVATE)
    before = root.lstat("file")
    pass_after(before)
    owner.poke(address, b"MINE")
    root.same("file", before, "atime")
    checks.equal(owner.peek(address, 8), b"MINEents", "the mapping")
    checks.equal(owner.pread(descriptor, 8, 0), b"contents", "the file")
    checks.equal(root.contents("file"), b"contents" * 1000, "the file")


@cases("mmap/end-of-file")
def test_last_page(owner: Caller, root: Caller, make: Make) -> None:
    """The last page is zero behind the end of the file, and what is stored there never becomes part of it."""
    make("regular", "file", OWNER)
    root.setup.write_file("file", b"x" * 5000)
    descriptor = owner.open("file", os.O_RDWR)
    address = owner.map(descriptor, 8192, READ | WRITE, SHARED)
    checks.equal(owner.peek(address + 4990, 20), b"x" * 10 + bytes(10), "around the end")
    owner.poke(address + 4998, b"yyyy")
    owner.msync(address, 8192)
    root.expect("file", size=5000)
    owner.unmap(address, 8192)
    owner.ftruncate(descriptor, 5004)
    checks.equal(owner.pread(descriptor, 10, 4996), b"xxyy" + bytes(4), "after growing")


@cases("mmap/permissions")
def test_permissions(owner: Caller, other: Caller, make: Make) -> None:
    make("regular", "file", OWNER)
    owner.write_file("file", b"data" * 2000)
    reader = owner.open("file", os.O_RDONLY)
    owner.fails(EACCES).map(reader, 4096, READ | WRITE, SHARED)
    owner.map(reader, 4096, READ | WRITE, PRIVATE)
    owner.fails(EACCES).map(owner.open("file", os.O_WRONLY), 4096, READ, SHARED)
    address = other.map(other.open("file", os.O_RDONLY), 4096, READ, SHARED)
    owner.chmod("file", 0)
    checks.equal(other.peek(address, 4), b"data", "the mapping after chmod 0")


@cases("mmap/offset")
def test_offset(owner: Caller, make: Make) -> None:
    make("regular", "file", OWNER)
    data = bytes(at % 251 for at in range(1 << 20))
    owner.write_file("file", data)
    descriptor = owner.open("file", os.O_RDONLY)
    for offset in (0, 4096, 65536, (1 << 20) - 4096):
        address = owner.map(descriptor, 4096, READ, SHARED, offset)
        checks.check(owner.peek(address, 4096) == data[offset : offset + 4096], f"wrong page at {offset}")


@cases("mmap/sparse")
def test_sparse_file(owner: Caller, root: Caller, make: Make) -> None:
    make("regular", "file", OWNER)
    descriptor = owner.open("file", os.O_RDWR)
    owner.ftruncate(descriptor, 1 << 20)
    address = owner.map(descriptor, 1 << 20, READ | WRITE, SHARED)
    for offset in (0, 300_000, (1 << 20) - 3):
        owner.poke(address + offset, b"abc")
    owner.msync(address, 1 << 20)
    contents = root.contents("file")
    for offset in (0, 300_000, (1 << 20) - 3):
        checks.equal(contents[offset : offset + 3], b"abc", f"contents at {offset}")
    checks.equal(contents.count(0), (1 << 20) - 9, "zero bytes")


@cases("mmap/after-the-process")
def test_stores_of_a_process_that_ends(scene: Scene, root: Caller, make: Make) -> None:
    make("regular", "file", OWNER, mode=0o666)
    root.setup.write_file("file", bytes(8192))
    short = scene.another(OTHER)
    address = short.map(short.open("file", os.O_RDWR), 8192, READ | WRITE, SHARED)
    short.poke(address + 100, b"left behind")
    short.end()
    checks.equal(root.contents("file")[100:111], b"left behind", "contents")


@cases("mmap/seen-behind")
def test_stores_reach_what_is_behind(owner: Caller, root: Caller, behind: Caller, make: Make) -> None:
    make("regular", "file", OWNER)
    root.setup.write_file("file", bytes(SIZE))
    descriptor = owner.open("file", os.O_RDWR)
    address = owner.map(descriptor, SIZE, READ | WRITE, SHARED)
    owner.poke(address + 5000, b"stored")
    owner.msync(address, SIZE)
    checks.equal(behind.contents("file")[5000:5006], b"stored", "contents behind")
