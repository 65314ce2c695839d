"""Mounts made by the real executable, for the mount tests, the workload script and the benchmarks.

A `Mount` is one of the targets

- `bind`: `fusepipe bind SRC MNT`
- `serve`: `fusepipe serve --listen unix:... --volume vol=SRC` and `fusepipe mount unix:.../vol MNT`
- `bind-off`, `serve-off`: the same with `--native off` on both sides, so that Python answers everything
- `uncached`: like `bind`, with `--cache none`
- `plain`: the directory itself, and `bindfs`: a FUSE passthrough in C.  They validate the checks, not fusepipe.

All waits end.  What a mount leaves behind (mount table, processes, socket files, dirty logs) is an error of `stop`.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.mount import children, mounttable
from tests.support import world
from tests.support.program import DIRTY

REPOSITORY = Path(__file__).resolve().parents[2]
TARGETS = ("bind", "serve", "bind-off", "serve-off", "uncached", "plain", "bindfs")
START_TIMEOUT = 30.0  # seconds until a mount must be ready; generous, the machine may be busy
STOP_TIMEOUT = 20.0
EXPOSED = r" warning +server: guests can leave there what gives other users of this host rights"
"""What `serve` says of the tests' volumes, which other users of the host reach on purpose."""


class HarnessError(AssertionError):
    """A mount did not start, did not stop, or left something behind."""


@dataclass(frozen=True)
class Runner:
    """How fusepipe is started: by which Python, as which user."""

    user: int | None = None
    python: str = sys.executable
    packages: str = ""
    """A directory with the packages that `python` does not have itself."""
    prefix: tuple[str, ...] = ()
    """A program that starts it, with its arguments."""

    def command(self, *arguments: str | Path) -> list[str]:
        return [*self.prefix, self.python, "-m", "fusepipe", *map(str, arguments)]

    def environment(self, **extra: str) -> dict[str, str]:
        """This repository is importable from any working directory, and nothing is written into it."""
        paths = [str(REPOSITORY), self.packages, os.environ.get("PYTHONPATH", "")]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "PYTHONDONTWRITEBYTECODE": "1",
            **extra,
        }

    def call(self, *arguments: str | Path, timeout: float = START_TIMEOUT) -> subprocess.CompletedProcess[str]:
        """Run one fusepipe command that ends by itself and return its outcome."""
        return subprocess.run(
            self.command(*arguments),
            env=self.environment(),
            cwd="/",
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            user=self.user,
            group=self.user,
            extra_groups=None if self.user is None else [],
        )


