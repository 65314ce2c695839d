"""A mount of a volume in memory in a process of its own: `python -m tests.client.child MNT OPTIONS`.

OPTIONS is JSON: keyword arguments of MountOptions (`cache` as text) and of ServerLimits (`limits`), and `unwanted`, the
flags of INIT that are not asked for, as if the kernel lacked them.  Each line on stdin is JSON, `[command, argument
...]`, and is answered by a line of JSON on stdout.
"""

import json
import os
import signal
import sys
from dataclasses import asdict
from typing import Any

import trio

from fusepipe import log
from fusepipe.client import Cache, MountOptions, device_operations, kernel, run_mount
from fusepipe.client import mount as mount_module
from fusepipe.client.mount import Mount
from fusepipe.device import InitFlag
from fusepipe.transport import Stream
from fusepipe.wire import ServerLimits
from tests.client.servers import Server, pair
from tests.client.volumes import MemoryVolume


class Child:
    """The mount, the server behind it, and the commands."""

    def __init__(self, mountpoint: str, options: dict[str, Any]) -> None:
        limits = ServerLimits(**options.pop("limits", {}))
        kernel.WANTED &= ~InitFlag(options.pop("unwanted", 0))
        cache = Cache.parse(options.pop("cache", "ttl:1"))
        self.options = MountOptions(mountpoint, cache=cache, native=False, **options)  # it has one connection
        self.volume = MemoryVolume()
        self.volume.add("file", b"0123456789")
        self.near, self.far = pair()
        self.server = Server(self.far, self.volume, limits)
        self.mount: Mount | None = None

    # ---- commands ----

    def stats(self) -> dict[str, Any]:
        """What the server and the filter have seen."""
        assert self.mount is not None
        device_filter = self.mount._filter
        agreed = device_filter.agreed() if device_filter else None
        return {
            "held": self.volume.held,
            "answered": self.server.answered,
            "counts": self.volume.counts,
            "handles": list(self.volume.handles),
            "interrupted": len(self.server.interrupted),
            "device": asdict(device_filter.counters()) if device_filter else None,
            "agreed": {**asdict(agreed), "flags": int(agreed.flags)} if agreed else None,
            "inos": {name.decode("latin-1"): file.ino for name, file in self.volume.root.names.items()},
        }

    def requests(self, kind: str) -> list[Any]:
        """The fields of all requests of a kind, oldest first; names as Latin-1."""
        found = [request for request in self.server.requests if type(request).__name__ == kind]
        return [{k: v.decode("latin-1") if type(v) is bytes else v for k, v in r._asdict().items()} for r in found]

    def hold(self, operation: str) -> None:
        """Lets requests of this kind wait."""
        self.volume.hold[operation] = trio.Event()

    def release(self, operation: str) -> None:
        """Lets them go on."""
        self.volume.hold.pop(operation).set()

    def add(self, name: str, text: str = "") -> int:
        """Makes a file on the host's side; returns its inode number."""
        return self.volume.add(name, text.encode()).ino

    def add_many(self, count: int) -> None:
        """Makes many empty files with long names."""
        for number in range(count):
            self.volume.add(f"{number:05d}-{'n' * 100}")

    def cut(self) -> None:
        """The server dies."""
        self.server.cut()

    def deaf(self) -> None:
        """The server hangs."""
        self.server.deaf = trio.Event()

    def break_operation(self, name: str) -> None:
        """A bug in an operation of the client."""
        assert self.mount is not None

        def bug(*_: object) -> None:
            raise RuntimeError("a bug")

        setattr(self.mount._operations._attributes, name, bug)

    def break_answers(self, name: str) -> None:
        """A bug in how requests that the filter takes are answered."""
        setattr(device_operations, name, None)  # calling it fails

    def break_task(self) -> None:
        """A bug in a task behind the mount."""
        assert self.mount is not None
        self.mount._cleanup._batch = None  # type: ignore[method-assign, assignment]  # calling it fails

    # ---- life ----

    async def run(self) -> None:
        async def connect() -> Stream:
            return self.near

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.server.run)
            nursery.start_soon(self._obey)
            with trio.CancelScope() as scope:
                nursery.start_soon(self._until_signal, scope)
                ready = lambda: say("ready")  # noqa: E731 - a name for it would say no more
                try:
                    end = await run_mount(connect, "memory", self.options, body_crc=False, ready=ready)
                    say(end.name)
                except Exception as error:
                    say(type(error).__name__, str(error))
            if scope.cancelled_caught:
                say("CANCELLED")
            nursery.cancel_scope.cancel()

    async def _until_signal(self, scope: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as received:
            async for _ in received:
                scope.cancel()

    async def _obey(self) -> None:
        received = b""
        async with trio.lowlevel.FdStream(os.dup(0)) as stdin:
            async for some in stdin:
                received += some
                *lines, received = received.split(b"\n")
                for line in lines:
                    command, *arguments = json.loads(line)
                    say(getattr(self, command)(*arguments))


def say(*values: Any) -> None:
    """A line on stdout."""
    print(json.dumps(values), flush=True)


def main() -> None:
    log.configure("warning")
    child = Child(sys.argv[1], json.loads(sys.argv[2]))

    class Watched(Mount):
        """The mount, within reach of the commands."""

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            child.mount = self

    mount_module.Mount = Watched  # type: ignore[misc, assignment]  # what run_mount makes
    trio.run(child.run)


if __name__ == "__main__":
    main()
