"""The filesystem under test: any directory, or a fusepipe mount that is made for the run."""

import contextlib
import dataclasses
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .filesystems import KINDS, VOLUME_KIB, new_filesystem

WAYS = ("host", "bind", "serve")
READY_SECONDS = 60.0
END_SECONDS = 15.0
# What `serve` warns of is true here: users of the host act on the volume, and set-uid programs are cases of the suite.
_DIRTY = re.compile(
    r"^(?:\S+Z warning server: \"?(?!guests can leave there)|\S+Z warning (?! *server)|\S+Z error |Traceback "
    r"|Fatal Python error|.*Sanitizer).*",
    re.M,
)
_CHECKOUT = str(Path(__file__).resolve().parents[3])
_LOCAL = ("ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "tmpfs", "overlay", "zfs", "bcachefs")


@dataclass(frozen=True)
class Target:
    """Where the cases run."""

    path: str
    """The directory under test."""
    behind: str | None
    """The same directory, seen without what is under test; None if nobody knows."""
    filesystem: str
    """Its type, as /proc/self/mountinfo has it."""
    fusepipe: bool
    mounter: "Mounter | None" = None
    """How a further mount of the same kind is made."""

    @property
    def plain(self) -> bool:
        """Nothing but a local filesystem of the kernel is under test, so that another one stands for it."""
        return self.filesystem in _LOCAL

    @property
    def below(self) -> str:
        """The type of the filesystem that holds the files; "" if nobody knows."""
        return mounted_at(self.behind)[1] if self.behind else ""

    @property
    def empty_directory_nlink(self) -> int:
        """btrfs does not count the entries for "." and ".."."""
        return 1 if self.below == "btrfs" else 2


class Complained(AssertionError):
    """A fusepipe command logged an error or a warning, which no case expects; the lines are in the message."""


class CannotStart(RuntimeError):
    """A fusepipe command did not become ready; its output is in the message."""


@dataclass(frozen=True)
class Mounter:
    """Mounts directories through fusepipe, by `bind` or by `serve` and `mount`."""

    way: str
    command: tuple[str, ...]
    mount_options: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    """For each of the programs."""
    running: list[int] = field(default_factory=list)
    """The processes that were started and still run, the oldest first."""

    @contextmanager
    def mount(self, source: str, scratch: str) -> Iterator[str]:
        """Show `source` at a new mount point below `scratch`."""
        mountpoint = tempfile.mkdtemp(prefix="mnt-", dir=scratch)
        os.chmod(mountpoint, 0o755)
        options = [word for option in self.mount_options for word in ("-o", option)]
        with ExitStack() as stack:
            stack.callback(remove_mountpoint, mountpoint)
            if self.way == "bind":
                stack.enter_context(self._running("bind", source, mountpoint, *options))
            else:
                address = f"unix:{tempfile.mktemp(prefix='sock-', dir=scratch)}"
                both = [f"--{option}" for option in self.mount_options if option.startswith("native=")]
                stack.enter_context(self._running("serve", "--listen", address, "--volume", f"data={source}", *both))
                stack.enter_context(self._running("mount", f"{address}/data", mountpoint, *options))
            yield mountpoint

    @contextmanager
    def _running(self, *arguments: str) -> Iterator[None]:
        with tempfile.TemporaryFile("w+", errors="replace") as said:
            process = subprocess.Popen(
                [*self.command, *arguments, *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=said,
                cwd="/",
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(filter(None, [_CHECKOUT, os.environ.get("PYTHONPATH")])),
                },
            )
            assert process.stdout is not None
            self.running.append(process.pid)
            try:
                with selectors.DefaultSelector() as selector:
                    selector.register(process.stdout, selectors.EVENT_READ)
                    if not selector.select(READY_SECONDS) or not process.stdout.readline():
                        said.seek(0)
                        raise CannotStart(f"{' '.join([*self.command, *arguments])} is not ready: {said.read()}")
                yield
            finally:
                self._end(process, arguments)
                self.running.remove(process.pid)
                process.stdout.close()
            said.seek(0)
            if dirty := _DIRTY.findall(said.read()):
                raise Complained(f"{' '.join([*self.command, *arguments])} logged:\n" + "\n".join(dirty))

    @staticmethod
    def _end(process: subprocess.Popen[bytes], arguments: tuple[str, ...]) -> None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        if process.poll() is None:
            if arguments[0] in ("bind", "mount"):
                unmount(arguments[2])
            process.kill()
            process.wait(END_SECONDS)


def mounted_at(path: str) -> tuple[str, str, str]:
    """(mount point, filesystem type, source) of what `path` lies on; never touches it."""
    path = os.path.abspath(path)
    best = ("", "", "")
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            fields = line.split(" ")
            point = fields[4].encode("utf-8", "surrogateescape").decode("unicode_escape")
            after = fields.index("-")
            if (path + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(best[0]):
                best = (point, fields[after + 1], fields[after + 2])
    return best


def unmount(path: str) -> None:
    """Take away whatever is mounted at `path`, also when it hangs."""
    while mounted_at(path)[0] == os.path.abspath(path):
        for options in (["-f"], ["-l"]):
            done = subprocess.run(
                ["umount", *options, path], stderr=subprocess.DEVNULL, check=False, timeout=END_SECONDS
            )
            if done.returncode == 0:
                break
        else:
            return


def remove_mountpoint(path: str) -> None:
    """Unmount what is left there and remove the empty directory."""
    unmount(path)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(path)


@contextmanager
def scratch_directory(within: str | None = None) -> Iterator[str]:
    """A directory on the host that every user may search, removed at the end."""
    path = tempfile.mkdtemp(prefix="posix-suite-", dir=within)
    os.chmod(path, 0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@dataclass(frozen=True)
class Wanted:
    """A target by its name: `WAY[@FILESYSTEM][,OPTION...]`, or a directory.

    WAY is `host`, `bind` or `serve`, FILESYSTEM one of filesystems.KINDS, which is made for the run, and each OPTION is
    given to `fusepipe bind` or `mount` with -o; `native=` to `fusepipe serve`, too.
    """

    name: str
    way: str
    filesystem: str | None = None
    options: tuple[str, ...] = ()

    @classmethod
    def parse(cls, name: str) -> "Wanted":
        """Raises ValueError with what is wrong."""
        first, *options = name.split(",")
        way, at, filesystem = first.partition("@")
        if way not in WAYS:
            if not os.path.isdir(name):
                raise ValueError(f"{name} is no directory, and none of {', '.join(WAYS)}")
            return cls(name, name)
        if at and filesystem not in KINDS:
            raise ValueError(f"{name}: no such kind of filesystem; known are {', '.join(KINDS)}")
        if options and way == "host":
            raise ValueError(f"{name}: a directory of the host is not mounted, so it takes no options")
        return cls(name, way, filesystem or None, tuple(options))


@contextmanager
def open_target(
    wanted: Wanted,
    source: str | None,
    command: Sequence[str],
    mount_options: Sequence[str],
    arguments: Sequence[str] = (),
) -> Iterator[Target]:
    """Make or find what the command line names.

    `source` is a directory in which the volume is made; with a directory as target, what it shows.  `arguments` are for
    each program of fusepipe that is started.
    Raises CannotStart and Unavailable.
    """
    with ExitStack() as stack:
        if wanted.way not in WAYS:
            yield _directory(wanted.way, source)
            return
        scratch = stack.enter_context(scratch_directory(source))
        if wanted.filesystem:
            volume = stack.enter_context(new_filesystem(wanted.filesystem, VOLUME_KIB, scratch))
        else:
            volume = os.path.join(scratch, "volume")
            os.mkdir(volume, 0o755)
        if wanted.way == "host":
            yield _directory(volume, None)
            return
        mounter = Mounter(wanted.way, tuple(command), (*mount_options, *wanted.options), tuple(arguments))
        path = stack.enter_context(mounter.mount(volume, stack.enter_context(scratch_directory())))
        yield Target(path, volume, mounted_at(path)[1], fusepipe=True, mounter=mounter)


def _directory(name: str, source: str | None) -> Target:
    path = os.path.realpath(name)
    _point, filesystem, device = mounted_at(path)
    fusepipe = filesystem.startswith("fuse") and "fusepipe" in filesystem + device
    opened = Target(path, source, filesystem, fusepipe)
    return dataclasses.replace(opened, behind=path) if opened.plain and source is None else opened


def default_command() -> tuple[str, ...]:
    return (sys.executable, "-m", "fusepipe")
