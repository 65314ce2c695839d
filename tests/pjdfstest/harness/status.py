"""The attributes of a file at one moment."""

import stat
from typing import NamedTuple


class Status(NamedTuple):
    """As stat(2) gives them; times in nanoseconds.  `taken` is when, on the monotonic clock."""

    st_mode: int
    inode: int
    device: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int
    taken: int

    @property
    def mode(self) -> int:
        """Permission bits with set-uid, set-gid and sticky."""
        return stat.S_IMODE(self.st_mode)

    @property
    def kind(self) -> str:
        return _KIND_OF_FORMAT[stat.S_IFMT(self.st_mode)]

    @property
    def owner(self) -> tuple[int, int]:
        return self.uid, self.gid

    def differences(self, other: "Status", *ignored: str) -> str:
        """What differs in `other`, for a message; empty if nothing does.

        `blocks` and `taken` say nothing about the file's state.
        """
        parts = []
        for name in self._fields:
            before, after = getattr(self, name), getattr(other, name)
            if before != after and name not in ("blocks", "taken", *ignored):
                parts.append(
                    f"{name} {oct(before)} -> {oct(after)}" if name == "st_mode" else f"{name} {before} -> {after}"
                )
        return ", ".join(parts)


_KIND_OF_FORMAT = {
    stat.S_IFREG: "regular",
    stat.S_IFDIR: "dir",
    stat.S_IFIFO: "fifo",
    stat.S_IFBLK: "block",
    stat.S_IFCHR: "char",
    stat.S_IFSOCK: "socket",
    stat.S_IFLNK: "symlink",
}
FORMAT = {kind: number for number, kind in _KIND_OF_FORMAT.items()}

KINDS = tuple(FORMAT)
"""Every type a file can have."""
NOT_DIRECTORIES = tuple(kind for kind in KINDS if kind != "dir")
NOT_SYMLINKS = tuple(kind for kind in KINDS if kind != "symlink")
SPECIAL = ("fifo", "block", "char", "socket")
