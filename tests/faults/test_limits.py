"""What a session may take of the host, and that a guest which wants more still works.

    FUSEPIPE_FAULT_FILES=200000 FUSEPIPE_FAULT_REMOVED=100000 .venv/bin/python -m pytest tests/faults/test_limits.py

is the full size; by default a tree has 20,000 files, 5,000 come and go, and 2,000 removed ones are held.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.conftest import WATCHDOG
from tests.faults.statistics import Session
from tests.mount import children, mounttable
from tests.mount.harness import Mount, Runner, Watchdog

FILES = int(os.environ.get("FUSEPIPE_FAULT_FILES", "20000"))
"""How many files a tree has."""

REMOVED = int(os.environ.get("FUSEPIPE_FAULT_REMOVED", "2000"))
"""How many removed files a guest holds."""

LIMIT = 1024
"""RLIMIT_NOFILE of the server."""

PER_INODE = 300
"""Bytes that one inode may cost the session process."""

SLOW = 60 + (FILES + 10 * REMOVED) // 200
"""Seconds for what takes a fraction of that."""


@pytest.fixture
def tree(open_path: Path) -> Iterator[Path]:
    """An empty tmpfs, on which many files are made quickly."""
    path = open_path / "tree"
    path.mkdir()
    mounttable.mount("tmpfs", path, "tmpfs", 0, "size=1g,nr_inodes=1m")
    yield path
    mounttable.umount(path)


@contextmanager
def limited(source: Path, *options: str, limit: int = LIMIT) -> Iterator[tuple[Mount, Session]]:
    """`bind` of a directory whose server may open so many files, and its session."""
    with Mount(
        "bind",
        source,
        options=("--log-level", "info", "--log-format", "json", *options),
        runner=Runner(prefix=("prlimit", f"--nofile={limit}:{limit}")),
    ) as mount:
        assert mount.client is not None
        with Watchdog(mount, WATCHDOG + SLOW):
            yield mount, Session(mount.client.process.pid, mount.client.errors)


def plant(top: Path, count: int) -> None:
    """`count` empty files in folders of 1,000."""
    for first in range(0, count, 1000):
        folder = top / f"d{first}"
        folder.mkdir()
        for i in range(min(1000, count - first)):
            os.close(os.open(folder / f"f{i}", os.O_CREAT | os.O_WRONLY))


WALK = """
held = []
for i, (top, folders, files, here) in enumerate(os.fwalk(sys.argv[1])):
    for name in files:
        assert os.stat(name, dir_fd=here).st_size in (0, 4)
    for name in files[: min(int(sys.argv[2]), 500 - len(held))]:
        held.append(os.open(name, os.O_RDWR, dir_fd=here))
        os.pwrite(held[-1], b"held", 0)
print(len(held), flush=True)
sys.stdin.readline()
for fd in held:
    assert os.pread(fd, 10, 0) == b"held"
    os.close(fd)
"""


@pytest.mark.timeout(300 + 2 * SLOW)
def test_a_large_tree_with_few_descriptors(fuse: None, native: str, tree: Path) -> None:
    """With 1,024 descriptors on the host a guest walks a large tree and holds 500 of its files open."""
    plant(tree, FILES)
    each = -(-500 // (FILES // 1000))
    with limited(tree, "--native", native) as (mount, session):
        before, memory = session.statistics(), session.memory()
        walker = children.spawn(WALK, mount.path, each)
        try:
            assert int(children.read_line(walker, SLOW)) == 500
            session.wait_for({"handles": 500})
            for _ in range(5):
                known, used = session.statistics(), session.memory() - memory
                if known["inodes"] - before["inodes"] > FILES // 4:
                    break
                # Its memory is short, or somebody dropped its caches: then it has forgotten them.
                children.finish(children.spawn(WALK, mount.path, 0), SLOW)
            assert known["fds"] <= known["fd_budget"]
            assert session.descriptors() < LIMIT
            # The guest's kernel keeps what it has room for; what it forgot costs nothing and proves nothing.
            inodes = known["inodes"] - before["inodes"]
            assert inodes > FILES // 4
            assert used / inodes < PER_INODE, f"{used} bytes for {inodes} inodes"
            children.finish(children.spawn(WALK, mount.path, 0), SLOW)
            assert walker.stdin is not None
            walker.stdin.write("close\n")
            walker.stdin.flush()
            children.finish(walker, SLOW)
        finally:
            children.end_all()
        session.wait_for({"inodes": 1, "handles": 0}, lambda: mounttable.drop_dentries(mount.path))


WORKING_DIRECTORY = """
os.chdir(sys.argv[1])
os.mkdir("gone")
os.mkdir("gone/sub")
os.chdir("gone/sub")
kept = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
print("there", flush=True)
sys.stdin.readline()
os.rmdir("../sub")
os.rmdir("../../gone")
print("removed", flush=True)
sys.stdin.readline()
def outcome(call):
    try:
        return repr(call())
    except OSError as error:
        return errno.errorcode[error.errno]
