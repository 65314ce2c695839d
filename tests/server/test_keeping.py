"""Which openings let the guest keep the pages that it has cached, and which need no FLUSH."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fusepipe.wire import KEEP_ALWAYS, Op, OpenedFlag
from tests.server.volume import ROOT, Volume, me

OLD = 0.05  # seconds after which a timestamp is no longer "just now"
LONG = 3_600_000  # milliseconds


@pytest.fixture
def node(volume: Volume) -> int:
    """A file that was changed a while ago."""
    (volume.path / "f").write_bytes(b"a" * 100)
    time.sleep(OLD)
    return volume.lookup(b"f").node


def opened(
    volume: Volume, node: int, keep: int = LONG, flags: int = os.O_RDONLY, *, use: bool = True, taken: bool = True
) -> bool:
    """Opens, reads, closes; whether pages could be kept."""
    reply = volume(Op.OPEN, node, flags, False, keep, 0)
    if use:
        volume.read(reply.handle)
    volume.release(reply.handle, taken=taken)
    return bool(reply.flags & OpenedFlag.KEEP)


def test_the_second_opening_keeps(volume: Volume, node: int) -> None:
    assert [opened(volume, node) for _ in range(4)] == [False, True, True, True]


def test_never_and_always(volume: Volume, node: int) -> None:
    assert [opened(volume, node, 0) for _ in range(3)] == [False] * 3
    assert [opened(volume, node, KEEP_ALWAYS) for _ in range(3)] == [True] * 3
    assert not opened(volume, node)


def test_the_end_counts_from_the_last_drop_not_from_the_last_opening(volume: Volume, node: int) -> None:
    assert not opened(volume, node)
    begin = time.monotonic()
    end = begin + 30
    while opened(volume, node, 300):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert time.monotonic() - begin > 0.25


@pytest.mark.parametrize("change", ["size", "mtime", "mode", "rename"])
def test_what_changed_is_dropped(volume: Volume, node: int, change: str) -> None:
    path = volume.path / "f"
    assert [opened(volume, node) for _ in range(2)] == [False, True]
    match change:
        case "size":
            path.write_bytes(b"more")
        case "mtime":
            os.utime(path, ns=(0, 0))
        case "mode":
            path.chmod(0o600)
        case "rename":
            path.rename(volume.path / "g")
    time.sleep(OLD)
    assert [opened(volume, node) for _ in range(2)] == [False, True]


def test_contents_changed_back_to_the_same_size_and_mtime_are_dropped(volume: Volume, node: int) -> None:
    path = volume.path / "f"
    before = path.stat()
    assert [opened(volume, node) for _ in range(2)] == [False, True]
    path.write_bytes(b"b" * 100)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not opened(volume, node)


def test_a_fresh_timestamp_proves_nothing(volume: Volume) -> None:
    """A write in the same tick as the last one leaves the time as it is."""
    (volume.path / "f").write_bytes(b"a")
    node = volume.lookup(b"f").node
    os.utime(volume.path / "f")
    first = opened(volume, node)
    second = opened(volume, node)
    assert not first
    assert not second or time.time_ns() - (volume.path / "f").stat().st_ctime_ns > 20_000_000


def test_truncating_drops(volume: Volume, node: int) -> None:
    assert [opened(volume, node) for _ in range(2)] == [False, True]
    assert not opened(volume, node, flags=os.O_RDWR | os.O_TRUNC)


def test_a_reply_that_nobody_took_is_no_drop(volume: Volume, node: int) -> None:
    """The program was killed while it opened: its pages are as old as they were."""
    assert not opened(volume, node, use=False, taken=False)
    assert not opened(volume, node)
    assert opened(volume, node)


def test_a_handle_that_the_kernel_closes_is_one_that_it_took(volume: Volume, node: int) -> None:
    """It may have been read from what came with the reply."""
    assert not opened(volume, node, use=False)
    assert opened(volume, node)


def test_an_opening_whose_handle_was_not_used_yet_is_no_drop(volume: Volume, node: int) -> None:
    first = volume(Op.OPEN, node, os.O_RDONLY, False, LONG, 0)
    second = volume(Op.OPEN, node, os.O_RDONLY, False, LONG, 0)
    assert not (first.flags | second.flags) & OpenedFlag.KEEP
    volume.read(second.handle)
    assert volume(Op.OPEN, node, os.O_RDONLY, False, LONG, 0).flags & OpenedFlag.KEEP


def test_a_store_through_a_mapping_is_seen_when_the_time_is_over(volume: Volume, node: int) -> None:
    """It may change no timestamp, so only the end helps."""
    with (volume.path / "f").open("r+b") as file, mmap.mmap(file.fileno(), 100) as mapped:
        mapped[:1] = b"b"
        time.sleep(OLD)
        assert not opened(volume, node, 100)
        mapped[:1] = b"c"
        time.sleep(0.11)
        assert not opened(volume, node, 100)


def test_a_new_inode_in_the_same_row_knows_nothing(volume: Volume, node: int) -> None:
    assert [opened(volume, node) for _ in range(2)] == [False, True]
    volume.forget(node)
    again = volume.lookup(b"f").node
    assert again != node
    assert not opened(volume, again)


def test_flush_is_not_needed_where_close_reports_nothing(memory: Path, serve: Callable[..., Volume]) -> None:
    volume = serve(memory)
    reply = volume(Op.CREATE, ROOT, b"f", os.O_RDWR, 0o644, 0, *me(), False)
    assert reply.flags == OpenedFlag.NOFLUSH | OpenedFlag.NEW
    assert volume(Op.CREATE, ROOT, b"f", os.O_RDWR, 0o644, 0, *me(), False).flags == OpenedFlag.NOFLUSH
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY):
        assert volume(Op.OPEN, reply.entry.node, flags, False, 0, 0).flags == OpenedFlag.NOFLUSH


def test_flush_is_needed_where_nothing_is_known_about_close(serve: Callable[..., Volume]) -> None:
    volume = serve(Path("/proc/self"))  # any filesystem with a file to write to that is not on the list
    node = volume.lookup(b"comm").node
    assert volume(Op.OPEN, node, os.O_RDONLY, False, 0, 0).flags == OpenedFlag.NOFLUSH
    assert volume(Op.OPEN, node, os.O_RDWR, False, 0, 0).flags == 0


def listed(volume: Volume, node: int, *, use: bool = True, taken: bool = True) -> bool:
    """Opens a directory, lists it, closes; whether pages could be kept."""
    reply = volume(Op.OPENDIR, node, LONG)
    if use:
        volume(Op.READDIR, reply.handle, 0, 4096)
    volume.release(reply.handle, taken=taken)
    return bool(reply.flags & OpenedFlag.KEEP)


@pytest.mark.parametrize("change", ["create", "remove", "rename", "mode"])
def test_a_listing_is_kept_until_the_directory_changes(volume: Volume, change: str) -> None:
    folder = volume.path / "d"
    folder.mkdir()
    (folder / "f").touch()
    time.sleep(OLD)
    node = volume.lookup(b"d").node
    assert [listed(volume, node) for _ in range(3)] == [False, True, True]
    match change:
        case "create":
            (folder / "g").touch()
        case "remove":
            (folder / "f").unlink()
        case "rename":
            (folder / "f").rename(folder / "g")
        case "mode":
            folder.chmod(0o700)
    assert not listed(volume, node), "changed just now"
    time.sleep(OLD)
    assert [listed(volume, node) for _ in range(3)] == [False, True, True]


def test_a_listing_that_nobody_took_lets_nothing_be_kept(volume: Volume) -> None:
    time.sleep(OLD)
    assert [listed(volume, ROOT, use=False, taken=False) for _ in range(3)] == [False] * 3
    assert [listed(volume, ROOT) for _ in range(2)] == [False, True]
