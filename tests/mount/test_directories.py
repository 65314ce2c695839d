"""Listing directories: complete, exact while others change them, and large ones without quadratic cost."""

from __future__ import annotations

import collections
import errno
import os
import time
from pathlib import Path

import pytest

from tests.mount import children
from tests.mount.conftest import MountFactory, Place
from tests.mount.expect import fails
from tests.mount.harness import Runner


def fill(directory: Path, count: int) -> None:
    """Make `count` empty files as quickly as the host can."""
    fd = os.open(directory, os.O_RDONLY)
    for i in range(count):
        os.mknod(f"entry-{i:06d}", dir_fd=fd)
    os.close(fd)


CHURN = """
directory, who = sys.argv[1:]
os.chdir(directory)
print("ready", flush=True)
i = 0
live = []
while True:
    name = f"churn-{who}-{i}"
    open(name, "w").close()
    live.append(name)
    if i % 3 == 0:
        os.rename(name, name + "-renamed")
        live[-1] += "-renamed"
    if len(live) > 40:
        os.unlink(live.pop(0))
    i += 1
"""


@pytest.mark.parametrize("count", [300, 3000])
def test_each_old_entry_is_listed_once_while_others_come_and_go(place: Place, count: int) -> None:
    fill(place.src, count)
    old = {f"entry-{i:06d}" for i in range(count)}
    churners = [children.spawn(CHURN, place.mnt, "guest"), children.spawn(CHURN, place.src, "host")]
    try:
        for churner in churners:
            assert children.read_line(churner) == "ready"
        for _ in range(10):
            listed = collections.Counter(entry.name for entry in os.scandir(place.mnt))
            assert {name for name in listed if name in old} == old
            assert [name for name in old if listed[name] != 1] == []
            assert all(churner.poll() is None for churner in churners)
    finally:
        for churner in churners:
            children.kill(churner)


def test_a_listing_read_slowly_while_all_is_deleted(place: Place) -> None:
    """rm -r: delete what was listed while the listing goes on; nothing may be left and nothing come twice."""
    fill(place.src, 2500)
    listed = []
    with os.scandir(place.mnt) as entries:
        for entry in entries:
            listed.append(entry.name)
            (place.mnt / entry.name).unlink()
    assert len(listed) == len(set(listed)) == 2500
    assert os.listdir(place.src) == []


def test_seekdir_and_rewinddir(place: Place) -> None:
    """A second pass over the same open directory sees what is new; so does a seek to a noted place."""
    fill(place.src, 200)
    out = children.run(
        """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        class Dirent(ctypes.Structure):
            _fields_ = [("ino", ctypes.c_uint64), ("off", ctypes.c_int64), ("reclen", ctypes.c_ushort),
                        ("type", ctypes.c_ubyte), ("name", ctypes.c_char * 256)]
        libc.opendir.restype = ctypes.c_void_p
        libc.readdir.restype = ctypes.POINTER(Dirent)
        libc.readdir.argtypes = libc.rewinddir.argtypes = libc.telldir.argtypes = [ctypes.c_void_p]
        libc.telldir.restype = ctypes.c_long
        libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
        d = libc.opendir(os.fsencode(sys.argv[1]))
        def rest():
            names = []
            while entry := libc.readdir(d):
                names.append(entry.contents.name)
            return names
        first = [libc.readdir(d).contents.name for _ in range(50)]
        place = libc.telldir(d)
        second = rest()
        libc.seekdir(d, place)
        assert rest() == second
        assert len(set(first + second)) == 202, len(set(first + second))
        open(sys.argv[1] + "/new", "w").close()
        libc.rewinddir(d)
        assert b"new" in rest()
        print("done")
        """,
        place.mnt,
    )
    assert out == "done\n"


def test_dot_and_dotdot_and_types(place: Place) -> None:
    (place.mnt / "directory").mkdir()
    (place.mnt / "file").touch()
    (place.mnt / "link").symlink_to("file")
    os.mkfifo(place.mnt / "fifo")
    out = children.run("import subprocess; os.execvp('ls', ['ls', '-1aF', sys.argv[1]])", place.mnt)
    assert sorted(out.split()) == ["../", "./", "directory/", "fifo|", "file", "link@"]
    kinds = {e.name: (e.is_dir(follow_symlinks=False), e.is_symlink()) for e in os.scandir(place.mnt)}
    assert kinds == {"directory": (True, False), "file": (False, False), "link": (False, True), "fifo": (False, False)}


def test_link_counts_of_directories(place: Place) -> None:
    (place.mnt / "a" / "b").mkdir(parents=True)
    (place.mnt / "c").mkdir()
    assert (place.mnt / "a").stat().st_nlink == (place.src / "a").stat().st_nlink == 3
    (place.mnt / "a" / "b").rename(place.mnt / "c" / "b")
    assert (place.mnt / "a").stat().st_nlink == 2
    assert (place.mnt / "c").stat().st_nlink == 3
    assert (place.mnt / "c" / "b" / "..").stat().st_ino == (place.mnt / "c").stat().st_ino
    with fails(errno.ENOTEMPTY):
        (place.mnt / "c").rmdir()


@pytest.mark.once
def test_a_hundred_thousand_entries(place: Place) -> None:
    """Ten times the entries take about ten times as long; quadratic would be a hundred times."""
    seconds = {}
    for count in (10_000, 100_000):
        (place.src / str(count)).mkdir()
        fill(place.src / str(count), count)
        start = time.monotonic()
        names = os.listdir(place.mnt / str(count))
        seconds[count] = time.monotonic() - start
        assert len(names) == len(set(names)) == count
    assert seconds[100_000] < 45 * max(seconds[10_000], 0.1), seconds
    large = place.mnt / "100000"
    for i in range(0, 100_000, 9973):
        assert (large / f"entry-{i:06d}").stat().st_size == 0
    (large / "entry-050000").unlink()
    assert not (place.src / "100000" / "entry-050000").exists()


@pytest.mark.once
def test_many_files_need_few_descriptors(mounts: MountFactory, real: str) -> None:
    """A guest that knows 6,000 files makes the host hold a bounded number of descriptors (limit here: 1,024)."""
    mount = mounts("--readers", "8", runner=Runner(prefix=("prlimit", "--nofile=1024:1024")))
    fill(mount.source, 6000)
    listed = list(os.scandir(mount.path))
    assert len(listed) == 6000
    assert sum(entry.stat().st_size for entry in listed) == 0
    for i in range(0, 6000, 37):
        path = mount.path / f"entry-{i:06d}"
        path.write_text(str(i))
        assert path.read_text() == str(i)
    for pid in mount.session_pids():
        assert len(os.listdir(f"/proc/{pid}/fd")) < 1024