for call in (
    lambda: os.listdir("."),
    lambda: os.listdir(kept),
    lambda: stat.S_ISDIR(os.stat(".").st_mode),
    lambda: os.fstat(kept).st_ino == os.stat(".").st_ino,
    lambda: stat.S_ISDIR(os.stat("..").st_mode),
    lambda: os.listdir(".."),
    lambda: os.getcwd(),
    lambda: os.open("file", os.O_CREAT | os.O_WRONLY),
    lambda: os.mkdir("folder"),
    lambda: os.symlink("x", "link"),
    lambda: os.stat("file"),
    lambda: os.chmod(".", 0o700),
    lambda: oct(stat.S_IMODE(os.stat(".").st_mode)),
    lambda: os.utime(".", (1, 1)),
    lambda: os.stat(".").st_mtime,
    lambda: os.setxattr(".", "user.x", b"1"),
    lambda: os.getxattr(".", "user.x"),
    lambda: os.fsync(kept),
    lambda: os.rmdir("../sub"),
    lambda: os.rename(".", "../again"),
    lambda: os.fchdir(kept),
    lambda: os.chdir(".."),
    lambda: os.chdir(".."),
):
    print(outcome(call))
"""


@pytest.mark.timeout(300)
def test_a_removed_working_directory(fuse: None, native: str, tree: Path, open_path: Path) -> None:
    """It answers what one on a local disk answers, also when the server has given up all other descriptors since."""
    local = open_path / "local"
    local.mkdir()
    mounttable.mount("tmpfs", local, "tmpfs", 0, "size=1m")
    plant(tree, 1200)
    said = []
    try:
        with limited(tree, "--native", native, "--cache", "none") as (mount, session):
            for place in (local, mount.path):
                program = children.spawn(WORKING_DIRECTORY, place)
                assert program.stdin is not None
                for line in ("there", "removed"):
                    assert children.read_line(program) == line
                    children.run(WALK, mount.path, 0, timeout=SLOW)
                    program.stdin.write("go\n")
                    program.stdin.flush()
                said.append(children.finish(program).splitlines())
            assert session.statistics()["evictions"] > 500
            assert session.statistics()["pins_given_up"] == 0
    finally:
        children.end_all()
        mounttable.umount(local)
    assert said[1] == said[0]
    assert len(said[0]) == 23


HOLD_REMOVED = """
O_PATH = os.O_PATH
os.mkdir(sys.argv[1])
os.chdir(sys.argv[1])
held = []
for i in range(int(sys.argv[2])):
    os.close(os.open(f"f{i}", os.O_CREAT | os.O_WRONLY))
    held.append(os.open(f"f{i}", O_PATH))
    os.unlink(f"f{i}")
print("held", flush=True)
sys.stdin.readline()
def known(fd):
    try:
        return os.stat(f"/proc/self/fd/{fd}").st_nlink == 0
    except OSError as error:
        assert error.errno == errno.ESTALE, error
        return False
print(sum(map(known, held)))
"""

OTHER_WORK = """
os.chdir(sys.argv[1])
held = []
for i in range(100):
    with open(f"other{i}", "w+") as file:
        file.write("data")
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"other{i}", f"renamed{i}")
    held.append(os.open(f"renamed{i}", os.O_RDWR))
assert sum(os.pread(fd, 10, 0) == b"data" for fd in held) == 100
assert len([name for name in os.listdir(".") if name.startswith("renamed")]) == 100
for i in range(100):
    os.close(held[i])
    os.unlink(f"renamed{i}")
