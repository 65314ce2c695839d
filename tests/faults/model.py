"""One thread's folder and what must be in it: random calls, each compared with a model."""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
from collections import deque
from collections.abc import Callable
from errno import EIO
from pathlib import Path

from tests.mount.expect import fails
from tests.support import world

MOST_NAMES = 12
"""Names in one folder; more are removed before others are made."""

DEEPEST = 3


class File:
    """A regular file: what it contains, and how many names it has."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.links = 1


class Link(str):
    """A symbolic link and where it leads."""


class Folder:
    """A folder and what it contains, by name."""

    def __init__(self) -> None:
        self.entries: dict[str, Node] = {}


Node = File | Link | Folder


class Bears:
    """Calls that may have EIO as their answer, because the session's process died: whether they took effect is seen on
    the host, and then in the mount, where what its kernel has cached may hide it for a moment."""

    def __init__(self, mount: Path, volume: Path) -> None:
        self._mount = mount
        self._volume = volume
        self.failed = 0
        """How many calls had it."""

    def host(self, path: Path) -> Path:
        """The same on the host."""
        return self._volume / path.relative_to(self._mount)

    def settle(self, path: Path, happened: Callable[[Path], bool]) -> bool:
        """Whether a call that had EIO took effect, as `happened` says of the path."""
        self.failed += 1
        done = happened(self.host(path))
        assert world.wait_until(lambda: happened(path) == done, 60), f"{path}: not as on the host"
        return done

    def grown(self, fd: int, size: int, least: int, most: int) -> int:
        """By how much an append made an open file grow, which may have no name.

        A long one is several requests, of which those after the first EIO are not made.
        """
        self.failed += 1

        def asked() -> bool:
            try:
                os.fchmod(fd, os.fstat(fd).st_mode & 0o7777)  # its answer says the size, whatever is cached
            except OSError as error:
                assert error.errno == EIO, error
                return False
            return True

        assert world.wait_until(asked, 60), "fchmod fails for good"
        more = os.fstat(fd).st_size - size
        assert least <= more <= most, f"{more} bytes more, where {least} to {most} were appended"
        return more


class Worker:
    """Random calls in the folder `top`, which is empty and nobody else's, and the model of what they did."""

    def __init__(self, top: Path, seed: str, bears: Bears | None = None) -> None:
        """`bears`: calls may end with EIO, as it says."""
        self.top = top
        self._bears = bears
        self.folder = Folder()
        self.history: deque[str] = deque(maxlen=6)
        """The last calls, for the report of a failure."""
        self._rng = random.Random(seed)
        self._number = 0
        self._open: list[tuple[int, File]] = []
        self._steps: tuple[Callable[[], None], ...] = (
            self._mkdir, self._mkdir, self._create, self._create, self._create, self._append, self._append,
            self._append, self._rename, self._rename, self._link, self._link, self._unlink, self._unlink, self._rmdir,
            self._symlink, self._truncate, self._read, self._stat, self._list, self._lock, self._keep_open,
            self._use_open,
        )  # fmt: skip

    def step(self) -> None:
        """One random call.  AssertionError or OSError where it does not do what it should."""
        self._rng.choice(self._steps)()

    def end(self) -> None:
        """Close what is open."""
        while self._open:
            os.close(self._open.pop()[0])

    # ---- calls that an answer may be missing for

    def _do(self, call: Callable[[], object], path: Path, happened: Callable[[Path], bool]) -> bool:
        """Make a call: whether it took effect."""
        try:
            call()
        except OSError as error:
            if self._bears is None or error.errno != EIO:
                raise
            return self._bears.settle(path, happened)
        return True

    def _fails(self, code: int, call: Callable[[], object]) -> None:
        """Make a call that must fail."""
        codes = (code,) if self._bears is None else (code, EIO)
        with fails(*codes):
            call()

    # ---- choosing

    def _note(self, text: str) -> None:
        self.history.append(text)

    def _new_name(self) -> str:
        self._number += 1
        return f"n{self._number}"

    def _folder(self) -> tuple[Path, Folder]:
        """A random folder."""
        path, folder = self.top, self.folder
        for _ in range(self._rng.randrange(DEEPEST)):
            below = [(name, one) for name, one in folder.entries.items() if isinstance(one, Folder)]
            if not below:
                break
            name, folder = self._rng.choice(below)
            path = path / name
        return path, folder

    def _roomy(self) -> tuple[Path, Folder] | None:
        """A random folder with room; where it is full, a file of it is removed instead."""
        path, folder = self._folder()
        if len(folder.entries) < MOST_NAMES:
            return path, folder
        for name, node in folder.entries.items():
            if not isinstance(node, Folder):
                self._remove(path, folder, name)
                break
        return None

    def _some(self, kind: type[File] | None) -> tuple[Path, Folder, str, Node] | None:
        """A random name of that kind, or any."""
        path, folder = self._folder()
        names = [name for name, node in folder.entries.items() if kind is None or isinstance(node, kind)]
        if not names:
            return None
        name = self._rng.choice(names)
        return path, folder, name, folder.entries[name]

    def _file(self) -> tuple[Path, File] | None:
        found = self._some(File)
        if found is None:
            return None
        path, _folder, name, node = found
        assert isinstance(node, File)
        return path / name, node

    # ---- names

    def _mkdir(self) -> None:
        found = self._roomy()
        if found is None:
            return
        path, folder = found
        if self._rng.random() < 0.2 and folder.entries:
            taken = path / self._rng.choice(list(folder.entries))
            self._fails(17, lambda: os.mkdir(taken))
            return
        if len(path.parts) - len(self.top.parts) >= DEEPEST:
            return
        name = self._new_name()
        self._note(f"mkdir {path / name}")
        if self._do(lambda: os.mkdir(path / name), path / name, os.path.lexists):
            folder.entries[name] = Folder()

    def _create(self) -> None:
        found = self._roomy()
        if found is None:
            return
        path, folder = found
        if self._rng.random() < 0.2 and folder.entries:
            taken = path / self._rng.choice(list(folder.entries))
            self._fails(17, lambda: os.open(taken, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            return
        name = self._new_name()
        self._note(f"create {path / name}")
        new = path / name
        if self._do(lambda: os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640)), new, os.path.lexists):
            folder.entries[name] = File()

    def _symlink(self) -> None:
        found = self._roomy()
        if found is not None:
            path, folder = found
            name = self._new_name()
            self._note(f"symlink {path / name}")
            if self._do(lambda: os.symlink(f"to-{name}", path / name), path / name, os.path.lexists):
                folder.entries[name] = Link(f"to-{name}")

    def _link(self) -> None:
        target = self._roomy()  # first, since it may remove a file
        source = self._file()
        if source is None or target is None:
            return
        (old, file), (path, folder) = source, target
        name = self._new_name()
        self._note(f"link {old} {path / name}")
        if self._do(lambda: os.link(old, path / name), path / name, os.path.lexists):
            file.links += 1
            folder.entries[name] = file

    def _rename(self) -> None:
        found = self._some(None)
        if found is None:
            return
        path, folder, name, node = found
        to_path, to_folder = self._folder()
        if isinstance(node, Folder):
            to_path, to_folder = path, folder  # never into itself
        over = self._some(File) if isinstance(node, File) and self._rng.random() < 0.3 else None
        if over is not None and over[3] is not node:
            to_path, to_folder, to_name, replaced = over
            assert isinstance(replaced, File)
            replaced.links -= 1
        else:
            to_name = self._new_name()
        self._note(f"rename {path / name} {to_path / to_name}")
        os.rename(path / name, to_path / to_name)
        del folder.entries[name]
        to_folder.entries[to_name] = node
        with fails(2):
            os.rename(path / name, to_path / "never")

    def _unlink(self) -> None:
        found = self._some(None)
        if found is not None and not isinstance(found[3], Folder):
            self._remove(*found[:3])

    def _remove(self, path: Path, folder: Folder, name: str) -> None:
        self._note(f"unlink {path / name}")
        os.unlink(path / name)
        node = folder.entries.pop(name)
        if isinstance(node, File):
            node.links -= 1
        with fails(2):
            os.unlink(path / name)

    def _rmdir(self) -> None:
        path, folder = self._folder()
        for name, node in folder.entries.items():
            if isinstance(node, Folder):
                self._note(f"rmdir {path / name}")
                if node.entries:
                    with fails(39):
                        os.rmdir(path / name)
                else:
                    os.rmdir(path / name)
                    del folder.entries[name]
                return

    # ---- files

    def _data(self) -> bytes:
        self._number += 1
        return f"<{self._number}>".encode() * self._rng.choice((1, 5, 50, 500, 20_000))

    def _append(self) -> None:
        found = self._file()
        if found is not None:
            path, file = found
            self._note(f"append {path}")
            fd = os.open(path, os.O_WRONLY | os.O_APPEND)
            try:
                self._append_to(fd, file)
            finally:
                os.close(fd)

    def _append_to(self, fd: int, file: File) -> None:
        data, written = self._data(), 0
        try:
            written = os.write(fd, data)
        except OSError as error:
            if self._bears is None or error.errno != EIO:
                raise
        if self._bears is not None and written < len(data):
            written = self._bears.grown(fd, len(file.content), written, len(data))
            file.content += data[:written]
            return
        assert written == len(data), f"{written} bytes of {len(data)} were written"
        file.content += data
        if self._rng.random() < 0.3:
            os.fsync(fd)

    def _truncate(self) -> None:
        found = self._file()
        if found is not None:
            path, file = found
            size = self._rng.randrange(2 * len(file.content) + 2) % 200_000
            self._note(f"truncate {path} {size}")
            if self._do(lambda: os.truncate(path, size), path, lambda seen: os.stat(seen).st_size == size):
                del file.content[size:]
                file.content += bytes(size - len(file.content))

    def _read(self) -> None:
        found = self._file()
        if found is not None:
            path, file = found
            self._note(f"read {path}")
            check_content(path.read_bytes(), file, str(path))

    def _stat(self) -> None:
        found = self._file()
        if found is not None:
            path, file = found
            st = os.stat(path)
            assert (st.st_nlink, st.st_size) == (file.links, len(file.content)), f"{path}: {st}"

    def _list(self) -> None:
        path, folder = self._folder()
        assert sorted(os.listdir(path)) == sorted(folder.entries), str(path)

    def _lock(self) -> None:
        """Two open file descriptions and two flocks of one file exclude each other, and give up."""
        found = self._file()
        if found is None:
            return
        path, _file = found
        self._note(f"lock {path}")
        one, other = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
        try:
            fcntl.flock(one, fcntl.LOCK_EX)
            with fails(11):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(one, fcntl.LOCK_UN)
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.lockf(one, fcntl.LOCK_EX, 10, 0)
            fcntl.lockf(one, fcntl.LOCK_UN, 5, 0)
        finally:
            os.close(other)
            os.close(one)

    def _keep_open(self) -> None:
        """A file that stays open, whatever becomes of its names."""
        found = self._file()
        if found is not None and len(self._open) < 6:
            path, file = found
            self._note(f"open {path}")
            self._open.append((os.open(path, os.O_RDWR | os.O_APPEND), file))

    def _use_open(self) -> None:
        if not self._open:
            return
        fd, file = self._open[0]
        self._note("use an open file")
        self._append_to(fd, file)
        check_content(os.pread(fd, len(file.content) + 1, 0), file, "an open file")
        assert os.fstat(fd).st_nlink == file.links
        if self._rng.random() < 0.5:
            os.close(self._open.pop(0)[0])


def check_content(found: bytes, file: File, what: str) -> None:
    """AssertionError where a file contains something else."""
    if found != file.content:
        first = next((i for i, (a, b) in enumerate(zip(found, file.content, strict=False)) if a != b), None)
        raise AssertionError(
            f"{what}: {len(found)} bytes ({hashlib.sha256(found).hexdigest()[:8]}) instead of {len(file.content)}; "
            f"the first other one is at {first}"
        )


def check_tree(path: Path, folder: Folder) -> None:
    """AssertionError where a directory is not as the model says."""
    with os.scandir(path) as entries:
        found = {entry.name: entry for entry in entries}
    assert sorted(found) == sorted(folder.entries), f"{path}: {sorted(found)} instead of {sorted(folder.entries)}"
    for name, node in folder.entries.items():
        if isinstance(node, Folder):
            check_tree(path / name, node)
        elif isinstance(node, File):
            check_content((path / name).read_bytes(), node, str(path / name))
            assert found[name].stat().st_nlink == node.links, f"links of {path / name}"
        else:
            assert os.readlink(path / name) == node, str(path / name)
