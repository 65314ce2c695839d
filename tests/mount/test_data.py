"""File contents: big, sparse, appended by two writers, mapped, direct."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import random
import shutil
from pathlib import Path

import pytest

from tests.mount import children
from tests.mount.conftest import MountFactory, Place
from tests.mount.expect import fails
from tests.mount.harness import eventually


def test_sizes_around_the_limits(place: Place) -> None:
    for size in (0, 1, 4095, 4096, 4097, 131_071, 131_072, 131_073, 1 << 20, (1 << 20) + 1, 5_000_001):
        data = random.Random(size).randbytes(size)
        (place.mnt / "file").write_bytes(data)
        assert (place.src / "file").read_bytes() == data
        (place.src / "other").write_bytes(data)
        (place.src / "other").rename(place.src / f"s{size}")
        assert (place.mnt / f"s{size}").read_bytes() == data


def test_random_access(place: Place) -> None:
    """Reads and writes at random places against the same on a byte array, then the file against it on the host."""
    rng = random.Random(7)
    model = bytearray()
    with (place.mnt / "file").open("w+b", buffering=0) as file:
        for _ in range(400):
            offset, length = rng.randrange(300_000), rng.randrange(1, 40_000)
            what = rng.random()
            if what < 0.5:
                data = rng.randbytes(length)
                model.extend(bytes(max(0, offset + length - len(model))))
                model[offset : offset + length] = data
                assert os.pwrite(file.fileno(), data, offset) == length
            elif what < 0.95:
                assert os.pread(file.fileno(), length, offset) == model[offset : offset + length]
            else:
                os.ftruncate(file.fileno(), offset)
                del model[offset:]
                model.extend(bytes(offset - len(model)))
            if rng.random() < 0.02:
                place.mount.drop_dentries()
    assert (place.src / "file").read_bytes() == model


def test_big_and_sparse(place: Place) -> None:
    path = place.mnt / "sparse"
    with path.open("w+b", buffering=0) as file:
        for offset in (1 << 31, (1 << 32) + 5, 1 << 40):
            assert os.pwrite(file.fileno(), b"here", offset) == 4
        assert os.pread(file.fileno(), 8, (1 << 32) + 3) == b"\0\0here\0\0"
        assert os.pread(file.fileno(), 100, 1 << 40) == b"here"
    found = path.stat()
    assert found.st_size == (1 << 40) + 4
    assert found.st_blocks == (place.src / "sparse").stat().st_blocks < 1000
    os.truncate(path, 1 << 41)
    assert (place.src / "sparse").stat().st_size == 1 << 41


def test_too_large(place: Place) -> None:
    for top in (place.twin, place.mnt):
        with (top / "file").open("wb") as file, fails(errno.EFBIG):
            os.ftruncate(file.fileno(), (1 << 63) - 1)


APPEND = """
path, mark, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
fd = os.open(path, os.O_WRONLY | os.O_APPEND)
print("ready", flush=True)
sys.stdin.readline()
for i in range(count):
    line = (f"{mark}{i:06d}" * 8 + "\\n").encode()
    assert os.write(fd, line) == len(line)
os.close(fd)
"""


@pytest.mark.parametrize("second", ["guest", "host"])
def test_two_writers_append(place: Place, second: str) -> None:
    """Every record of both is there, whole, and each writer's in its order."""
    count = 400
    (place.src / "log").touch()
    writers = [
        children.spawn(APPEND, place.mnt / "log", "A", count),
        children.spawn(APPEND, (place.mnt if second == "guest" else place.src) / "log", "B", count),
    ]
    for writer in writers:
        assert children.read_line(writer) == "ready"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        children.finish(writer, 60)
    lines = (place.src / "log").read_text().splitlines()
    for mark in "AB":
        assert [line for line in lines if line[0] == mark] == [f"{mark}{i:06d}" * 8 for i in range(count)]
    assert len(lines) == 2 * count


def test_append_after_the_host_appended(place: Place) -> None:
    """The guest's idea of the size is old: O_APPEND still never overwrites."""
    path = place.mnt / "log"
    path.write_text("guest 1\n")
    with path.open("a") as file:
        with (place.src / "log").open("a") as host:
            host.write("host\n")
        file.write("guest 2\n")
    assert (place.src / "log").read_text() == "guest 1\nhost\nguest 2\n"


