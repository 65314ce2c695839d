"""What the guest may believe for how long: nothing with `none`, at most SECONDS with `ttl:SECONDS`."""

from __future__ import annotations

import mmap
import os
import time
from functools import partial
from pathlib import Path

import pytest

from tests.mount import children
from tests.mount.conftest import MountFactory
from tests.mount.harness import Mount, eventually

pytestmark = pytest.mark.once

LATE = 10.0  # seconds for "after one second at the latest" on a busy machine


@pytest.fixture
def uncached(mounts: MountFactory, real: str) -> Mount:
    return mounts("--cache", "none")


@pytest.fixture(params=["none", "ttl:1"])
def either(request: pytest.FixtureRequest, mounts: MountFactory, real: str) -> Mount:
    return mounts("--cache", request.param)


def test_none_shows_host_edits_at_once(uncached: Mount) -> None:
    path = uncached.path / "file"
    for i in range(30):
        (uncached.source / "file").write_text(f"version {i:02d}")
        assert path.read_text() == f"version {i:02d}"
        assert path.stat().st_size == 10
        (uncached.source / "file").write_text("x" * i)
        assert path.stat().st_size == i
        (uncached.source / "file").chmod(0o600 + i)
        assert path.stat().st_mode & 0o777 == 0o600 + i


def test_none_shows_names_at_once(uncached: Mount) -> None:
    for i in range(20):
        name = f"n{i}"
        assert not (uncached.path / name).exists()
        (uncached.source / name).mkdir()
        assert (uncached.path / name).is_dir()
        (uncached.source / name).rename(uncached.source / "other")
        assert not (uncached.path / name).exists()
        assert os.listdir(uncached.path) == ["other"]
        (uncached.source / "other").rmdir()
        assert os.listdir(uncached.path) == []


def test_none_shows_contents_of_an_open_file_at_once(uncached: Mount) -> None:
    (uncached.source / "file").write_bytes(b"a" * 10_000)
    with (uncached.path / "file").open("rb", buffering=0) as file:
        for i in range(20):
            data = bytes([65 + i]) * 10_000
            with (uncached.source / "file").open("r+b") as host:
                host.write(data)
            assert os.pread(file.fileno(), 10_000, 0) == data


def test_ttl_shows_host_edits_in_time(mounts: MountFactory, real: str) -> None:
    """Contents, attributes, new names, vanished names and names that were known to be absent."""
    mount = mounts("--cache", "ttl:1")
    source, path = mount.source, mount.path
    (source / "file").write_text("old")
    (source / "gone").write_text("x")
    assert (path / "file").read_text() == "old"
    assert (path / "gone").exists()
    assert not (path / "new").exists()
    assert sorted(os.listdir(path)) == ["file", "gone"]
    (source / "file").write_text("new")  # the same size
    (source / "gone").unlink()
    (source / "new").write_text("here")
    eventually(lambda: (path / "file").read_text() == "new", LATE, "seeing the new contents")
    eventually(lambda: not (path / "gone").exists(), LATE, "seeing that a file is gone")
    eventually(lambda: (path / "new").exists(), LATE, "seeing a new file")
    eventually(lambda: sorted(os.listdir(path)) == ["file", "new"], LATE, "a fresh listing")
    (source / "file").chmod(0o640)
    eventually(lambda: (path / "file").stat().st_mode & 0o777 == 0o640, LATE, "seeing a new mode")


@pytest.mark.parametrize("mode", ["none", "ttl:0.5", "ttl:600"])
def test_an_open_shows_what_the_file_contains_now(mounts: MountFactory, real: str, mode: str) -> None:
    """Contents of any age are kept past an open, but never those of another version."""
    mount = mounts("--cache", mode)
    source, path = mount.source / "file", mount.path / "file"
    for i in range(60):
        data = bytes([65 + i % 26]) * 5000
        source.write_bytes(data)
        for _ in range(i % 4):
            assert path.read_bytes() == data
        time.sleep(i % 3 * 0.02)


