"""One case's directory, and the users that act in it."""

import os
from collections.abc import Callable
from typing import Any

from .caller import Caller
from .process import Identity, Pool, Process
from .status import FORMAT
from .users import ROOT

Make = Callable[..., None]
AsUser = Callable[[Identity], Caller]

BLOCK_DEVICE = os.makedev(240, 1)  # from the numbers kept for local use: nothing answers there
CHARACTER_DEVICE = os.makedev(1, 3)  # /dev/null: harmless to open


class Scene:
    """A new directory, owned by root, in which a case runs.  Every caller of it works there."""

    def __init__(self, pool: Pool, name: str) -> None:
        self._pool = pool
        self._directory = self.name = name
        self._active: dict[Identity, Process] = {}
        self._own: list[Process] = []
        number, _ = pool.get(ROOT).call("enter", ".")
        assert number == 0, f"the directory of all cases is gone: {os.strerror(number)}"
        self._root = pool.get(ROOT)
        Caller(self._root).batch([("mkdir", (name, 0o755))])
        self.root = self.caller(ROOT)

    def caller(self, identity: Identity) -> Caller:
        """That user, in this directory."""
        process = self._active.get(identity)
        if process is None or not process.alive:
            process = self._pool.get(identity)
            self._enter(process)
            self._active[identity] = process
        return Caller(process)

    def another(self, identity: Identity) -> Caller:
        """A further process of that user, for this case alone."""
        process = Process(identity, self._pool.base)
        self._own.append(process)
        self._enter(process)
        return Caller(process)

    def _enter(self, process: Process) -> None:
        Caller(process).batch([("enter", (self._directory,))])

    def move(self, directory: str) -> None:
        """Let everybody work in another directory (absolute) from now on."""
        self._directory = directory
        for process in [*self._active.values(), *self._own]:
            self._enter(process)

    def make(
        self,
        kind: str,
        path: str | bytes,
        owner: Identity = ROOT,
        mode: int | None = None,
        ids: tuple[int, int] | None = None,
        target: str = "nowhere",
    ) -> None:
        """Prepare a file of any type; a symlink points to `target`; `ids` are uid and gid, in place of `owner`."""
        wanted = (0o755 if kind == "dir" else 0o644) if mode is None else mode
        calls: list[tuple[str, tuple[Any, ...]]] = []
        if kind == "dir":
            calls.append(("mkdir", (path, wanted)))
        elif kind == "symlink":
            calls.append(("symlink", (target, path)))
        else:
            device = {"block": BLOCK_DEVICE, "char": CHARACTER_DEVICE}.get(kind, 0)
            calls.append(("mknod", (path, FORMAT[kind] | wanted, device)))
        uid, gid = ids or (owner.uid, owner.gid)
        if (uid, gid) != (0, 0):
            calls.append(("lchown", (path, uid, gid)))
        if kind != "symlink" and ((uid, gid) != (0, 0) or wanted & 0o7000):
            calls.append(("chmod", (path, wanted)))
        self.root.batch(calls)

    def close_files(self) -> None:
        """End what the callers hold, and let them work in the case's directory again."""
        self._directory = self.name
        for process in self._active.values():
            process.call("leave")
            self._enter(process)

    def close(self) -> None:
        """End what the callers hold and remove the directory."""
        while self._own:
            self._own.pop().close()
        for process in self._active.values():
            if process.busy:
                process.close()
            elif process.alive:
                process.call("leave")
        self._active.clear()
        Caller(self._pool.get(ROOT)).batch([("remove_tree", (self.name,))])
