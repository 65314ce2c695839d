"""The calls that take a path, as one table: what they need to succeed, so that it can be taken away."""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from .caller import AT_SYMLINK_NOFOLLOW, Caller, Path
from .scene import Make

DATE = (1_000_000_000, 0)


@dataclass(frozen=True)
class PathCall:
    """One path argument of one call.

    `run(caller, path, helper)`: `helper` is another name of the call, in a directory where everything is allowed.
    """

    name: str
    run: Callable[[Caller, Path, str], None]
    needs: str = "regular"
    """What must be at the path: a kind of file, or `"nothing"`."""
    helper: str = "nothing"
    """What must be at the other path."""
    follows: bool = False
    """Whether a symlink as last component is followed."""
    changes_parent: bool = False
    """Whether it needs write permission on the directory."""
    writes: bool = True
    """Whether a read-only filesystem refuses it."""

    def prepare(self, make: Make, path: str | bytes, helper: str | None = None, **who: object) -> None:
        """Make what the call needs at both paths."""
        if self.needs != "nothing":
            make(self.needs, path, **who)
        if helper is not None and self.helper != "nothing":
            make(self.helper, helper, **who)


def _creates(name: str, run: Callable[[Caller, Path, str], None], helper: str = "nothing") -> PathCall:
    return PathCall(name, run, needs="nothing", helper=helper, changes_parent=True)


def _removes(name: str, run: Callable[[Caller, Path, str], None], needs: str = "regular") -> PathCall:
    return PathCall(name, run, needs=needs, changes_parent=True)


PATH_CALLS = (
    PathCall("chmod", lambda user, path, _: user.chmod(path, 0o640), follows=True),
    PathCall("lchmod", lambda user, path, _: user.lchmod(path, 0o640)),
    PathCall("chown", lambda user, path, _: user.chown(path, user.identity.uid, user.identity.gid), follows=True),
    PathCall("lchown", lambda user, path, _: user.lchown(path, user.identity.uid, user.identity.gid)),
    PathCall("truncate", lambda user, path, _: user.truncate(path, 10), follows=True),
    PathCall("utimensat", lambda user, path, _: user.utimensat(path, (DATE, DATE)), follows=True),
    PathCall("utimensat-nofollow", lambda user, path, _: user.utimensat(path, (DATE, DATE), AT_SYMLINK_NOFOLLOW)),
    PathCall("open-read", lambda user, path, _: _open(user, path, os.O_RDONLY), follows=True, writes=False),
    PathCall("open-write", lambda user, path, _: _open(user, path, os.O_WRONLY), follows=True),
    PathCall("open-truncate", lambda user, path, _: _open(user, path, os.O_RDONLY | os.O_TRUNC), follows=True),
    _creates("open-create", lambda user, path, _: _open(user, path, os.O_CREAT | os.O_WRONLY)),
    _creates("open-exclusive", lambda user, path, _: _open(user, path, os.O_CREAT | os.O_EXCL | os.O_RDWR)),
    _creates("mkdir", lambda user, path, _: user.mkdir(path)),
    _creates("mkfifo", lambda user, path, _: user.mkfifo(path)),
    _creates("mknod", lambda user, path, _: user.mknod(path, stat.S_IFREG | 0o644)),
    _creates("symlink", lambda user, path, _: user.symlink("target", path)),
    _creates("link-new", lambda user, path, helper: user.link(helper, path), helper="regular"),
    PathCall("link-old", lambda user, path, helper: user.link(path, helper)),
    _creates("rename-new", lambda user, path, helper: user.rename(helper, path), helper="regular"),
    _removes("rename-old", lambda user, path, helper: user.rename(path, helper)),
    _removes("unlink", lambda user, path, _: user.unlink(path)),
    _removes("rmdir", lambda user, path, _: user.rmdir(path), needs="dir"),
)


def _open(user: Caller, path: Path, flags: int) -> None:
    descriptor = user.open(path, flags, 0o644)
    if descriptor is not None:
        user.setup.close(descriptor)