@pytest.mark.parametrize("mode", ["none", "ttl:0.5", "ttl:600", "exclusive"])
def test_a_listing_shows_what_the_directory_contains_now(mounts: MountFactory, real: str, mode: str) -> None:
    """Names are kept past an opening of the directory, but never those of before; whoever changes them, if he may."""
    mount = mounts("--cache", mode)
    names = {"a", "b"}
    for name in names:
        (mount.source / name).touch()
    for i in range(60):
        place = mount.path if i % 2 or mode == "exclusive" else mount.source
        (place / f"new{i}").touch()
        names.add(f"new{i}")
        if i % 3 == 0:
            (place / f"new{i}").rename(place / f"other{i}")
            names.symmetric_difference_update({f"new{i}", f"other{i}"})
        if i % 5 == 4:
            (place / min(names)).unlink()
            names.remove(min(names))
        for _ in range(i % 4):
            assert set(os.listdir(mount.path)) == names
        time.sleep(i % 3 * 0.02)


def test_a_listing_that_changes_while_it_is_read(either: Mount) -> None:
    """Names that stay are listed once, whatever else comes and goes (readdir(3)); one that begins later is right."""
    stay = {f"stay{i}" for i in range(300)}
    for name in stay:
        (either.path / name).touch()
    time.sleep(0.05)
    for turn in range(6):
        for _ in range(turn % 3):
            assert set(os.listdir(either.path)) == stay
        with os.scandir(either.path) as listing:
            seen = [next(listing).name for _ in range(turn * 20 + 1)]
            (either.path / f"come{turn}").touch()
            (either.path / f"gone{turn}").touch()
            (either.path / f"gone{turn}").unlink()
            assert set(os.listdir(either.path)) == {*stay, f"come{turn}"}
            seen += [entry.name for entry in listing]
        assert sorted(name for name in seen if name in stay) == sorted(stay)
        (either.path / f"come{turn}").unlink()


def starts_with(path: Path, letter: int) -> bool:
    return path.read_bytes()[0] == letter


def test_ttl_ends_for_a_program_that_reads_all_the_time(mounts: MountFactory, real: str) -> None:
    """Reading again and again must not keep old contents alive, nor for edits through a host mapping."""
    mount = mounts("--cache", "ttl:1")
    (mount.source / "file").write_bytes(b"a" * 4096)
    with (mount.source / "file").open("r+b") as file, mmap.mmap(file.fileno(), 4096) as mapped:
        for letter in b"bcd":
            assert (mount.path / "file").read_bytes()
            mapped[:] = bytes([letter]) * 4096
            eventually(partial(starts_with, mount.path / "file", letter), LATE, "a write through a mapping")


def test_a_long_ttl_is_used(mounts: MountFactory, real: str) -> None:
    """What was asked once is not asked again for as long as the option says."""
    mount = mounts("--cache", "ttl:3600")
    (mount.source / "file").write_text("x")
    (mount.path / "file").stat()
    (mount.source / "file").chmod(0o611)
    assert children.run("print(oct(os.stat(sys.argv[1]).st_mode))", mount.path / "file") != "0o100611\n"


def test_own_changes_are_seen_at_once(either: Mount) -> None:
    """Whatever the mode, a guest always sees what it did itself, and the host sees it too."""
    path, source = either.path, either.source
    for i in range(10):
        (path / "file").write_text(f"text {i}" * i)
        assert (path / "file").read_text() == f"text {i}" * i == (source / "file").read_text()
        (path / "file").chmod(0o600 + i)
        assert (path / "file").stat().st_mode & 0o777 == 0o600 + i
        os.link(path / "file", path / "second")
        assert (path / "file").stat().st_nlink == (path / "second").stat().st_nlink == 2
        (path / "file").rename(path / "third")
        assert not (path / "file").exists()
        assert sorted(os.listdir(path)) == ["second", "third"]
        (path / "second").unlink()
        assert (path / "third").stat().st_nlink == 1
        (path / "third").rename(path / "file")


def test_file_that_grows_on_the_host_while_the_guest_writes(either: Mount) -> None:
    """Two writers at different offsets of one file, as logs and downloads do: no byte of either is lost."""
    size = 200_000
    (either.source / "file").write_bytes(b"")
    with (either.path / "file").open("r+b", buffering=0) as guest, (either.source / "file").open("r+b") as host:
        for i in range(20):
            os.pwrite(guest.fileno(), b"g" * 1000, i * 10_000)
            os.pwrite(host.fileno(), b"h" * 1000, i * 10_000 + 5000)
        os.ftruncate(host.fileno(), size)
    data = (either.source / "file").read_bytes()
    for i in range(20):
        assert data[i * 10_000 : i * 10_000 + 1000] == b"g" * 1000
        assert data[i * 10_000 + 5000 : i * 10_000 + 6000] == b"h" * 1000
    eventually(lambda: Path(either.path, "file").read_bytes() == data, LATE, "seeing all of it")
