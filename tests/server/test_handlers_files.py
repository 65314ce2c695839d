"""OPEN, CREATE, READ, WRITE, FLUSH and FSYNC."""

import errno
import mmap
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fusepipe.wire import Op
from tests.server.volume import ROOT, Volume, fails, in_thread, me, needs_root

FROM_CACHE = 1
KILL = 4


def test_write_and_read(volume: Volume) -> None:
    entry, handle = volume.create(b"f")
    assert volume.write(handle, b"hello world") == 11
    assert volume.write(handle, b"W", 6) == 1
    assert volume.read(handle) == b"hello World"
    assert volume.read(handle, 5, 6) == b"World"
    assert volume.read(handle, 100, 11) == b""
    assert volume.write(handle, b"end", 1 << 20) == 3
    assert volume.read(handle, 1 << 21, 6) == b"World" + bytes((1 << 20) - 11) + b"end"
    volume(Op.FLUSH, handle, 0)
    volume(Op.FSYNC, handle, False)
    volume(Op.FSYNC, handle, True)
    volume.release(handle)
    volume.forget(entry.node)
    assert volume.is_empty()


def test_zero_bytes(volume: Volume) -> None:
    _, handle = volume.create(b"f")
    assert volume.write(handle, b"") == 0
    assert volume.read(handle, 0) == b""


def test_offsets_beyond_what_a_file_can_have(volume: Volume) -> None:
    _, handle = volume.create(b"f")
    with fails(errno.EINVAL):
        volume.read(handle, 1, 1 << 63)
    with fails(errno.EFBIG):
        volume.write(handle, b"x", 1 << 63)
    with fails(errno.EINVAL):
        volume.read(handle, (1 << 32) - 1)


def test_handles_that_are_not_known(volume: Volume) -> None:
    _, handle = volume.create(b"f")
    volume.release(handle)
    directory = volume(Op.OPENDIR, ROOT, 0).handle
    for number in (0, handle, handle + (2 << 32), 99, (1 << 64) - 1, directory):
        with fails(errno.EBADF):
            volume.read(number)
        with fails(errno.EBADF):
            volume.write(number, b"x")
        with fails(errno.EBADF):
            volume(Op.FLUSH, number, 7)
        with fails(errno.EBADF):
            volume(Op.FSYNC, number, False)


def test_a_handle_is_never_given_twice(volume: Volume) -> None:
    node = volume.create(b"f")[0].node
    seen = set()
    for _ in range(50):
        handle = volume.open(node)
        assert handle not in seen
        seen.add(handle)
        volume.release(handle)


def test_the_mode_of_opening_holds(volume: Volume) -> None:
    node = volume.create(b"f")[0].node
    with fails(errno.EBADF):
        volume.write(volume.open(node, os.O_RDONLY), b"x")
    with fails(errno.EBADF):
        volume.read(volume.open(node, os.O_WRONLY))


def test_truncating_open(volume: Volume) -> None:
    (volume.path / "f").write_bytes(b"123")
    node = volume.lookup(b"f").node
    handle = volume.open(node, os.O_RDWR | os.O_TRUNC)
    assert volume(Op.GETATTR, node, handle).attr.size == 0


def test_appending(volume: Volume) -> None:
    entry, handle = volume.create(b"f", flags=os.O_WRONLY | os.O_APPEND)
    other = volume.open(entry.node, os.O_RDWR | os.O_APPEND)
    volume.write(handle, b"one", 0)
    volume.write(other, b"two", 0)
    volume.write(handle, b"three", 0)
    assert volume.read(other) == b"onetwothree"
    # pages of the guest's cache go where they belong
    volume.write(handle, b"ONE", 0, FROM_CACHE)
    assert volume.read(other) == b"ONEtwothree"


def test_direct_io_from_any_address(disk: Volume) -> None:
    _, handle = disk.create(b"f", flags=os.O_RDWR | os.O_DIRECT)
    data = os.urandom(3 * mmap.PAGESIZE)
    for shift in (0, 1, 8):
        payload = memoryview(bytes(shift) + data)[shift:]
        assert disk(Op.WRITE, handle, 0, 0, payload=payload).size == len(data)  # type: ignore[arg-type]  # any buffer
    assert disk.read(handle, 1 << 16) == data
    os.truncate(disk.path / "f", 5000)
    assert disk.read(handle, 1 << 16) == data[:5000]
    with fails(errno.EINVAL):
        disk.write(handle, b"xyz")


def test_only_regular_files_are_opened(volume: Volume) -> None:
    os.mkfifo(volume.path / "fifo")
    with fails(errno.ENXIO):
        volume.open(volume.lookup(b"fifo").node, os.O_RDONLY)
    with fails(errno.ENXIO):
        volume.create(b"fifo", flags=os.O_WRONLY)
    with fails(errno.EISDIR):
        volume.open(ROOT, os.O_RDONLY)
    volume.mkdir(b"d")
    with fails(errno.EISDIR):
        volume.create(b"d")


def test_flags_that_must_not_pass(volume: Volume) -> None:
    entry, handle = volume.create(b"f", flags=os.O_RDWR | os.O_CREAT | os.O_EXCL)
    volume.write(handle, b"data")
    handle = volume.open(entry.node, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_PATH | os.O_NOFOLLOW | os.O_TMPFILE)
    assert volume.read(handle) == b"data"


