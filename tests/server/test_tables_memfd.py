"""The memfd: sealed, allocated before use, and mapped again after its process was killed."""

import errno
import fcntl
import os
import select
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fusepipe.server.tables import Tables, create_memfd
from fusepipe.syscalls import bytes_per_inode
from fusepipe.wire import Kept, Op, SlotState
from tests.server.volume import ROOT, SLOTS, Volume, fails

F_ADD_SEALS, F_GET_SEALS = 1033, 1034
SEALS = 1 | 2 | 4  # SEAL, SHRINK, GROW

needs_handles = pytest.mark.skipif(os.geteuid() != 0, reason="opening by file handle needs CAP_DAC_READ_SEARCH")


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = create_memfd(SLOTS)
    yield fd
    os.close(fd)


def test_its_size_is_sealed_and_costs_nothing(memfd: int) -> None:
    assert fcntl.fcntl(memfd, F_GET_SEALS) & SEALS == SEALS
    for size in (0, 1 << 40):
        with pytest.raises(PermissionError):
            os.ftruncate(memfd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(memfd, F_ADD_SEALS, 8)
    assert os.fstat(memfd).st_blocks * 512 < 1 << 16
    assert not os.get_inheritable(memfd)


def test_what_an_inode_costs(memory: Path, serve: Callable[..., Volume]) -> None:
    assert bytes_per_inode() < 300
    volume = serve(memory)
    before = os.fstat(volume.memfd).st_blocks * 512
    count = 5000
    for number in range(count):
        (memory / str(number)).touch()
    handle = volume(Op.OPENDIR, ROOT, 0).handle
    for _ in volume.pages(handle, 1 << 20):
        pass
    assert volume.count("inodes") == count + 1
    assert (os.fstat(volume.memfd).st_blocks * 512 - before) / count < 300 - 32


def test_memfds_of_others(tmp_path: Path) -> None:
    fd = os.memfd_create("other", os.MFD_ALLOW_SEALING)
    try:
        for size in (0, 1 << 20):
            os.ftruncate(fd, size)
            with pytest.raises(ValueError, match="does not hold tables"):
                Tables(fd, os.fspath(tmp_path), fd_budget=100, privileged=False)
        fcntl.fcntl(fd, F_ADD_SEALS, SEALS)
        with pytest.raises(ValueError, match="does not hold tables"):
            Tables(fd, os.fspath(tmp_path), fd_budget=100, privileged=False)
    finally:
        os.close(fd)


def test_a_memfd_belongs_to_one_directory(memfd: int, tmp_path: Path) -> None:
    Tables(memfd, os.fspath(tmp_path), fd_budget=100, privileged=False).close()
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="another directory"):
        Tables(memfd, os.fspath(tmp_path / "other"), fd_budget=100, privileged=False)


def test_roots_that_are_none(memfd: int, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError):
        Tables(memfd, os.fspath(tmp_path / "missing"), fd_budget=100, privileged=False)
    with pytest.raises(NotADirectoryError):
        Tables(memfd, os.fspath(tmp_path / "file"), fd_budget=100, privileged=False)
    with pytest.raises(ValueError, match="least is 16"):
        Tables(memfd, os.fspath(tmp_path), fd_budget=15, privileged=False)


def test_closing_twice_and_calling_after_it(memfd: int, tmp_path: Path) -> None:
    tables = Tables(memfd, os.fspath(tmp_path), fd_budget=100, privileged=False)
    tables.close()
    tables.close()
    with pytest.raises(TypeError):
        tables.tree.lookup(1, b"x")


CHILD = """
import os, sys, time
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from tests.server.volume import ROOT, Volume
from fusepipe.wire import Kept, Op

volume = Volume(Path(sys.argv[1]), memfd=int(sys.argv[2]))
directory = volume.mkdir(b"dir")
file, handle = volume.create(b"file", directory.node, flags=os.O_RDWR | os.O_EXCL)
volume.write(handle, b"first")
appending = volume.open(file.node, os.O_RDWR | os.O_APPEND | os.O_TRUNC)
volume.write(handle, b"first")
volume.lookup(b"file", directory.node)
listing = volume(Op.OPENDIR, directory.node, 0).handle
volume.page(listing)
forgotten = volume.mkdir(b"forgotten").node
volume.forget(forgotten)
slots = volume.tables.slots
slots.run(0, 5, Op.MKDIR)
slots.done(0, Kept(b"header", b"payload"))
slots.run(1, 6, Op.READDIR)
slots.done(1, Kept(b"header", bytes(5000)))
slots.run(2, 7, Op.WRITE)
slots.run(3, 8, Op.READ)
slots.done(3, None)
print(directory.node, file.node, handle, appending, listing, forgotten, flush=True)
time.sleep(60)
"""


