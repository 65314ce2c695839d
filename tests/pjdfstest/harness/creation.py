"""The calls that create a name, as one table."""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from .caller import Caller
from .scene import BLOCK_DEVICE, CHARACTER_DEVICE
from .status import FORMAT


@dataclass(frozen=True)
class Creation:
    """One way to make a file of `kind`; `run(caller, path, mode)`."""

    name: str
    kind: str
    run: Callable[[Caller, str | bytes, int], None]
    root_only: bool = False


def _open(caller: Caller, path: str | bytes, mode: int) -> None:
    caller.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)


def _device(kind: str, number: int) -> Callable[[Caller, str | bytes, int], None]:
    return lambda caller, path, mode: caller.mknod(path, FORMAT[kind] | mode, number)


CREATIONS = (
    Creation("open", "regular", _open),
    Creation("mkdir", "dir", lambda caller, path, mode: caller.mkdir(path, mode)),
    Creation("mkfifo", "fifo", lambda caller, path, mode: caller.mkfifo(path, mode)),
    Creation("mknod-regular", "regular", lambda caller, path, mode: caller.mknod(path, stat.S_IFREG | mode)),
    Creation("mknod-untyped", "regular", lambda caller, path, mode: caller.mknod(path, mode)),
    Creation("mknod-fifo", "fifo", lambda caller, path, mode: caller.mknod(path, stat.S_IFIFO | mode)),
    Creation("mknod-socket", "socket", lambda caller, path, mode: caller.mknod(path, stat.S_IFSOCK | mode)),
    Creation("mknod-block", "block", _device("block", BLOCK_DEVICE), root_only=True),
    Creation("mknod-char", "char", _device("char", CHARACTER_DEVICE), root_only=True),
    Creation("symlink", "symlink", lambda caller, path, mode: caller.symlink("target", path)),
)
"""`symlink` takes no mode: its files have 0777 always."""

WITH_MODE = tuple(creation for creation in CREATIONS if creation.name != "symlink")
BY_ANYBODY = tuple(creation for creation in CREATIONS if not creation.root_only)