"""


@pytest.mark.timeout(300 + 2 * SLOW)
def test_removed_files_that_are_held(fuse: None, native: str, tree: Path) -> None:
    """Many removed files held by descriptors that the host does not see starve nobody: the oldest are given up."""
    processes = 1 + (REMOVED - 1) // 10_000
    each = REMOVED // processes
    with limited(tree, "--native", native) as (mount, session):
        holders = [children.spawn(HOLD_REMOVED, mount.path / f"p{i}", each) for i in range(processes)]
        try:
            for holder in holders:
                assert children.read_line(holder, SLOW) == "held"
            children.run(OTHER_WORK, mount.path, timeout=SLOW)
            now = session.statistics()
            assert now["inodes"] >= processes * each
            assert now["fds"] <= now["fd_budget"]
            assert now["pinned"] >= now["fd_budget"] // 2 - 1
            assert now["pins_given_up"] >= processes * each - now["fd_budget"]
            assert session.descriptors() < LIMIT
            known = 0
            for holder in holders:
                assert holder.stdin is not None
                holder.stdin.write("look\n")
                holder.stdin.flush()
                known += int(children.finish(holder, SLOW))
            # What is pinned is what is still known.
            assert now["fd_budget"] // 2 - 110 <= known <= now["fd_budget"]
        finally:
            children.end_all()
        session.wait_for({"inodes": 1, "pinned": 0}, lambda: mounttable.drop_dentries(mount.path))


@pytest.fixture
def overlay(open_path: Path) -> Iterator[Path]:
    """A filesystem that opens nothing by file handle."""
    for name in ("lower", "upper", "work", "merged"):
        (open_path / name).mkdir()
    data = ",".join(f"{name}dir={open_path / name}" for name in ("lower", "upper", "work"))
    mounttable.mount("overlay", open_path / "merged", "overlay", 0, data)
    yield open_path / "merged"
    mounttable.umount(open_path / "merged")


WITHOUT_HANDLES = """
os.chdir(sys.argv[1])
names = os.listdir(".")
assert len(names) == 1000, len(names)
held, refused = [], 0
for name in names:
    try:
        held.append(os.open(name, os.O_PATH))
    except OSError as error:
        assert error.errno == errno.ENFILE, error
        refused += 1
print(len(held), refused)
print([os.fstat(fd).st_size for fd in held] == [4] * len(held))
for fd in held:
    os.close(fd)
"""


@pytest.mark.timeout(300)
def test_without_file_handles(fuse: None, native: str, overlay: Path) -> None:
    """On overlayfs the budget limits what a guest knows: all names are listed; beyond it ENFILE, and it heals."""
    plant(overlay, 1000)
    for i in range(1000):
        (overlay / "d0" / f"f{i}").write_text("data")
    with limited(overlay, "--native", native) as (mount, session):
        budget = session.statistics()["fd_budget"]
        counts, right = children.run(WITHOUT_HANDLES, mount.path / "d0", timeout=SLOW).splitlines()
        held, refused = map(int, counts.split())
        assert (held + refused, right) == (1000, "True")
        assert budget - 50 < held <= budget
        session.wait_for({"inodes": 1, "handles": 0}, lambda: mounttable.drop_dentries(mount.path))
        for i in range(0, 1000, 10):
            assert (mount.path / "d0" / f"f{i}").read_text() == "data"


COME_AND_GO = """
import threading
os.chdir(sys.argv[1])
threads, each = int(sys.argv[2]), int(sys.argv[3])
wrong = []
def work(me):
    try:
        for i in range(each):
            name = f"{me}-{i}"
            fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            assert os.stat(name).st_nlink == 1
            if i % 3 == 0:
                os.close(fd)
            again = os.open(name, os.O_RDONLY)
            if i % 3 == 1:
                os.close(fd)
            os.unlink(name)
            if i % 3 == 2:
                os.close(fd)
            os.close(again)
            assert not os.path.exists(name)
    except BaseException as error:
        wrong.append(repr(error))
all_of_them = [threading.Thread(target=work, args=(me,)) for me in range(threads)]
for thread in all_of_them:
    thread.start()
for thread in all_of_them:
    thread.join()
assert not wrong, wrong[:3]
"""


@pytest.mark.timeout(300 + 2 * SLOW)
def test_what_256_readers_give_back(fuse: None, native: str, tree: Path) -> None:
    """RELEASE and FORGET keep up with many threads that open, close and remove; in the end nothing is held."""
    with limited(tree, "--native", native, "--readers", "256", limit=20_000) as (mount, session):
        programs = []
        for who in "abcd":
            (tree / who).mkdir()
            programs.append(children.spawn(COME_AND_GO, mount.path / who, 32, FILES // 512))
        try:
            for program in programs:
                children.finish(program, SLOW)
        finally:
            children.end_all()
        session.wait_for({"inodes": 1, "handles": 0}, lambda: mounttable.drop_dentries(mount.path))
