"""What is measured.  Every measure works in a directory of its own in each system's mount."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import load
from bench.load import Tools

COLD, GUEST, WARM, ONCE = "cold", "guest", "warm", ""
"""What is known before a run: nothing (caches of guest and host dropped), nothing in the guest, what the same run left
behind, and whatever there is."""

MIB = 1 << 20
PAGE = 4096


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    small: int  # files of 4 KiB
    many: int  # files for names and attributes
    tree: int  # files of the tree
    stream: int  # bytes of the file for fio
    random: int  # random requests
    rounds: int


FULL = Size(1024, 10_000, 10_000, 256 * MIB, 4096, 5)
QUICK = Size(512, 2000, 1000, 64 * MIB, 1024, 3)
TINY = Size(16, 40, 40, 1 * MIB, 16, 1)
"""Only shows that everything runs."""


@dataclass(frozen=True)
class Measure:
    """One line of the tables.

    work     files, or requests of a program: what times are divided by to compare costs
    data     name of the directory in which it works; measures with the same one share it
    prepare  makes on the host, untimed, what the run needs, in that directory, which is empty
    run      does it in the same directory seen through the mount, and says how many seconds it took
    fresh    every run needs a new directory
    settle   the first run differs from later ones, so it is not counted
    """

    group: str
    name: str
    state: str
    threads: int
    work: int
    data: str
    prepare: Callable[[Path], None]
    run: Callable[[Path], float]
    fresh: bool = False
    settle: bool = False

    @property
    def title(self) -> str:
        threads = f", {self.threads} threads" if self.threads > 1 else ""
        return f"{self.name}{threads}{f', {self.state}' if self.state else ''}"


class Scenarios:
    """Makes the measures of a size.  `template` is a directory on the host for what is copied again and again."""

    def __init__(self, tools: Tools, size: Size, template: Path) -> None:
        self._tools = tools
        self._size = size
        self._tree = template / "tree"
        self._archive = template / "tree.tar"
        load.make_tree(self._tree, size.tree)
        load.timed("tar", "-cf", self._archive, "-C", template, "tree")

    def all(self) -> list[Measure]:
        return [*self.small_files(), *self.names(), *self.trees(), *self.streams()]

    # ---- 4 KiB each -------------------------------------------------------------------------------------------------

    def small_files(self) -> Iterator[Measure]:
        """The reads and the synced writes of the reference."""
        for threads in (1, 16, 64):
            yield self.read(threads, COLD)
            yield self.read(threads, WARM)
        for threads in (1, 16, 64):
            yield self.write(threads)

    def read(self, threads: int, state: str) -> Measure:
        """Open, read and close each of many files."""
        count = self._size.small

        def prepare(directory: Path) -> None:
            self._tools.small_files("create", 1, count, directory)

        def run(directory: Path) -> float:
            return self._tools.small_files("read", threads, count, directory)

        return Measure("small files", "read 4 KiB files", state, threads, count, "small", prepare, run)

    def write(self, threads: int) -> Measure:
        """Create, write, sync and close each of many files."""
        count = self._size.small if threads > 1 else max(1, self._size.small // 4)

        def run(directory: Path) -> float:
            return self._tools.small_files("fsync", threads, count, directory)

        name = "write 4 KiB files with fsync"
        return Measure("small files", name, ONCE, threads, count, "synced", nothing, run, fresh=True)

    # ---- names ------------------------------------------------------------------------------------------------------

    def names(self) -> Iterator[Measure]:
        """Operations on names and attributes alone."""
        count = self._size.many

        def measure(
            mode: str, state: str, threads: int, data: str, prepare: Callable[[Path], None], *, fresh: bool = False
        ) -> Measure:
            def run(directory: Path) -> float:
                return self._tools.small_files(mode, threads, count, directory)

            work = count * 2 if mode == "rename" else count
            return Measure("names", mode, state, threads, work, data, prepare, run, fresh)

        def empty_files(directory: Path) -> None:
            for k in range(count):
                (directory / f"f{k:05d}").touch()

        for threads in (1, 16):
            yield measure("create", ONCE, threads, "made", nothing, fresh=True)
            for state in (COLD, GUEST, WARM):
                yield measure("stat", state, threads, "empty", empty_files)
            yield measure("rename", ONCE, threads, "empty", empty_files)
            yield measure("unlink", ONCE, threads, "gone", empty_files, fresh=True)

    # ---- trees ------------------------------------------------------------------------------------------------------

    def trees(self) -> Iterator[Measure]:
        """Programs of everyday on a tree of many files."""
        files = self._size.tree

        def copied(directory: Path) -> None:
            load.timed("cp", "-a", self._tree, directory)

        def find(directory: Path) -> float:
            return load.timed("find", directory, "-newer", "/", "-size", "+1k")

        def status(directory: Path) -> float:
            return load.timed("git", "-c", "safe.directory=*", "-C", directory / "tree", "status", "--porcelain")

        def tar_out(directory: Path) -> float:
            # through a pipe: with its output on /dev/null tar reads no file
            return load.shell('tar -cf - -C "$1" tree | cat >/dev/null', directory)

        def tar_in(directory: Path) -> float:
            return load.timed("tar", "-xf", self._archive, "-C", directory)

        def remove(directory: Path) -> float:
            return load.timed("rm", "-rf", directory / "tree")

        for state in (COLD, WARM):
            yield Measure("trees", "find", state, 1, files, "tree", copied, find)
        for state in (COLD, WARM):
            yield Measure("trees", "git status", state, 1, files, "tree", copied, status, settle=True)
        for state in (COLD, WARM):
            yield Measure("trees", "tar out", state, 1, files, "tree", copied, tar_out)
        yield Measure("trees", "tar in", ONCE, 1, files, "unpacked", nothing, tar_in, fresh=True)
        yield Measure("trees", "rm -rf", COLD, 1, files, "removed", copied, remove, fresh=True)

    # ---- large files ------------------------------------------------------------------------------------------------

    def streams(self) -> Iterator[Measure]:
        """fio on one large file."""
        size = self._size

        def make(directory: Path) -> None:
            load.timed("dd", "if=/dev/urandom", f"of={directory / 'file'}", "bs=1M", f"count={size.stream // MIB}")

        def measure(name: str, state: str, pattern: str, block: int, io: int, jobs: int, engine: str) -> Measure:
            def run(directory: Path) -> float:
                return load.fio(
                    directory / "file",
                    pattern,
                    block=block,
                    file_bytes=size.stream,
                    io_bytes=io,
                    jobs=jobs,
                    engine=engine,
                )

            return Measure("large files", name, state, jobs, max(1, io // block), "large", make, run)

        for block, words in ((PAGE, "4 KiB"), (64 * 1024, "64 KiB"), (MIB, "1 MiB")):
            for state in (COLD, WARM):
                yield measure(f"read in a row, {words}", state, "read", block, size.stream, 1, "psync")
            yield measure(f"write in a row, {words}", WARM, "write", block, size.stream, 1, "psync")
        io = size.random * PAGE
        for jobs in (1, 16):
            for state in (COLD, WARM):
                yield measure("read at random, 4 KiB", state, "randread", PAGE, io, jobs, "psync")
            yield measure("write at random, 4 KiB", WARM, "randwrite", PAGE, io, jobs, "psync")
        for state in (COLD, WARM):
            yield measure("mapped read in a row", state, "read", PAGE, size.stream, 1, "mmap")
            yield measure("mapped read at random", state, "randread", PAGE, io, 1, "mmap")


def nothing(directory: Path) -> None:
    """The run needs an empty directory."""
