"""A directory tree of every kind of file, and what can be said about one."""

from __future__ import annotations

import hashlib
import os
import random
import stat
from pathlib import Path


def make_tree(top: Path, count: int) -> None:
    """About `count` files with many owners, modes, times, links, odd names and special files; always the same.

    Needs root.
    """
    rng = random.Random(count)
    top.mkdir()
    directories = [os.fsencode(top)]
    for i in range(max(5, count // 30)):
        directories.append(rng.choice(directories[:8]) + b"/dir%d" % i)
        os.mkdir(directories[-1])
    files: list[bytes] = []
    others: list[bytes] = []
    odd = [b" space", b"new\nline", b"\xff\xfe", "ü€😀".encode(), b"'quote\"", b"-dash", b"n" * 200]
    for i in range(count):
        path = rng.choice(directories) + b"/" + (odd[i % len(odd)] if i % 40 == 0 else b"file") + b"%d" % i
        kind = i % 25
        if kind in (0, 2, 3):
            others.append(path)
        if kind == 0:
            os.symlink(
                os.path.basename(rng.choice(files)) if files and i % 50 else b"nowhere/" + b"x" * (i % 300), path
            )
        elif kind == 1 and files:
            os.link(rng.choice(files), path)
        elif kind == 2:
            os.mkfifo(path)
        elif kind == 3:
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(i % 250, i))
        else:
            with open(path, "wb") as file:
                if kind == 4:
                    file.seek(1 << 20)  # a hole in front
                file.write(rng.randbytes(rng.choice((0, 1, 100, 4096, 5000, 70_000))))
            files.append(path)
            if kind == 5:
                os.setxattr(path, "user.note", b"value %d" % i)
    for path in others:
        os.utime(path, ns=(10**18, rng.randrange(2 * 10**18)), follow_symlinks=False)
    for path in files:
        os.chown(path, rng.choice((0, 1000, 65534, 12345)), rng.choice((0, 1000, 54321)))
        os.chmod(path, rng.choice((0o644, 0o600, 0o755, 0o4755, 0o2711, 0o400, 0o1666)))
        os.utime(path, ns=(rng.randrange(2 * 10**18), rng.randrange(2 * 10**18)))
    for directory in reversed(directories):
        os.chmod(directory, rng.choice((0o755, 0o700, 0o2775, 0o1777)))
        os.utime(directory, ns=(10**18, rng.randrange(2 * 10**18)))


def describe(top: Path, *, times: bool = True, special_times: bool = True) -> dict[bytes, tuple[object, ...]]:
    """For each path below `top`: type, mode, owner, mtime to the nanosecond, links among the tree, contents, xattrs.

    Without `special_times` only regular files and directories show their mtime, without `times` nothing does.
    """
    found: dict[bytes, tuple[object, ...]] = {}
    root = os.fsencode(top)
    first: dict[tuple[int, int], bytes] = {}
    for directory, names, files in sorted(os.walk(root)):
        for name in sorted([b".", *names, *files] if directory == root else [*names, *files]):
            path = directory + b"/" + name
            status = os.lstat(path)
            relative = path[len(root) + 1 :]
            contents: object = None
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    contents = hashlib.file_digest(file, "sha256").hexdigest()
            elif stat.S_ISLNK(status.st_mode):
                contents = os.readlink(path)
            elif not stat.S_ISDIR(status.st_mode):
                contents = status.st_rdev
            same = (
                relative if stat.S_ISDIR(status.st_mode) else first.setdefault((status.st_dev, status.st_ino), relative)
            )
            links = None if stat.S_ISDIR(status.st_mode) else status.st_nlink
            xattrs = sorted(
                (name, os.getxattr(path, name, follow_symlinks=False))
                for name in os.listxattr(path, follow_symlinks=False)
            )
            timed = special_times or stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
            mtime = status.st_mtime_ns if times and timed else None
            size = None if stat.S_ISDIR(status.st_mode) else status.st_size
            owner = (status.st_uid, status.st_gid)
            found[relative] = (oct(status.st_mode), owner, mtime, links, same, contents, size, xattrs)
    return found


def difference(left: dict[bytes, tuple[object, ...]], right: dict[bytes, tuple[object, ...]]) -> str:
    """ "" for equal descriptions, else the first few differences."""
    wrong = [
        f"{path!r}: {left.get(path, 'absent')} against {right.get(path, 'absent')}"
        for path in sorted(left.keys() | right.keys())
        if left.get(path) != right.get(path)
    ]
    return "" if not wrong else f"{len(wrong)} differences, such as\n" + "\n".join(wrong[:5])