@needs_handles
def test_another_process_goes_on(memfd: int, directory: Path) -> None:
    here = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, directory, str(memfd), here], stdout=subprocess.PIPE, text=True, pass_fds=[memfd]
    ) as child:
        assert child.stdout is not None
        try:
            assert select.select([child.stdout], [], [], 30)[0]
            dir_node, file_node, handle, appending, listing, forgotten = map(int, child.stdout.readline().split())
        finally:
            child.send_signal(signal.SIGKILL)
    with Volume(directory, memfd=memfd) as volume:
        now = volume.tables.statistics()
        # root, directory once, file: created, looked up, listed
        assert (now["inodes"], now["lookups"], now["handles"]) == (3, 1 + 1 + 3, 3)
        assert volume.lookup(b"dir").node == dir_node
        assert volume(Op.GETATTR, file_node, 0).attr.ino == (directory / "dir" / "file").stat().st_ino
        assert volume.read(handle) == b"first", "neither O_TRUNC nor O_EXCL happens again"
        volume.write(appending, b" second", 0)
        assert volume.read(handle) == b"first second"
        assert {entry.name for entry in volume.page(listing)} == {b".", b"..", b"file"}
        assert volume.count("lookups") == 1 + 2 + 4
        with fails(errno.ESTALE):
            volume(Op.GETATTR, forgotten, 0)
        for node in (volume.mkdir(b"new").node, volume.mkdir(b"newer").node):
            assert node not in (dir_node, file_node, forgotten)

        slots = volume.tables.slots
        assert slots.load(0) == (5, SlotState.DONE, Op.MKDIR)
        assert slots.reply(0) == Kept(b"header", b"payload")
        assert slots.load(1) == (6, SlotState.FREE, Op.READDIR), "its reply is gone: it runs again"
        assert slots.reply(1) is None
        assert slots.load(2) == (7, SlotState.BROKEN, Op.WRITE)
        assert slots.load(3) == (8, SlotState.DONE, Op.READ)
        assert slots.load(4) == (0, SlotState.FREE, 0)

        for number in (handle, appending, listing):
            volume.release(number)
        volume.forget(file_node, 4)
        volume.forget(dir_node, 2)
        assert volume.count("inodes") == 3
        assert volume.count("overforgotten") == 0


@needs_handles
def test_a_deleted_file_is_stale_afterwards_and_its_successor_is_another(memfd: int, open_path: Path) -> None:
    with Volume(open_path, memfd=memfd) as volume:
        entry, handle = volume.create(b"f")
    (open_path / "f").unlink()
    (open_path / "f").write_bytes(b"new")
    with Volume(open_path, memfd=memfd) as volume:
        with fails(errno.ESTALE):
            volume(Op.GETATTR, entry.node, 0)
        with fails(errno.ESTALE):
            volume.read(handle)
        assert volume.lookup(b"f").node != entry.node
        volume.release(handle)
        volume.forget(entry.node)
        assert volume.count("overforgotten") == 0


def test_a_row_whose_inode_nobody_needs_goes_at_mapping(memfd: int, open_path: Path) -> None:
    """What is left where a process died between the last forget and the end of the row; here: all lookups forgotten."""
    with Volume(open_path, memfd=memfd) as volume:
        entry, handle = volume.create(b"f")
        volume.forget(entry.node)
        assert volume.count("inodes") == 2
    with Volume(open_path, memfd=memfd) as volume:
        assert volume.count("inodes") == 2, "the handle holds it"
        volume.release(handle)
        assert volume.is_empty()
    with Volume(open_path, memfd=memfd) as volume:
        assert volume.is_empty()


def test_modes_that_never_change_are_in_the_row(memfd: int, open_path: Path) -> None:
    os.mkfifo(open_path / "fifo")
    with Volume(open_path, memfd=memfd) as volume:
        node = volume.lookup(b"fifo").node
    with Volume(open_path, memfd=memfd) as volume, fails(errno.ENXIO if os.geteuid() == 0 else errno.ESTALE):
        volume.open(node, os.O_RDONLY)
    assert stat.S_ISFIFO((open_path / "fifo").stat().st_mode)
