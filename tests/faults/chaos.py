"""A relay that harms what it carries, at byte positions that a seeded random chooses.

It stands between a client and a server on Unix sockets and knows nothing of frames: a position may be in a handshake,
in a prefix, in the middle of a payload.  Each direction of each connection has a plan of its own, drawn from the seed,
the connection's number and the direction, so the same seed harms the same places again, as far as timing lets it.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import select
import socket
import threading
from collections import Counter
from pathlib import Path
from typing import Literal, Self

Action = Literal["cut", "truncate", "delay", "withhold", "stall", "drop", "flip"]

LOUD: dict[Action, int] = {"cut": 6, "truncate": 6, "delay": 4}
"""What ends the connection (or does not harm it), and how often each comes."""

DAMAGE: dict[Action, int] = {"drop": 3, "flip": 6}
"""What only a checksum on every frame finds out."""

SILENT: dict[Action, int] = {"withhold": 1, "stall": 1}
"""What only a PING finds out, after 10 seconds."""

HANDSHAKE = 400
"""Bytes in which the handshake of a connection lies; a quarter of the positions are there."""

FAR = 1 << 19
CHUNK = 1 << 16


class Chaos:
    """Listens on `path` and carries every connection on to the Unix socket `server`.

    It does no harm until `begin`, which says how often it may, and no more when that is used up.  Thread-safe.
    """

    def __init__(self, path: Path, server: Path, seed: int, *, checksums: bool, vmm: bool = False) -> None:
        """`checksums`: every frame has one, so bytes may also change and vanish.  `vmm`: answer CONNECT first, as a
        VMM's socket does.
        """
        self.harmed: Counter[str] = Counter()
        """How often each thing was done.  Guarded by `_lock`, as all that follows."""
        self._server = server
        self._seed = seed
        self._actions = LOUD | (DAMAGE if checksums else {})
        self._vmm = vmm
        self._lock = threading.Lock()  # a leaf
        self._left = 0
        self._silences = 0
        self._sockets: list[socket.socket] = []
        self._closed = False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._done = threading.Event()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        with self._lock:
            self._closed = True
            sockets = [self._listener, *self._sockets]
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(30)
        for one in sockets:
            one.close()

    def begin(self, cuts: int, silences: int) -> None:
        """Harm connections `cuts` times, of which up to `silences` times so that only a PING finds out."""
        with self._lock:
            self._left, self._silences = cuts, silences
        if not cuts:
            self._done.set()

    def wait(self, seconds: float) -> bool:
        """Wait until all the harm is done; False if it is not within `seconds`."""
        return self._done.wait(seconds)

    # ---- connections

    def _accept(self) -> None:
        number = 0
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                server = socket.socket(socket.AF_UNIX)
                with self._lock:
                    self._sockets += [client, server]
                    if self._closed:
                        return
                number += 1
                thread = threading.Thread(target=self._connection, args=(client, server, number))
                self._threads.append(thread)
                thread.start()

    def _connection(self, client: socket.socket, server: socket.socket, number: int) -> None:
        """Both directions of a connection, until it has ended; then its sockets are closed."""
        with contextlib.suppress(OSError):
            if self._vmm:
                line = b""
                while not line.endswith(b"\n"):
                    if not (byte := client.recv(1)):
                        return
                    line += byte
                assert line.startswith(b"CONNECT "), line
                client.sendall(b"OK 1024\n")
            server.connect(str(self._server))
            there = threading.Thread(target=self._carry, args=(client, server, number, "server"))
            there.start()
            self._carry(server, client, number, "client")
            there.join()
        with self._lock:
            for one in (client, server):
                if not self._closed:
                    self._sockets.remove(one)
                    one.close()

    def _carry(self, source: socket.socket, target: socket.socket, number: int, to: str) -> None:
        """Carry bytes to one side.  When it returns, both are shut."""
        rng = random.Random(f"{self._seed}/{number}/{to}")
        position = 0
        at = _position(rng)
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                while position + len(data) > at:
                    before, data = data[: at - position], data[at - position :]
                    target.sendall(before)
                    position = at
                    action = self._next(rng)
                    rest = self._harm(action, rng, source, target, data)
                    if rest is None:
                        _shut(source, target)
                        return
                    position += len(data) - len(rest)  # dropped bytes count
                    data = rest
                    at = position + _position(rng)
                target.sendall(data)
                position += len(data)
        _shut(source, target)

    def _next(self, rng: random.Random) -> Action | None:
        """What to do now, if anything is left to do."""
        with self._lock:
            if not self._left:
                return None
            actions = self._actions | (SILENT if self._silences else {})
            (action,) = rng.choices(list(actions), list(actions.values()))
            self.harmed[action] += 1
            if action != "delay":
                self._left -= 1
                self._silences -= action in SILENT
                if not self._left:
                    self._done.set()
            return action

    def _harm(
        self, action: Action | None, rng: random.Random, source: socket.socket, target: socket.socket, data: bytes
    ) -> bytes | None:
        """Do it; returns the bytes that still go to the target, None where the connection is over."""
        match action:
            case None:
                return data
            case "delay":
                self._stopping.wait(rng.uniform(0, 0.05))
                return data
            case "drop":
                return data[rng.randint(1, 64) :]
            case "flip":
                return bytes([data[0] ^ 1 << rng.randrange(8)]) + data[1:]
            case "withhold":
                while source.recv(CHUNK):
                    pass  # it is lost on the way; the connection looks well
            case "stall":
                poll = select.poll()
                poll.register(source, select.POLLRDHUP)  # nothing is read any more, so the sender's buffer fills
                poll.poll()
            case "truncate":
                target.shutdown(socket.SHUT_WR)  # the other direction goes on until its own end
                while source.recv(CHUNK):
                    pass
        return None


def _position(rng: random.Random) -> int:
    """How many bytes pass before the next harm: in the handshake, or anywhere, small distances as often as large."""
    if rng.random() < 0.25:
        return rng.randrange(HANDSHAKE)
    return HANDSHAKE + int(math.exp(rng.uniform(0, math.log(FAR))))


def _shut(*sockets: socket.socket) -> None:
    for one in sockets:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


def seed() -> int:
    """FUSEPIPE_FAULT_SEED, by default 1."""
    return int(os.environ.get("FUSEPIPE_FAULT_SEED", "1"))


def cuts() -> int:
    """FUSEPIPE_FAULT_CUTS: how often connections are harmed in each run, by default 200."""
    return int(os.environ.get("FUSEPIPE_FAULT_CUTS", "200"))