def test_create_keeps_excl(volume: Volume) -> None:
    (volume.path / "f").write_bytes(b"there")
    with fails(errno.EEXIST):
        volume.create(b"f", flags=os.O_RDWR | os.O_EXCL)
    os.symlink("nowhere", volume.path / "link")
    with fails(errno.EEXIST):
        volume.create(b"link", flags=os.O_RDWR | os.O_EXCL)
    with fails(errno.ELOOP):
        volume.create(b"link")
    entry, handle = volume.create(b"f")
    assert volume.read(handle) == b"there"
    assert volume(Op.GETATTR, entry.node, handle).attr.ino == (volume.path / "f").stat().st_ino
    entry, handle = volume.create(b"f", flags=os.O_RDWR | os.O_TRUNC)
    assert volume.read(handle) == b""


def test_create_with_mode_zero_gives_a_usable_handle(volume: Volume) -> None:
    _, handle = volume.create(b"f", mode=0)
    volume.write(handle, b"x")
    assert volume.read(handle) == b"x"


def test_create_gives_entry_and_handle_of_one_inode_whatever_happens_to_the_name(disk: Volume) -> None:
    """Somebody on the host replaces the name all the time."""
    spare, name = disk.path / "spare", disk.path / "name"
    stop = threading.Event()

    def replace() -> None:
        while not stop.is_set():
            spare.write_bytes(b"theirs")
            os.rename(spare, name)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for _ in range(300):
            entry, handle = disk.create(b"name")
            by_handle = disk(Op.GETATTR, entry.node, handle).attr
            assert by_handle.ino == entry.attr.ino == disk(Op.GETATTR, entry.node, 0).attr.ino
            disk.release(handle)
            disk.forget(entry.node)
    finally:
        stop.set()
        thread.join()
    assert disk.is_empty()


def test_an_unlinked_file_stays_usable(volume: Volume) -> None:
    entry, handle = volume.create(b"f")
    volume.write(handle, b"before")
    volume(Op.UNLINK, ROOT, b"f")
    volume.write(handle, b"after ")
    assert volume.read(handle) == b"after "
    assert volume(Op.GETATTR, entry.node, 0).attr.nlink == 0
    again = volume.open(entry.node)
    assert volume.read(again) == b"after "
    assert volume.setattr(entry.node, 8, handle, size=2).size == 2
    volume.forget(entry.node)
    assert volume.read(handle) == b"af"
    volume.release(handle)
    volume.release(again)
    assert volume.is_empty()


def test_a_late_release_during_a_read_waits_for_it(volume: Volume) -> None:
    entry, handle = volume.create(b"f")
    volume.write(handle, bytes(1 << 20))
    results: list[int | None] = []

    def read() -> None:
        try:
            results.append(len(volume.read(handle, 1 << 20)))
        except OSError as error:
            results.append(error.errno)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    volume.release(handle)
    for thread in threads:
        thread.join()
    assert set(results) <= {1 << 20, errno.EBADF}
    volume.forget(entry.node)
    assert volume.is_empty()


@needs_root
@pytest.mark.parametrize(
    ("before", "killing", "left"),
    [
        (0o6755, False, 0o6755),
        (0o6755, True, 0o755),
        (0o4766, True, 0o766),
        (0o2767, False, 0o2767),
        (0o2767, True, 0o2767),  # without group execution it stays: include/uapi/linux/fuse.h
        (0o777, True, 0o777),
    ],
)
def test_writing_clears_set_id_bits_where_it_should(volume: Volume, before: int, killing: bool, left: int) -> None:
    path = volume.path / "f"

    def prepare() -> None:
        path.write_bytes(b"x")
        path.chmod(before)

    prepare()
    node = volume.lookup(b"f").node
    handle = volume.open(node)
    volume.write(handle, b"y", 0, KILL if killing else 0)
    assert stat.S_IMODE(path.stat().st_mode) == left
    prepare()
    volume.setattr(node, 8 | (2048 if killing else 0), size=0)
    assert stat.S_IMODE(path.stat().st_mode) == left
    prepare()
    volume(Op.OPEN, node, os.O_RDWR | os.O_TRUNC, killing, 0, 0)
    assert stat.S_IMODE(path.stat().st_mode) == left
    prepare()
    volume(Op.CREATE, ROOT, b"f", os.O_RDWR | os.O_TRUNC, 0o644, 0, *me(), killing)
    assert stat.S_IMODE(path.stat().st_mode) == left
    # and the thread has its capability and groups again
    prepare()
    volume.write(handle, b"y")
    assert stat.S_IMODE(path.stat().st_mode) == before


def test_fd_budget_counts_open_files(directory: Path, serve: Callable[..., Volume]) -> None:
    volume = serve(directory, budget=16)
    made = []
    with fails(errno.ENFILE):
        for number in range(20):
            made.append(volume.create(b"%d" % number))
    assert 14 <= len(made) <= 16
    assert len(os.listdir(directory)) == len(made), "a file was made that could not be opened"
    for entry, handle in made:
        volume.release(handle)
        volume.open(entry.node)
        volume.forget(entry.node)
    assert volume.count("handles") == len(made)


def test_the_umask_of_other_threads_stays(volume: Volume) -> None:
    def create() -> None:
        volume(Op.CREATE, ROOT, b"f", os.O_RDWR, 0o666, 0o077, *me(), False)

    in_thread(create)
    assert stat.S_IMODE((volume.path / "f").stat().st_mode) == 0o600
    old = os.umask(0o022)
    os.umask(old)
    (volume.path / "g").touch(0o666)
    assert stat.S_IMODE((volume.path / "g").stat().st_mode) == 0o666 & ~old
