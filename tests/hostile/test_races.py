"""A program of the host swaps what has a name while a guest works with it: the guest never leaves its volume."""

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fusepipe.wire import Op
from tests.hostile.conftest import ME, SECRET, Place
from tests.hostile.rogue import Rogue

ROOT = 1
CLEANUP = 64
ROUNDS = 150
RENAME_EXCHANGE = 2
AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)


def exchange(one: Path, other: Path) -> None:
    if _libc.renameat2(AT_FDCWD, bytes(one), AT_FDCWD, bytes(other), RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), "renameat2")


class Swapper:
    """Exchanges two names as quickly as it can."""

    def __init__(self, one: Path, other: Path) -> None:
        self.swaps = 0
        self._names = one, other
        self._stop = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            exchange(*self._names)
            self.swaps += 1

    def stop(self) -> None:
        self._stop.set()
        self.thread.join(60)
        assert not self.thread.is_alive()


@contextmanager
def swapping(one: Path, other: Path) -> Iterator[Swapper]:
    swapper = Swapper(one, other)
    swapper.thread.start()
    try:
        yield swapper
    finally:
        swapper.stop()


def outside(place: Place) -> list[object]:
    """Everything that can be seen of what is outside, but for times of reading."""
    seen: list[object] = [sorted(os.listdir(place.outside))]
    for path in (place.outside, place.outside / "secret"):
        st = path.lstat()
        seen.append((st.st_mode, st.st_uid, st.st_gid, st.st_size, st.st_mtime_ns, st.st_nlink, os.listxattr(path)))
    return seen


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_a_directory_and_a_symlink(rogue: Rogue, place: Place, relative: bool) -> None:
    (place.volume / "d").mkdir()
    (place.volume / "d" / "secret").write_bytes(b"the guest's own")
    (place.volume / "e").symlink_to("../outside" if relative else place.outside)
    before = outside(place)
    directories = links = done = 0
    with swapping(place.volume / "d", place.volume / "e") as swapper:
        while done < ROUNDS or not (directories and links and swapper.swaps > 100):
            done += 1
            found = rogue.call(Op.LOOKUP, ROOT, b"d")
            assert found[0] == 0
            node, mode = found[1][0], found[1][1][1]
            if mode & 0o170000 == 0o120000:
                links += 1
                wanted = {"ENOTDIR"}
            else:
                directories += 1
                wanted = {"0"}
            name = b"made%d" % done
            assert rogue.errno(Op.MKDIR, node, name, 0o700, 0, *ME) in wanted
            assert rogue.errno(Op.RMDIR, node, name) in wanted
            assert rogue.errno(Op.CREATE, node, name, os.O_RDWR, 0o600, 0, *ME, False) in wanted
            assert rogue.errno(Op.RENAME, node, name, node, b"renamed", 0) in wanted
            assert rogue.errno(Op.UNLINK, node, b"renamed") in wanted
            secret = rogue.call(Op.LOOKUP, node, b"secret")
            assert secret[0] == 0 if "0" in wanted else secret[0] != 0
            rogue.request(Op.READLINK, node)
            rogue.reply()
            rogue.call(Op.SETATTR, node, 0, 1, 0o700, 0, 0, 0, 0, 0, 0, 0)
            rogue.call(Op.SETATTR, node, 0, 128 | 256, 0, 0, 0, 0, 0, 0, 0, 0)
            rogue.call(Op.SETXATTR, node, b"user.mine", b"1", 0)
            opened = rogue.call(Op.OPENDIR, node, 0)
            if not opened[0]:
                rogue.call(Op.CLEANUP, b"", opened[1].to_bytes(8, "little"), b"", slot=CLEANUP)
    assert outside(place) == before


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_a_file_and_a_symlink(rogue: Rogue, place: Place, relative: bool) -> None:
    (place.volume / "f").write_bytes(b"the guest's own")
    (place.volume / "g").symlink_to("../outside/secret" if relative else place.outside / "secret")
    before = outside(place)
    files = links = done = 0
    with swapping(place.volume / "f", place.volume / "g") as swapper:
        while done < ROUNDS or not (files and links and swapper.swaps > 100):
            done += 1
            node = rogue.call(Op.LOOKUP, ROOT, b"f")[1][0]
            opened = [rogue.call(Op.OPEN, node, os.O_RDWR | os.O_TRUNC, False, 0, 0)]
            created = rogue.call(Op.CREATE, ROOT, b"f", os.O_RDWR | os.O_TRUNC, 0o600, 0, *ME, False)
            if created[0] == 0:
                opened.append([0, created[2]])
            for reply in opened:
                if reply[0]:
                    links += 1
                    continue
                files += 1
                handle = reply[1]
                assert rogue.call(Op.WRITE, handle, 0, 0, payload=b"written")[0] == 0
                rogue.request(Op.READ, handle, 0, 100)
                frame = rogue.frame()
                assert frame is not None and SECRET not in bytes(frame.payload)
                rogue.call(Op.CLEANUP, b"", handle.to_bytes(8, "little"), b"", slot=CLEANUP)
            rogue.call(Op.SETATTR, node, 0, 8, 0, 0, 0, 3, 0, 0, 0, 0)
            rogue.call(Op.SETATTR, node, 0, 1, 0o666, 0, 0, 0, 0, 0, 0, 0)
            rogue.call(Op.SETATTR, node, 0, 2 | 4, 0, ME[0], ME[1], 0, 0, 0, 0, 0)
            rogue.call(Op.SETATTR, node, 0, 128 | 256, 0, 0, 0, 0, 0, 0, 0, 0)
            rogue.call(Op.SETXATTR, node, b"user.mine", b"1", 0)
            name = b"linked%d" % done
            if rogue.call(Op.LINK, node, ROOT, name)[0] == 0:
                assert rogue.errno(Op.UNLINK, ROOT, name) == "0"
    assert outside(place) == before
