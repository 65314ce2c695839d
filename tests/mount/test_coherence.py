"""Many programs of one guest on the same files: whatever the cache mode, none may ever see anything that is stale."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.mount import children
from tests.mount.conftest import MountFactory
from tests.mount.harness import Mount

pytestmark = pytest.mark.once

PROGRAMS = 4
PATIENCE = 100.0  # seconds; as long as the watchdog of the mount allows


@pytest.fixture(params=["none", "ttl:1", "exclusive"])
def mount(request: pytest.FixtureRequest, mounts: MountFactory, real: str) -> Mount:
    return mounts("--cache", request.param)


@pytest.fixture(params=["none", "ttl:1", "exclusive"])
def on_ext4(request: pytest.FixtureRequest, real: str, ext4: Path, mounts: MountFactory) -> Mount:
    """A volume whose filesystem gives the number of a deleted file to the next one at once."""
    return mounts("--cache", request.param, source=ext4)


def together(code: str, *arguments: children.Argument) -> list[str]:
    """The same program, several times at once; its number is the first argument."""
    programs = [children.spawn(code, number, *arguments) for number in range(PROGRAMS)]
    return [children.finish(program, PATIENCE) for program in programs]


COUNTER = """
# Each turn another way of writing and another way of reading, on a file that all programs open anew or keep open.
me, path, rounds = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
lock = os.open(path + ".lock", os.O_RDWR)
kept = os.open(path, os.O_RDWR)
kept_map = mmap.mmap(kept, 4096)
SIZE = 16

def text(number):
    return b"%015d\\n" % number

def read(how):
    if how == 0:
        return os.pread(kept, SIZE, 0)
    if how == 1:
        return kept_map[:SIZE]
    fd = os.open(path, os.O_RDONLY)
    try:
        if how == 2:
            return os.read(fd, SIZE)
        with mmap.mmap(fd, 4096, prot=mmap.PROT_READ) as mapped:
            return mapped[:SIZE]
    finally:
        os.close(fd)

def write(how, data):
    if how == 0:
        os.pwrite(kept, data, 0)
    elif how == 1:
        kept_map[:SIZE] = data
    elif how == 2:
        fd = os.open(path, os.O_WRONLY)
        os.write(fd, data)
        os.close(fd)
    else:
        fd = os.open(path, os.O_RDWR)
        with mmap.mmap(fd, 4096) as mapped:
            mapped[:SIZE] = data
        os.close(fd)

for turn in range(rounds):
    fcntl.lockf(lock, fcntl.LOCK_EX)
    seen = {read(how) for how in range(4)}
    assert len(seen) == 1, seen
    write((turn + me) % 4, text(int(seen.pop()) + 1))
    fcntl.lockf(lock, fcntl.LOCK_UN)
"""


def test_a_counter_that_is_written_and_mapped_by_many(mount: Mount) -> None:
    """Every increment is seen by the next program, through read and mmap, on old and new descriptors."""
    path, rounds = mount.path / "counter", 40
    path.write_bytes(b"%015d\n" % 0 + bytes(4080))
    (mount.path / "counter.lock").touch()
    together(COUNTER, path, rounds)
    assert int(path.read_bytes()[:15]) == PROGRAMS * rounds
    os.sync()
    assert int((mount.source / "counter").read_bytes()[:15]) == PROGRAMS * rounds


SIZES = """
# The size of the file is the counter: it grows by writes at its end, by O_APPEND and by truncate.
me, path, rounds = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
lock = os.open(path + ".lock", os.O_RDWR)
kept = os.open(path, os.O_RDWR)
for turn in range(rounds):
    fcntl.lockf(lock, fcntl.LOCK_EX)
    size = os.fstat(kept).st_size
    assert size == os.stat(path).st_size == os.lseek(kept, 0, os.SEEK_END), size
    data = os.pread(kept, size + 10, 0)
    assert len(data) == size, (size, len(data))
    assert data.strip(b"x") == b"", data[-100:]
    if size > 20_000:
        os.ftruncate(kept, 100)
        assert os.stat(path).st_size == 100
        size = 100
    how = (turn + me) % 3
    if how == 0:
        os.pwrite(kept, b"x" * 777, size)
    elif how == 1:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.write(fd, b"x" * 777)
        os.close(fd)
    else:
        os.truncate(path, size + 777)
        assert os.pread(kept, 777, size) == bytes(777)
        with mmap.mmap(kept, size + 777) as mapped:
            mapped[size:] = b"x" * 777
    assert os.stat(path).st_size == size + 777
    fcntl.lockf(lock, fcntl.LOCK_UN)
