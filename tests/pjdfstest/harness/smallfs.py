"""Small filesystems of their own for what a whole disk cannot show: full, read-only, at its limits."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from .filesystems import Unavailable, new_filesystem, run
from .process import Patience
from .targets import Target, scratch_directory


@dataclass(frozen=True)
class SmallFilesystem:
    """A filesystem that nobody else uses."""

    path: str
    """Its root as the target shows it: here the cases run."""
    backing: str
    """Where the filesystem itself is mounted; equal to `path` if the target is a plain directory."""

    @contextmanager
    def read_only(self, which: str) -> Iterator[None]:
        """Read-only for a while: `which` is `"filesystem"` (the whole of it) or `"mount"` (the view under test)."""
        if which == "filesystem":
            commands = ["remount,ro", self.backing], ["remount,rw", self.backing]
        else:
            commands = ["remount,bind,ro", self.path], ["remount,bind,rw", self.path]
        _as_soon_as_it_can("mount", "-o", *commands[0])
        try:
            yield
        finally:
            run("mount", "-o", *commands[1])


def _as_soon_as_it_can(*command: str) -> None:
    """Run it again while it fails: a filesystem is busy until what was removed has been given back, a moment later."""
    deadline = time.monotonic() + Patience.seconds
    while True:
        try:
            return run(*command)
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


@contextmanager
def small_filesystem(target: Target, kind: str, kib: int, inodes: int = 200) -> Iterator[SmallFilesystem]:
    """Make one of `kind` (see filesystems.KINDS) with that size, seen as the target sees things.

    `inodes` is how many a tmpfs may have.

    Raises Unavailable where this machine or this target cannot do it.
    """
    if not target.plain and target.mounter is None:
        raise Unavailable(f"nobody told how to put another filesystem behind a mount of type {target.filesystem}")
    with scratch_directory() as scratch, ExitStack() as stack:
        backing = stack.enter_context(new_filesystem(kind, kib, scratch, inodes=inodes))
        path = stack.enter_context(target.mounter.mount(backing, scratch)) if target.mounter else backing
        yield SmallFilesystem(os.path.realpath(path), backing)
