"""`--cache exclusive`: written data stay in the guest for a while, and arrive whole."""

from __future__ import annotations

import mmap
import os
import stat
import time
from pathlib import Path

import pytest

from tests.mount import children
from tests.mount.conftest import MountFactory
from tests.mount.harness import Mount, eventually
from tests.mount.requests import TRACED, requests_of

pytestmark = pytest.mark.once

WRITTEN_BACK = 45.0  # seconds in which the kernel writes back by itself (vm.dirty_expire_centisecs and its writeback)


@pytest.fixture
def mount(mounts: MountFactory, real: str) -> Mount:
    return mounts("--cache", "exclusive", *TRACED)


def test_small_writes_travel_together(mount: Mount) -> None:
    def write() -> None:
        with (mount.path / "f").open("wb", buffering=0) as file:
            for i in range(1000):
                file.write(b"%09d\n" % i)

    found = requests_of(mount, write)
    assert found["write"] <= 10
    assert found["flush"] == 0, "close needs no answer of the host, which reports nothing there"
    assert (mount.source / "f").read_bytes() == b"".join(b"%09d\n" % i for i in range(1000))


def test_what_is_known_is_not_asked_again(mount: Mount) -> None:
    """Names, attributes, contents, and that there is no such name: for good."""
    (mount.path / "f").write_bytes(b"x" * 5000)
    (mount.path / "f").read_bytes()
    (mount.path / "absent").exists()
    time.sleep(1.5)

    def look() -> None:
        for _ in range(5):
            assert (mount.path / "f").read_bytes() == b"x" * 5000
            assert not (mount.path / "absent").exists()

    found = requests_of(mount, look)
    assert found["open"] == 5
    assert (found["lookup"], found["read"]) == (0, 0)
    assert found["getattr"] <= 5  # reading makes the access time unknown


def test_fsync_and_close_bring_everything_to_the_host(mount: Mount) -> None:
    source, path = mount.source / "f", mount.path / "f"
    with path.open("wb", buffering=0) as file:
        file.write(b"a" * 10_000)
        os.fsync(file.fileno())
        assert source.read_bytes() == b"a" * 10_000
        os.pwrite(file.fileno(), b"b" * 100, 5000)
    assert source.read_bytes() == b"a" * 5000 + b"b" * 100 + b"a" * 4900
    with path.open("r+b") as again, mmap.mmap(again.fileno(), 10_000) as mapped:
        mapped[9990:] = b"c" * 10
        mapped.flush()
        assert source.read_bytes()[9980:] == b"a" * 10 + b"c" * 10


def test_the_kernel_writes_back_by_itself(mount: Mount) -> None:
    with (mount.path / "f").open("wb", buffering=0) as file:
        file.write(b"x" * 100)
        eventually(lambda: (mount.source / "f").stat().st_size == 100, WRITTEN_BACK, "the kernel's own write-back")


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_WRONLY | os.O_APPEND, os.O_WRONLY | os.O_DIRECT])
def test_a_part_of_a_page_can_be_written_without_reading_it_first(mounts: MountFactory, real: str, flags: int) -> None:
    """The kernel reads the rest of the page through the same handle, which is O_WRONLY for the program."""
    mount = mounts("--cache", "exclusive")
    (mount.source / "f").write_bytes(b"a" * 10_000)
    fd = os.open(mount.path / "f", flags)
    if flags & os.O_DIRECT:
        with mmap.mmap(-1, 4096) as page:
            page[:] = b"b" * 4096
            assert os.pwrite(fd, page, 4096) == 4096
        wanted = b"a" * 4096 + b"b" * 4096 + b"a" * 1808
    else:
        os.lseek(fd, 5000, os.SEEK_SET)
        os.write(fd, b"b" * 10)
        wanted = b"a" * 10_000 + b"b" * 10 if flags & os.O_APPEND else b"a" * 5000 + b"b" * 10 + b"a" * 4990
    os.close(fd)
    assert (mount.path / "f").read_bytes() == (mount.source / "f").read_bytes() == wanted


def test_appending_programs_lose_nothing(mount: Mount) -> None:
    append = """
    fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for i in range(200):
        os.write(fd, f"{sys.argv[2]} {i:05d}\\n".encode())
    """
    programs = [children.spawn(append, mount.path / "log", who) for who in "abcd"]
    for program in programs:
        children.finish(program, 60)
    lines = (mount.source / "log").read_text().splitlines()
    assert sorted(lines) == sorted(f"{who} {i:05d}" for who in "abcd" for i in range(200))


def test_times_are_the_guests_and_reach_the_host(mount: Mount) -> None:
    path, source = mount.path / "f", mount.source / "f"
    with path.open("wb") as file:
        time.sleep(0.05)  # within one tick the kernel sees no new time, so it sends none: docs/cache.md
        file.write(b"x" * 10)
    assert path.stat().st_mtime_ns == source.stat().st_mtime_ns
    os.utime(path, ns=(1_000_000_000, 2_000_000_007))
    assert path.stat().st_mtime_ns == source.stat().st_mtime_ns == 2_000_000_007
    with path.open("ab") as file:
        file.write(b"y")
    assert path.stat().st_mtime_ns == source.stat().st_mtime_ns > 2_000_000_007
    before = path.stat().st_ctime_ns
    time.sleep(0.05)  # the kernel's stamps advance by ticks
    path.chmod(0o600)
    assert path.stat().st_ctime_ns > before
    seen = path.stat().st_mtime_ns
    mount.remount()
    assert path.stat().st_mtime_ns == seen


def test_writing_clears_set_uid(mount: Mount) -> None:
    path = mount.path / "f"
    path.write_bytes(b"x")
    path.chmod(0o4755)
    mount.path.chmod(0o777)
    os.chown(path, 1000, 1000)
    path.chmod(0o4755)
    children.run("os.write(os.open(sys.argv[1], os.O_WRONLY), b'y')", path, user=1000)
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((mount.source / "f").stat().st_mode) == 0o755


def test_a_full_disk_is_an_error_of_fsync(mounts: MountFactory, real: str, tmpfs: Path) -> None:
    mount = mounts("--cache", "exclusive", source=tmpfs)
    fd = os.open(mount.path / "f", os.O_CREAT | os.O_WRONLY)
    with pytest.raises(OSError, match="No space left"):
        for _ in range(100):
            os.write(fd, bytes(1 << 20))
            os.fsync(fd)
    os.close(fd)
    assert (mount.source / "f").stat().st_size <= 64 << 20


def test_holes_are_only_where_nothing_was_written(mount: Mount) -> None:
    """Data that the host has not got yet must not look like a hole."""
    with (mount.path / "f").open("w+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"x" * 4096, 1 << 20)
        at = os.lseek(file.fileno(), 0, os.SEEK_DATA)
        assert at <= 1 << 20
        assert os.lseek(file.fileno(), 1 << 20, os.SEEK_HOLE) == (1 << 20) + 4096


def test_unmounting_writes_everything_back(mount: Mount) -> None:
    contents = [bytes([i]) * 10_000 for i in range(50)]
    for i, data in enumerate(contents):
        (mount.path / f"f{i}").write_bytes(data)
    with (mount.path / "f0").open("r+b") as file, mmap.mmap(file.fileno(), 10_000) as mapped:
        mapped[:] = contents[0] = b"m" * 10_000
    mount.remount()
    for i, data in enumerate(contents):
        assert (mount.source / f"f{i}").read_bytes() == data