def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run one fusepipe command that ends by itself and return its outcome."""
    return Runner().call(*arguments)


def eventually(condition: Callable[[], bool], timeout: float, what: str) -> None:
    """Wait until `condition` holds; HarnessError that says `what` did not happen in time."""
    if not world.wait_until(condition, timeout):
        raise HarnessError(f"{what}: not within {timeout} s")


class Program:
    """A long-running process of ours with its output in files, and its end under control."""

    def __init__(
        self, name: str, command: list[str], directory: Path, *, runner: Runner | None = None, notify: bool = False
    ) -> None:
        runner = runner or Runner()
        self.name = name
        self.command = " ".join(command)
        self._out = directory / f"{name}.out"
        self._err = directory / f"{name}.err"
        self._notify: socket.socket | None = None
        extra = {}
        if notify:
            address = directory / f"{name}.notify"
            self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._notify.bind(str(address))
            address.chmod(0o666)
            extra["NOTIFY_SOCKET"] = str(address)
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                command,
                env=runner.environment(**extra),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                user=runner.user,
                group=runner.user,
                extra_groups=None if runner.user is None else [],
            )
        self._family: set[int] = set()

    def output(self) -> str:
        return self._out.read_text(errors="replace")

    def errors(self) -> str:
        """Everything on standard error so far."""
        return self._err.read_text(errors="replace")

    def wait_line(self) -> str:
        """The first line on standard output; HarnessError when the program ends or keeps silent."""
        eventually(
            lambda: "\n" in self.output() or self.process.poll() is not None,
            START_TIMEOUT,
            f"{self.name}: the line that says it is ready",
        )
        if "\n" not in self.output():
            raise HarnessError(f"{self.name} ended with {self.process.returncode} before ready:\n{self.errors()}")
        return self.output().split("\n", 1)[0]

    def wait_notify(self) -> None:
        """Wait for READY=1 as sd_notify(3) sends it."""
        assert self._notify is not None
        end = time.monotonic() + START_TIMEOUT
        while time.monotonic() < end:
            if select.select([self._notify], [], [], 0.1)[0] and b"READY=1" in self._notify.recv(4096):
                return
            if self.process.poll() is not None:
                raise HarnessError(f"{self.name} ended with {self.process.returncode}:\n{self.errors()}")
        raise HarnessError(f"{self.name} did not say READY=1 within {START_TIMEOUT} s:\n{self.errors()}")

    def family(self) -> list[int]:
        """This process and its living descendants; all that were ever seen here must be gone after stop()."""
        found = [self.process.pid, *children.descendants(self.process.pid)]
        self._family.update(found)
        return found

    def wait(self, timeout: float = STOP_TIMEOUT) -> int:
        """The exit code; HarnessError when the program does not end in time."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise HarnessError(f"{self.name} did not end within {timeout} s:\n{self.errors()}") from None

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Ask the program to end and wait; its descendants must be gone shortly afterwards."""
        self.family()
        if self.process.poll() is None:
            self.process.send_signal(how)
        code = self.wait()
        self.gone()
        return code

    def gone(self) -> None:
        """HarnessError unless every process of the family ends soon."""
        eventually(
            lambda: not any(map(children.alive, self._family)),
            5.0,
            f"the end of {[children.command_line(p) for p in self._family if children.alive(p)]}",
        )

    def destroy(self) -> None:
        """Kill what is left of the family; for the way out after a failure.  Never raises."""
        self.family()
        for pid in self._family:
            if children.alive(pid):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        try:
            self.process.wait(5.0)
        except subprocess.TimeoutExpired:
            return
        finally:
            if self._notify is not None:
                self._notify.close()


@dataclass
class Mount:
    """One directory seen through a target.  Use as a context manager, or start() and stop()."""

    target: str
    source: Path
    options: tuple[str | Path, ...] = ()
    serve_options: tuple[str | Path, ...] = ()
    read_only_volume: bool = False
    firecracker: bool = False
    """`serve` listens where Firecracker brings its guests, which puts a checksum on every frame."""
    runner: Runner = Runner()
    allow: list[str] = field(default_factory=list)
    """Patterns of log lines that this test expects; lines that match are no dirt."""

    def __post_init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="fusepipe-test-"))
        self.directory.chmod(0o755)
        self.path = self.source if self.target == "plain" else self.directory / "mnt"
        if self.target != "plain":
            self.path.mkdir()
        if self.runner.user is not None:
            os.chown(self.directory, self.runner.user, self.runner.user)
            os.chown(self.path, self.runner.user, self.runner.user)
        self.socket = self.directory / "socket"
        self.listen = f"unix:{self.socket}"
        if self.firecracker:
            self.socket = self.directory / "vm_5000"
            self.listen = f"firecracker:{self.directory / 'vm'}:5000"
        self.client: Program | None = None
        self.server: Program | None = None
        self._programs: list[Program] = []
        self.kind = self.target.removesuffix("-off")
        """The target, however requests are answered."""
        if self.kind != self.target:
            self.options = ("--native", "off", *self.options)
            self.serve_options = ("--native", "off", *self.serve_options)
        if self.target == "uncached":
            self.options = ("--cache", "none", *self.options)
        self._read = 0

    # -- life -------------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Mount and wait until it is ready."""
        if self.kind == "serve" and (self.server is None or self.server.process.poll() is not None):
            self.start_server()
        if self.target != "plain":
            self.start_client()
        return self

    def start_server(self) -> None:
        """Start `serve` and wait until it says that it is ready."""
        volume = f"vol={self.source}{':ro' if self.read_only_volume else ''}"
        self.server = self._program(
            self.runner.command("serve", "--listen", self.listen, "--volume", volume, *self.serve_options),
            notify=True,
        )
        self.server.wait_notify()

    def launch(self) -> Program:
        """Start the program that mounts, without waiting for it."""
        if self.target == "bindfs":
            command = ["bindfs", "-f", *map(str, self.options), str(self.source), str(self.path)]
        elif self.kind in ("bind", "uncached"):
            command = self.runner.command("bind", *self.options, self.source, self.path)
        else:
            command = self.runner.command("mount", *self.options, f"unix:{self.socket}/vol", self.path)
        self.client = self._program(command)
        return self.client

    def start_client(self) -> None:
        """Mount and wait for the line that says so."""
        client = self.launch()
        if self.target == "bindfs":
            eventually(lambda: self.mounted() or client.process.poll() is not None, START_TIMEOUT, "bindfs")
        else:
            client.wait_line()
        if not self.mounted():
            raise HarnessError(f"{self.path} is no mount point although {client.name} said it is:\n{client.errors()}")
        client.family()

    def _program(self, command: list[str], *, notify: bool = False) -> Program:
        name = f"{len(self._programs)}-{'server' if notify else 'client'}"
        program = Program(name, command, self.directory, runner=self.runner, notify=notify)
        self._programs.append(program)
        return program

    def unmount(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the client by a signal, if it does not end already; the mount point must be free and the exit code 0."""
        if self.client is None:
            return
        if self.mounted() or self.target == "bindfs":
            code = self.client.stop(how)
        else:
            code = self.client.wait()
            self.client.gone()
        if code != 0 and self.target != "bindfs":
            raise HarnessError(f"the client ended with {code} after {how.name}:\n{self.client.errors()}")
        eventually(lambda: not self.mounted(), 5.0, f"unmounting {self.path}")
        self.client = None

    def lost(self, timeout: float = STOP_TIMEOUT) -> Program:
        """Wait for a client that ends by itself or was killed, and expect nothing more of it.

        The dead mount stays where it is.
        """
        client, self.client = self.client, None
        assert client is not None
        client.wait(timeout)
        client.gone()
        return client

    def remount(self) -> None:
        """Unmount and mount again (a `serve` goes on serving)."""
        self.unmount()
        self.start()

    def stop(self) -> None:
        """End everything; HarnessError for whatever is left behind or was logged.  Cleans up in any case."""
        problems = []
        try:
            self.unmount()
            if self.server is not None and self.server.process.poll() is None and (code := self.server.stop()) != 0:
                problems.append(f"the server ended with {code} after SIGTERM")
            for program in self._programs:
                program.gone()
            if self.socket.exists():
                problems.append(f"the socket {self.socket} is left behind")
        except HarnessError as error:
            problems.append(str(error))
        problems += [f"left mounted: {what}" for what in self.destroy()]
        problems += self.dirt()
        shutil.rmtree(self.directory, ignore_errors=True)
        if problems:
            raise HarnessError("\n".join(problems))

    def destroy(self) -> list[str]:
        """Take away the mount and kill the processes, whatever state they are in; returns the mounts taken away."""
        taken = world.end_mounts_below(self.path) if self.target != "plain" else []
        for program in self._programs:
            program.destroy()
        return [f"{mount.point} ({mount.kind})" for mount in taken]

    def discard(self) -> None:
        """Take everything away without asking whether it was in order."""
        self.destroy()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.discard()
            raise

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        if kind is None:
            self.stop()
        else:
            print(self.log())
            self.discard()

    # -- looking at it ----------------------------------------------------------------------------------------------

    def mounted(self) -> bool:
        return mounttable.find(self.path) is not None

    def healthy(self) -> bool:
        """Whether the mount is there and the processes behind it live."""
        if self.target == "plain":
            return True
        return self.mounted() and all(p.process.poll() is None for p in (self.client, self.server) if p is not None)

    def abort(self) -> None:
        """End the FUSE connection, so that whoever hangs in it gets an error."""
        entry = mounttable.find(self.path)
        if entry is not None and self.target != "plain":
            mounttable.abort(entry)

    def drop_dentries(self) -> None:
        """The kernel forgets all unused names of this mount: LOOKUPs and FORGETs follow."""
        if self.target != "plain":
            mounttable.drop_dentries(self.path)

    def session_pids(self) -> list[int]:
        """The processes that serve this mount's session (not the listener, not the client)."""
        programs = [p for p in (self.client, self.server) if p is not None]
        pids = [pid for program in programs for pid in program.family()[1:]]
        return [pid for pid in pids if "session_process" in children.command_line(pid)]

    def log(self) -> str:
        """Everything that the processes said, for the report of a failure."""
        return "\n".join(f"--- {p.name}: {p.command}\n{p.output()}{p.errors()}" for p in self._programs)

    def dirt(self) -> list[str]:
        """Log lines that speak of errors or warnings and that no pattern of `allow` expects."""
        found = []
        for program in self._programs:
            for line in program.errors().splitlines():
                if DIRTY.search(line.encode()) and not any(re.search(each, line) for each in (EXPOSED, *self.allow)):
                    found.append(f"{program.name} logged: {line}")
        return found


class Watchdog:
    """Aborts the FUSE connection of a mount when a piece of work takes too long, so that nobody hangs in it.

    Runs in a thread: the one that hangs in a system call has released the interpreter lock.
    """

    def __init__(self, mount: Mount, seconds: float) -> None:
        self._timer = threading.Timer(seconds, mount.abort)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._timer.join()
