"""truncate(2) and ftruncate(2)."""

import os
from errno import EACCES, EFBIG, EINVAL, EISDIR, EPERM, ETXTBSY

from .harness import checks
from .harness.caller import Caller
from .harness.cases import cases
from .harness.process import Identity
from .harness.programs import running_program, unchanged_but_read
from .harness.scene import AsUser, Make
from .harness.status import SPECIAL
from .harness.times import moves, unchanged
from .harness.users import MEMBER, OTHER, OWNER, ROOT, SUPPLEMENTARY

WAYS = ("truncate", "ftruncate", "through-symlink")
DATA = bytes(range(256)) * 40
SIZES = {
    "empty": 0,
    "one": 1,
    "page-less-one": 4095,
    "page": 4096,
    "page-and-one": 4097,
    "double": 2 * len(DATA),
    "sparse": 1 << 20,
}


def cut(caller: Caller, way: str, length: int, path: str = "file") -> None:
    """Give `path` a length; the symlink `link` leads to it."""
    if way == "ftruncate":
        descriptor = caller.setup.open(path, os.O_WRONLY)
        caller.ftruncate(descriptor, length)
        caller.setup.close(descriptor)
    else:
        caller.truncate("link" if way == "through-symlink" else path, length)


@cases("{way}/size", way=WAYS, size=SIZES)
def test_sizes(way: str, size: int, root: Caller, owner: Caller, make: Make) -> None:
    make("regular", "file", OWNER)
    make("symlink", "link", target="file")
    root.setup.write_file("file", DATA)
    with moves(root, {"file": "mtime ctime"}):
        cut(owner, way, size)
    root.expect("file", size=size, mode=0o644, owner=(OWNER.uid, OWNER.gid))
    contents = root.contents("file")
    checks.check(contents[: len(DATA)] == DATA[:size], "what remains is not what was there")
    checks.check(contents[len(DATA) :].count(0) == max(0, size - len(DATA)), "what was added is not zero")
    cut(owner, way, len(DATA))
    checks.equal(root.contents("file"), DATA[:size].ljust(len(DATA), b"\0"), "cut bytes come back as zero")


@cases("{way}/same-size", way=WAYS)
def test_same_size_moves_times(way: str, root: Caller, owner: Caller, make: Make) -> None:
    """A size that was asked for marks the times even if it is the present one (truncate(2), POSIX)."""
    make("regular", "file", OWNER)
    make("symlink", "link", target="file")
    root.setup.write_file("file", DATA)
    with moves(root, {"file": "mtime ctime"}):
        cut(owner, way, len(DATA))
    root.expect("file", size=len(DATA))


@cases("{way}/negative", way=WAYS)
def test_negative_length(way: str, root: Caller, owner: Caller, make: Make) -> None:
    make("regular", "file", OWNER)
    make("symlink", "link", target="file")
    root.setup.write_file("file", b"data")
    for length in (-1, -2, -1000000, -(1 << 63)):
        with unchanged(root, "file", wait=length == -1):
            cut(owner.fails(EINVAL), way, length)


@cases("{way}/too-large", way=WAYS)
def test_too_large(way: str, root: Caller, owner: Caller, make: Make) -> None:
    """EFBIG or EINVAL beyond the filesystem's limit; a filesystem without such a limit has the file that long."""
    make("regular", "file", OWNER)
    make("symlink", "link", target="file")
    for length in (999_999_999_999_999, (1 << 63) - 1):
        before = root.lstat("file")
        if way == "ftruncate":
            descriptor = owner.setup.open("file", os.O_WRONLY)
            number, _ = owner.attempt("ftruncate", descriptor, length)
        else:
            number, _ = owner.attempt("truncate", "link" if way == "through-symlink" else "file", length)
        checks.one_of(number, (0, EFBIG, EINVAL), f"errno of {length}")
        if number:
            root.same("file", before)
        else:
            root.expect("file", size=length)
            owner.setup.truncate("file", 0)