"""


def test_sizes_that_many_change(mount: Mount) -> None:
    """write, append, truncate and stores behind the old end: size and contents always fit together."""
    path = mount.path / "file"
    path.touch()
    (mount.path / "file.lock").touch()
    together(SIZES, path, 40)
    data = path.read_bytes()
    assert data == b"x" * len(data)
    os.sync()
    assert (mount.source / "file").read_bytes() == data


TAIL = """
# Reads what another program appends: never a hole, never a byte too many.
path = sys.argv[1]
fd = os.open(path, os.O_RDONLY)
at, end = 0, time.monotonic() + 60
while time.monotonic() < end:
    data = os.pread(fd, 100_000, at)
    for offset, byte in enumerate(data, at):
        assert byte == 65 + offset // 100 % 26, (offset, byte)
    at += len(data)
    if at == int(sys.argv[2]):
        sys.exit()
    assert os.fstat(fd).st_size >= at
sys.exit("not all of it came")
"""


def test_a_file_that_is_read_while_it_grows(mount: Mount) -> None:
    path, total = mount.path / "log", 60_000
    path.touch()
    readers = [children.spawn(TAIL, path, total) for _ in range(2)]
    with path.open("ab", buffering=0) as file:
        for piece in range(total // 100):
            file.write(bytes([65 + piece % 26]) * 100)
    for reader in readers:
        children.finish(reader, PATIENCE)


NAMES = """
# Names that are used again at once, and with them inode numbers: each program has its own, and one is for all.
me, path, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
os.chdir(path)
os.umask(0)
for turn in range(rounds):
    mine = f"{me}"
    data = f"{me} {turn} ".encode() * (turn % 7 + 1)
    assert not os.path.exists(mine)
    fd = os.open(mine, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600 + turn % 0o100)
    os.write(fd, data)
    found = os.stat(mine)
    assert found.st_size == len(data) == os.fstat(fd).st_size
    assert found.st_ino == os.fstat(fd).st_ino
    assert stat.S_IMODE(found.st_mode) == 0o600 + turn % 0o100
    assert open(mine, "rb").read() == data
    os.close(fd)
    if turn % 3 == 0:
        os.rename(mine, mine + "-moved")
        assert not os.path.exists(mine)
        assert open(mine + "-moved", "rb").read() == data
        os.unlink(mine + "-moved")
    else:
        os.unlink(mine)
    assert not os.path.exists(mine)
    assert mine not in os.listdir(".")
    os.mkdir(mine)
    assert os.path.isdir(mine)
    os.rmdir(mine)
    try:
        fd = os.open("common", os.O_CREAT | os.O_RDWR)
        os.close(fd)
        os.unlink("common")
    except FileNotFoundError:
        pass
"""


def test_names_and_inode_numbers_that_are_used_again_at_once(on_ext4: Mount) -> None:
    together(NAMES, on_ext4.path, 60)
    assert os.listdir(on_ext4.path) == os.listdir(on_ext4.source) == []


def test_an_old_descriptor_and_a_new_file_with_its_number(on_ext4: Mount) -> None:
    """The number of an unlinked file is given away only when it is closed; both keep their own contents."""
    path, source = on_ext4.path, on_ext4.source
    numbers = set()
    for turn in range(20):
        name = path / f"f{turn % 2}"
        name.write_text(f"old {turn}")
        with name.open("r+") as old:
            name.unlink()
            name.write_text(f"new {turn}!")
            assert old.read() == f"old {turn}"
            assert name.read_text() == f"new {turn}!"
            assert name.stat().st_ino == (source / name.name).stat().st_ino != os.fstat(old.fileno()).st_ino
            numbers.add(name.stat().st_ino)
        name.unlink()
    assert len(numbers) < 20, "no number was used again"
