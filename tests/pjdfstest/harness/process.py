"""Helper processes of the suite, one per identity, and the pool that keeps them."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from . import protocol


class Patience:
    """How long a reply may take, in seconds: longer than any honest call needs; one that needs more hangs."""

    seconds = 60.0


@dataclass(frozen=True)
class Identity:
    """A user as the kernel knows him: by numbers only, nothing has to exist in /etc/passwd."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    own_mounts: bool = False

    def __str__(self) -> str:
        return f"{self.name} (uid {self.uid}, gid {self.gid}, groups {list(self.groups)})"


class Died(AssertionError):
    """A helper process ended or did not answer; what it was asked is in the message."""


_START = """
import importlib, sys
sys.path.insert(0, {path!r})
importlib.import_module({module!r}).main()
"""


class Process:
    """One helper process.  Not thread-safe."""

    def __init__(self, identity: Identity, base: str) -> None:
        self.identity = identity
        package = __name__.rpartition(".")[0]
        above = os.path.abspath(__file__)
        for _ in __name__.split("."):
            above = os.path.dirname(above)
        ours, theirs = socket.socketpair()
        directory = os.open(base, os.O_PATH | os.O_DIRECTORY)
        program = _START.format(path=above, module=f"{package}.executor.main")
        try:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-S",
                    "-E",
                    "-c",
                    program,
                    str(theirs.fileno()),
                    str(directory),
                    str(identity.uid),
                    str(identity.gid),
                    ",".join(map(str, identity.groups)),
                    str(int(identity.own_mounts)),
                ],
                pass_fds=(theirs.fileno(), directory),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd="/",
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(directory)
        self._socket = ours
        self._socket.settimeout(Patience.seconds)
        self._waiting: protocol.Request | None = None

    def start(self, request: protocol.Request) -> None:
        """Send a request and do not wait: `finish` gets the reply."""
        assert self._waiting is None, f"{self.identity} still works on {self._waiting}"
        self._waiting = request
        try:
            protocol.send(self._socket, request)
        except OSError as error:
            raise Died(f"the helper process of {self.identity} is gone before {request[:3]}: {error}") from error

    def finish(self, seconds: float | None = None) -> protocol.Reply:
        """The reply to the request that was started.  Raises Died."""
        request, self._waiting = self._waiting, None
        assert request is not None, "nothing was started"
        self._socket.settimeout(Patience.seconds if seconds is None else seconds)
        try:
            reply: protocol.Reply = protocol.receive(self._socket)
        except (EOFError, OSError) as error:
            what = "hangs in" if isinstance(error, TimeoutError) else f"died (status {self._process.poll()}) in"
            self.close()
            raise Died(f"the helper process of {self.identity} {what} {str(request)[:500]}") from error
        return reply

    def answered(self, seconds: float) -> bool:
        """Whether the reply to the started request comes within that time."""
        self._socket.settimeout(seconds)
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK))
        except TimeoutError:
            return False

    @property
    def busy(self) -> bool:
        return self._waiting is not None

    @property
    def alive(self) -> bool:
        return self._socket.fileno() >= 0

    def call(self, name: str, *arguments: Any) -> tuple[int, Any]:
        """One call: (errno, value)."""
        self.start([(name, arguments)])
        return self.finish()[0]

    def close(self) -> None:
        """Hang up and wait for the end; a process that does not end is killed."""
        self._socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.0 if self._waiting else 2.0)
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):  # in D state it ends when the filesystem lets it
                self._process.wait(5.0)


class Pool:
    """One process per identity, started when first asked for, kept until `close`."""

    def __init__(self, base: str) -> None:
        self.base = base
        self._processes: dict[Identity, Process] = {}

    def get(self, identity: Identity) -> Process:
        process = self._processes.get(identity)
        if process is None or not process.alive:
            process = self._processes[identity] = Process(identity, self.base)
        return process

    def close(self) -> None:
        while self._processes:
            self._processes.popitem()[1].close()
