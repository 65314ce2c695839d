"""OPENDIR, READDIR and FSYNCDIR."""

import errno
import os
import stat
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from fusepipe.wire import Op
from fusepipe.wire.directory import counted_size
from tests.server.volume import ROOT, Volume, fails, me


def fill(path: Path, count: int, prefix: str = "") -> None:
    for number in range(count):
        os.close(os.open(path / f"{prefix}{number}", os.O_CREAT | os.O_WRONLY))


def test_entries_are_what_lookup_says(volume: Volume) -> None:
    (volume.path / "file").write_bytes(b"123")
    (volume.path / "dir").mkdir()
    os.symlink("nowhere", volume.path / "link")
    os.mkfifo(volume.path / "fifo")
    handle = volume(Op.OPENDIR, ROOT, 0).handle
    entries = {entry.name: entry for page in volume.pages(handle) for entry in page}
    assert set(entries) == {b".", b"..", b"file", b"dir", b"link", b"fifo"}
    for name in (b"file", b"dir", b"link", b"fifo"):
        entry = entries[name]
        found = volume.lookup(name)
        assert (entry.node, entry.attr, entry.ino) == (found.node, found.attr, found.attr.ino)
        assert entry.type == stat.S_IFMT(found.attr.mode) >> 12
    for name in (b".", b".."):  # what is above the root is not shown
        assert (entries[name].node, entries[name].attr) == (0, None)
        assert (entries[name].ino, entries[name].type) == (volume.path.stat().st_ino, stat.S_IFDIR >> 12)
    volume.forget_entries(list(entries.values()))
    for name in (b"file", b"dir", b"link", b"fifo"):
        volume.forget(entries[name].node)
    volume.release(handle)
    assert volume.is_empty()


def test_dot_dot_below_the_root(volume: Volume) -> None:
    node = volume.mkdir(b"d").node
    entries = {entry.name: entry for entry in volume.page(volume(Op.OPENDIR, node, 0).handle)}
    assert entries[b".."].ino == volume.path.stat().st_ino


@pytest.mark.parametrize("size", [counted_size(4), 512, 4096, 1 << 20])
def test_a_page_is_filled_and_no_fuller(volume: Volume, size: int) -> None:
    fill(volume.path, 100)
    handle = volume(Op.OPENDIR, ROOT, 0).handle
    pages = list(volume.pages(handle, size))
    names = [entry.name for page in pages for entry in page]
    assert len(names) == len(set(names)) == 102
    for page, following in pairwise(pages):
        used = sum(counted_size(len(entry.name)) for entry in page)
        assert used <= size
        assert used + counted_size(len(following[0].name)) > size, "one more would have fit"
    assert volume.page(handle, pages[-1][-1].offset) == [], "the end stays the end"


def test_only_what_is_packed_is_counted(volume: Volume) -> None:
    fill(volume.path, 50)
    handle = volume(Op.OPENDIR, ROOT, 0).handle
    page = volume.page(handle, 0, 600)
    assert len([entry for entry in page if entry.node]) == volume.count("lookups") - 1
    volume.forget_entries(page)
    volume.release(handle)
    assert volume.is_empty()


def test_a_page_that_is_too_small_for_an_entry(volume: Volume) -> None:
    handle = volume(Op.OPENDIR, ROOT, 0).handle
    with fails(errno.EINVAL):
        volume.page(handle, 0, counted_size(1) - 1)
    assert len(volume.page(handle, 0, 4096)) == 2
    with fails(errno.EINVAL):
        volume.page(handle, 0, 1 << 31)


def test_reading_goes_on_from_any_offset(volume: Volume) -> None:
    fill(volume.path, 300)
    handle = volume(Op.OPENDIR, ROOT, 0).handle
    entries = [entry for page in volume.pages(handle) for entry in page]
    names = [entry.name for entry in entries]
    for position in (250, 3, 0, 299, 120):
        rest = volume.page(handle, entries[position].offset, 1 << 20)
        assert [entry.name for entry in rest] == names[position + 1 :]
    again = volume.page(volume(Op.OPENDIR, ROOT, 0).handle, entries[100].offset, 1 << 20)
    assert [entry.name for entry in again] == names[101:]


def test_rewinding_sees_what_is_new(volume: Volume) -> None:
    handle = volume(Op.OPENDIR, ROOT, 0).handle
    assert len(volume.page(handle)) == 2
    (volume.path / "new").touch()
    assert len(volume.page(handle)) == 3


def test_offsets_that_were_never_given(volume: Volume) -> None:
    fill(volume.path, 10)
    handle = volume(Op.OPENDIR, ROOT, 0).handle
    with fails(errno.EINVAL):
        volume.page(handle, (1 << 64) - 1)
    assert isinstance(volume.page(handle, 12345), list)