def test_o_direct(place: Place) -> None:
    buffer = mmap.mmap(-1, 1 << 20)
    data = random.Random(1).randbytes(1 << 20)
    buffer.write(data)
    fd = os.open(place.mnt / "file", os.O_CREAT | os.O_RDWR | os.O_DIRECT, 0o644)
    assert os.pwritev(fd, [buffer], 4096) == 1 << 20
    assert os.pwritev(fd, [memoryview(buffer)[:512]], 0) == 512
    buffer[:] = bytes(1 << 20)
    assert os.preadv(fd, [buffer], 4096) == 1 << 20
    assert buffer[:] == data
    assert os.preadv(fd, [buffer], 1 << 20) == 4096
    os.close(fd)
    assert (place.mnt / "file").read_bytes() == data[:512] + bytes(4096 - 512) + data
    assert (place.src / "file").read_bytes()[4096:] == data


@pytest.mark.parametrize("cache", ["ttl:1", "none"])
@pytest.mark.once
def test_shared_mapping(mounts: MountFactory, target: str, cache: str) -> None:
    """Written through the mapping, read by read, by another mapping and on the host; and the other way round."""
    mount = mounts(*(("--cache", cache) if target not in ("plain", "bindfs", "uncached") else ()))
    path = mount.path / "file"
    path.write_bytes(bytes(20_000))
    with path.open("r+b", buffering=0) as file, mmap.mmap(file.fileno(), 20_000) as first:
        first[5000:5005] = b"first"
        first.flush()
        assert os.pread(file.fileno(), 5, 5000) == b"first"
        assert (mount.source / "file").read_bytes()[5000:5005] == b"first"
        out = children.run(
            """
            import mmap
            with open(sys.argv[1], "r+b") as file, mmap.mmap(file.fileno(), 0) as second:
                assert second[5000:5005] == b"first"
                second[9000:9006] = b"second"
                second.flush()
            print("done")
            """,
            path,
        )
        assert out == "done\n"
        assert first[9000:9006] == b"second"
        os.pwrite(file.fileno(), b"written", 100)
        assert first[100:107] == b"written"
    assert (mount.source / "file").read_bytes()[9000:9006] == b"second"


def test_private_mapping(place: Place) -> None:
    path = place.mnt / "file"
    path.write_bytes(b"a" * 10_000)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[0:3] = b"bbb"
        assert mapped[0:4] == b"bbba"
        assert path.read_bytes() == b"a" * 10_000
    assert (place.src / "file").read_bytes() == b"a" * 10_000


def test_programs_run_from_the_mount(place: Place) -> None:
    """Executing maps the file; while it runs nobody may write to it."""
    shutil.copy("/bin/sleep", place.mnt / "sleep")
    (place.mnt / "sleep").chmod(0o755)
    program = children.spawn("os.execv(sys.argv[1], ['sleep', '30'])", place.mnt / "sleep")
    try:
        eventually(lambda: "sleep 30" in children.command_line(program.pid), 10, "the program on the mount to run")
        with fails(errno.ETXTBSY):
            os.open(place.mnt / "sleep", os.O_WRONLY)
    finally:
        children.kill(program)


def test_checksums_of_a_tree(place: Place) -> None:
    rng = random.Random(3)
    sums = {}
    for i in range(60):
        data = rng.randbytes(rng.randrange(200_000))
        directory = place.mnt / f"d{i % 7}"
        directory.mkdir(exist_ok=True)
        (directory / f"f{i}").write_bytes(data)
        sums[f"d{i % 7}/f{i}"] = hashlib.sha256(data).digest()
    place.mount.drop_dentries()
    for top in (place.src, place.mnt):
        assert {name: hashlib.sha256((top / name).read_bytes()).digest() for name in sums} == sums


def test_fsync_of_files_and_directories(place: Place) -> None:
    fd = os.open(place.mnt / "file", os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"x")
    os.fsync(fd)
    os.fdatasync(fd)
    os.close(fd)
    directory = os.open(place.mnt, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(directory)
    os.close(directory)


@pytest.mark.once
def test_a_full_disk_is_reported(tmpfs: Path, mounts: MountFactory) -> None:
    """ENOSPC at the write itself, and the file holds what was accepted."""
    mount = mounts(source=tmpfs)
    accepted = 0
    with (mount.path / "file").open("wb", buffering=0) as file, fails(errno.ENOSPC):
        for _ in range(100):
            accepted += file.write(bytes(1 << 20))
    assert (mount.source / "file").stat().st_size >= accepted
    (mount.path / "file").unlink()
    # RELEASE has no answer: the host gives the space back a moment after close().
    eventually(lambda: os.statvfs(mount.path).f_bavail > 256, 10, "the space to be free")
    (mount.path / "again").write_bytes(bytes(1 << 20))
