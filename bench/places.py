"""The systems that are compared: a directory of the host, and the same through fusepipe and other passthroughs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.mount import children, mounttable
from tests.mount.harness import START_TIMEOUT, HarnessError, Mount, eventually
from tests.support import world

SFTP_SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/libexec/sftp-server")
HOST = "host"
READERS = 64
"""What `fusepipe` alone means: the default of the command."""
END_SECONDS = 10.0


@dataclass(frozen=True)
class System:
    """One way to reach a directory.

    options  words for `fusepipe bind`; None where it is another program
    """

    name: str
    options: tuple[str, ...] | None = None

    @property
    def peer(self) -> bool:
        """A passthrough of somebody else."""
        return self.options is None and self.name != HOST

    @property
    def is_fusepipe(self) -> bool:
        return self.options is not None


def fusepipe(readers: int = READERS, *more: str) -> System:
    """fusepipe with so many readers; at the default number its name is just that."""
    name = "fusepipe" if readers == READERS else f"fusepipe {readers}"
    return System(" ".join([name, *more]), ("--readers", str(readers), *more))


def sftp_server() -> str | None:
    return next((path for path in SFTP_SERVERS if os.access(path, os.X_OK)), None)


def installed(name: str) -> bool:
    """Whether a peer can be run here."""
    return shutil.which(name) is not None and (name != "sshfs" or sftp_server() is not None)


PEERS = ("bindfs", "mergerfs", "sshfs")


@dataclass
class Place:
    """A system at work: what is written to `source` on the host is seen at `path`.

    client, server  the processes of the two sides; a passthrough without a pipe has no server
    """

    system: System
    source: Path
    path: Path
    client: list[int] = field(default_factory=list)
    server: list[int] = field(default_factory=list)

    def forget(self) -> None:
        """The guest's kernel forgets names and inodes of this mount; the host keeps its own."""
        if self.system.name != HOST:
            mounttable.drop_dentries(self.path)


@contextmanager
def placed(system: System, scratch: Path) -> Iterator[Place]:
    """Mounts an empty directory through a system, and takes everything away at the end."""
    folder = scratch / system.name.replace(" ", "-").replace("--", "")
    source = folder / "source"
    source.mkdir(parents=True)
    if system.name == HOST:
        yield Place(system, source, source)
    elif system.is_fusepipe:
        with Mount("bind", source, options=system.options or ()) as mount:
            assert mount.client is not None
            server = mount.session_pids()
            client = [pid for pid in mount.client.family() if pid not in server]
            yield Place(system, source, mount.path, client, server)
    else:
        with _peer(system.name, source, folder) as place:
            yield place


@contextmanager
def _peer(name: str, source: Path, folder: Path) -> Iterator[Place]:
    path = Path(tempfile.mkdtemp(prefix="mnt-", dir=folder))
    started: list[subprocess.Popen[bytes]] = []
    try:
        if name == "sshfs":
            ours, theirs = socket.socketpair()
            with ours, theirs:
                server = str(sftp_server())
                started.append(subprocess.Popen([server], stdin=ours.fileno(), stdout=ours.fileno(), cwd="/"))
                command = ["sshfs", "-f", "-o", "passive,dir_cache=no,allow_other", f"local:{source}", str(path)]
                started.append(subprocess.Popen(command, stdin=theirs.fileno(), stdout=theirs.fileno(), cwd="/"))
        elif name == "mergerfs":
            started.append(subprocess.Popen(["mergerfs", "-f", "-o", "allow_other", str(source), str(path)], cwd="/"))
        else:
            started.append(subprocess.Popen([name, "-f", str(source), str(path)], cwd="/"))

        def mounted_or_over() -> bool:
            return mounttable.find(path) is not None or started[-1].poll() is not None

        eventually(mounted_or_over, START_TIMEOUT, f"a mount of {name}")
        if mounttable.find(path) is None:
            raise HarnessError(f"{name} ended with {started[-1].returncode} before it had mounted")
        client = [started[-1].pid, *children.descendants(started[-1].pid)]
        yield Place(System(name), source, path, client, [process.pid for process in started[:-1]])
    finally:
        subprocess.run(["umount", "-l", str(path)], stderr=subprocess.DEVNULL, check=False, timeout=START_TIMEOUT)
        for process in reversed(started):
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
            if process.poll() is None:
                process.kill()
                process.wait(END_SECONDS)
        world.end_mounts_below(path)
        path.rmdir()