def test_only_directories(volume: Volume) -> None:
    entry, handle = volume.create(b"f")
    with fails(errno.ENOTDIR):
        volume(Op.OPENDIR, entry.node, 0)
    with fails(errno.EBADF):
        volume.page(handle)
    with fails(errno.EBADF):
        volume(Op.FSYNCDIR, handle, False)


def test_fsyncdir(volume: Volume) -> None:
    handle = volume(Op.OPENDIR, ROOT, 0).handle
    volume(Op.FSYNCDIR, handle, False)
    volume(Op.FSYNCDIR, handle, True)


def test_a_name_whose_lookup_fails_is_not_left_out(directory: Path, serve: Callable[..., Volume]) -> None:
    """Here because there is no room for its row."""
    fill(directory, 20)
    volume = serve(directory, inodes=8)
    entries = volume.page(volume(Op.OPENDIR, ROOT, 0).handle, 0, 1 << 16)
    assert len(entries) == 22
    assert len([entry for entry in entries if entry.node]) == 6
    numbers = {entry.name: entry.ino for entry in entries}
    assert all(numbers[b"%d" % n] == (directory / str(n)).stat().st_ino for n in range(20))
    with fails(errno.ENOMEM):
        volume.lookup(next(entry.name for entry in entries if not entry.node and entry.name[:1] != b"."))


def test_each_name_once_while_others_create_and_delete(disk: Volume) -> None:
    """20,000 names that stay; 2,000 that come and go meanwhile."""
    stay = 20000
    fill(disk.path, stay, "stay-")
    stop = threading.Event()

    def others() -> None:
        number = 0
        while not stop.is_set():
            path = disk.path / f"other-{number % 2000}"
            if path.exists():
                path.unlink()
            else:
                path.touch()
            number += 1

    thread = threading.Thread(target=others)
    thread.start()
    try:
        for _ in range(2):
            handle = disk(Op.OPENDIR, ROOT, 0).handle
            entries = [entry for page in disk.pages(handle, 1 << 15) for entry in page]
            disk.release(handle)
            names = [entry.name for entry in entries if entry.name.startswith(b"stay-")]
            assert len(names) == stay
            assert len(set(names)) == stay
            assert all(entry.node for entry in entries if entry.name.startswith(b"stay-"))
            disk.forget_entries(entries)
    finally:
        stop.set()
        thread.join()
    assert disk.is_empty()


def test_two_readers_of_one_handle(volume: Volume) -> None:
    """Each offset is answered with what follows it, whoever asks."""
    fill(volume.path, 500)
    handle = volume(Op.OPENDIR, ROOT, 0).handle
    entries = [entry for page in volume.pages(handle, 2048) for entry in page]
    names = [entry.name for entry in entries]
    failures: list[int] = []

    def read(start: int) -> None:
        for position in range(start, 500, 7):
            reply, payload = volume.tables.tree.readdir(handle, entries[position].offset, 1024)
            if names[position + 1].ljust(8, b"\0")[:4] not in bytes(reply):
                failures.append(position)
            assert payload

    threads = [threading.Thread(target=read, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_entries_need_no_descriptors(disk: Volume) -> None:
    """What a listing names is held by handle, so that a guest can list more than there are descriptors."""
    fill(disk.path, 400)
    before = len(os.listdir("/proc/self/fd"))
    handle = disk(Op.OPENDIR, ROOT, 0).handle
    entries = [entry for page in disk.pages(handle) for entry in page]
    assert disk.count("inodes") == 401
    if disk.count("fds") == 2:
        assert len(os.listdir("/proc/self/fd")) == before + 1
    else:
        pytest.skip("no file handles on this filesystem, or not the right to open them")
    for entry in entries[:50]:
        if entry.node:
            assert disk(Op.GETATTR, entry.node, 0).attr == entry.attr


def test_unlinking_what_is_held_by_handle_only(disk: Volume) -> None:
    """It may be somebody's working directory."""
    (disk.path / "f").write_bytes(b"data")
    (disk.path / "d").mkdir()
    (disk.path / "over").write_bytes(b"old")
    handle = disk(Op.OPENDIR, ROOT, 0).handle
    nodes = {entry.name: entry.node for entry in disk.page(handle)}
    disk(Op.UNLINK, ROOT, b"f")
    disk(Op.RMDIR, ROOT, b"d")
    disk(Op.MKNOD, ROOT, b"new", stat.S_IFREG | 0o600, 0, 0, *me())
    disk(Op.RENAME, ROOT, b"new", ROOT, b"over", 0)
    assert disk.count("pinned") == 3
    assert disk.read(disk.open(nodes[b"f"], os.O_RDONLY)) == b"data"
    assert disk.read(disk.open(nodes[b"over"], os.O_RDONLY)) == b"old"
    assert stat.S_ISDIR(disk(Op.GETATTR, nodes[b"d"], 0).attr.mode)