@cases("truncate/eisdir", caller=[ROOT, OWNER])
def test_directory(caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    make("dir", "dir", OWNER)
    make("symlink", "link", target="dir")
    with unchanged(root, "dir", wait=True):
        as_user(caller).fails(EISDIR).truncate("dir", 0)
        as_user(caller).fails(EISDIR).truncate("link", 123)
    descriptor = as_user(caller).open("dir", os.O_RDONLY)
    with unchanged(root, "dir"):
        as_user(caller).fails(EINVAL).ftruncate(descriptor, 0)


@cases("truncate/not-regular", kind=SPECIAL)
def test_special_files(kind: str, root: Caller, owner: Caller, make: Make) -> None:
    make(kind, "file", OWNER)
    with unchanged(root, "file", wait=True):
        owner.fails(EINVAL).truncate("file", 0)
        owner.fails(EINVAL).truncate("file", 100)


@cases("truncate/etxtbsy")
def test_running_program(root: Caller, make: Make) -> None:
    with running_program(root, "program"), unchanged_but_read(root, "program"):
        root.fails(ETXTBSY).truncate("program", 0)
        root.fails(ETXTBSY).truncate("program", 100)
    root.truncate("program", 100)
    root.expect("program", size=100)


@cases(
    "truncate/eacces/{caller}-{mode}",
    caller=[OWNER, MEMBER, SUPPLEMENTARY, OTHER],
    mode={"no-write": 0o444, "own-class": -1},
)
def test_needs_write_permission(caller: Identity, mode: int, root: Caller, as_user: AsUser, make: Make) -> None:
    """`own-class`: all may write, only the class that the caller is in may not."""
    if mode == -1:
        mode = {OWNER: 0o466, MEMBER: 0o646, SUPPLEMENTARY: 0o646, OTHER: 0o664}[caller]
    make("regular", "file", OWNER, mode=mode)
    make("symlink", "link", target="file")
    root.setup.write_file("file", b"data")
    user = as_user(caller)
    with unchanged(root, "file", wait=True):
        user.fails(EACCES).truncate("file", 0)
        user.fails(EACCES).truncate("link", 100)
    root.setup.chmod("file", 0o666)
    user.truncate("file", 2)
    root.expect("file", size=2)


@cases("ftruncate/read-only-descriptor", caller=[ROOT, OWNER])
def test_descriptor_must_be_writable(caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    make("regular", "file", OWNER, mode=0o666)
    user = as_user(caller)
    descriptor = user.open("file", os.O_RDONLY)
    with unchanged(root, "file"):
        user.fails(EINVAL).ftruncate(descriptor, 10)


@cases(
    "ftruncate/after-chmod", flags={"O_WRONLY": os.O_WRONLY, "O_RDWR": os.O_RDWR, "O_APPEND": os.O_WRONLY | os.O_APPEND}
)
def test_open_descriptor_keeps_its_right(flags: int, root: Caller, owner: Caller, make: Make) -> None:
    """The permission was checked at open(2): a mode that forbids writing comes too late."""
    make("regular", "file", OWNER)
    descriptor = owner.open("file", flags)
    owner.write(descriptor, b"data")
    owner.chmod("file", 0)
    owner.fails(EACCES).truncate("file", 1)
    owner.ftruncate(descriptor, 2)
    root.expect("file", size=2, mode=0)
    owner.ftruncate(descriptor, 1000)
    root.expect("file", size=1000, mode=0)
    root.chown("file", OTHER.uid, OTHER.gid)
    owner.ftruncate(descriptor, 3)
    root.expect("file", size=3)


@cases("ftruncate/unlinked")
def test_unlinked_file(root: Caller, owner: Caller, make: Make) -> None:
    make("regular", "dir-file", OWNER)
    descriptor = owner.open("dir-file", os.O_RDWR)
    owner.write(descriptor, DATA)
    root.unlink("dir-file")
    owner.ftruncate(descriptor, 100)
    owner.expect(descriptor, size=100, nlink=0)
    checks.equal(owner.pread(descriptor, 1000, 0), DATA[:100], "contents")
    owner.ftruncate(descriptor, 5000)
    owner.expect(descriptor, size=5000, nlink=0)
    checks.equal(owner.pread(descriptor, 10000, 0), DATA[:100].ljust(5000, b"\0"), "contents")


@cases("ftruncate/replaced")
def test_descriptor_not_name(root: Caller, owner: Caller, make: Make) -> None:
    """The open file is cut, not what has its name by now."""
    make("regular", "file", OWNER)
    descriptor = owner.open("file", os.O_RDWR)
    owner.write(descriptor, b"old")
    make("regular", "new", OWNER)
    root.setup.write_file("new", b"the new one")
    root.rename("new", "file")
    owner.ftruncate(descriptor, 1)
    root.expect("file", size=11)
    owner.expect(descriptor, size=1, nlink=0)


@cases("ftruncate/created-without-permission", mode={"0": 0, "0444": 0o444})
def test_created_without_permission(mode: int, root: Caller, owner: Caller, make: Make) -> None:
    """The mode of a new file holds for later opens; this descriptor may write."""
    make("dir", "dir", OWNER)
    descriptor = owner.open("dir/file", os.O_CREAT | os.O_RDWR, mode)
    owner.ftruncate(descriptor, 10)
    owner.pwrite(descriptor, b"tail", 6)
    root.expect("dir/file", size=10, mode=mode)
    owner.fails(EACCES).truncate("dir/file", 0)
    checks.equal(owner.pread(descriptor, 100, 0), bytes(6) + b"tail", "contents")


@cases("truncate/ownership-is-not-enough")
def test_write_permission_is_enough(root: Caller, other: Caller, make: Make) -> None:
    make("regular", "file", OWNER, mode=0o622)
    root.setup.write_file("file", b"data")
    with moves(root, {"file": "mtime ctime"}):
        other.truncate("file", 1)
    root.expect("file", size=1, owner=(OWNER.uid, OWNER.gid))
    with unchanged(root, "file"):
        other.fails(EPERM).chmod("file", 0o666)
