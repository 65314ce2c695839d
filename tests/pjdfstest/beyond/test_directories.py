"""Reading directories (getdents64(2)): while they change, with any name, with very many."""

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from errno import EACCES, EINVAL, ENOTDIR

import pytest

from ..harness import checks
from ..harness.caller import Caller
from ..harness.cases import cases
from ..harness.filesystems import Unavailable
from ..harness.scene import Make, Scene
from ..harness.smallfs import small_filesystem
from ..harness.status import FORMAT, KINDS, NOT_DIRECTORIES
from ..harness.targets import Target
from ..harness.users import OWNER, ROOT

DOTS = (b".", b"..")
Entry = tuple[bytes, int, int, int]


def read_all(user: Caller, descriptor: int, size: int, between: Callable[[int], None] | None = None) -> list[Entry]:
    """Read a directory to its end with a buffer of `size` bytes, doing something between the calls."""
    entries: list[Entry] = []
    turn = 0
    while part := user.setup.getdents(descriptor, size):
        entries += part
        if between is not None:
            between(turn)
        turn += 1
        assert turn < 100_000, "the directory does not end"
    return entries


@cases("readdir/entries")
def test_entries(root: Caller, owner: Caller, make: Make) -> None:
    """Every name once, `.` and `..` too, each with the inode number and type that stat(2) gives."""
    make("dir", "dir", OWNER)
    for kind in KINDS:
        make(kind, f"dir/{kind}", OWNER)
    entries = read_all(owner, owner.open("dir", os.O_RDONLY), 32768)
    checks.equal(sorted(entry[0] for entry in entries), sorted([*DOTS, *(kind.encode() for kind in KINDS)]), "names")
    for name, inode, entry_type, _ in entries:
        status = root.lstat(b"dir/" + name)
        checks.equal(inode, status.inode, f"inode number of {name!r}")
        checks.one_of(entry_type, (0, stat.S_IFMT(status.st_mode) >> 12), f"type of {name!r}")


@cases("readdir/buffers", size=[280, 300, 400, 1000, 4096, 1 << 20])
def test_any_buffer_size(size: int, owner: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    names = [f"{number:03d}{'x' * (number * 2 % 250)}" for number in range(120)]
    make("regular", "file", OWNER)
    owner.batch([("link", ("file", f"dir/{name}")) for name in names])
    entries = read_all(owner, owner.open("dir", os.O_RDONLY), size)
    checks.equal(sorted(entry[0] for entry in entries), sorted([*DOTS, *map(str.encode, names)]), "names")


@cases("readdir/small-buffer")
def test_buffer_too_small(owner: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    make("regular", "dir/" + "n" * 200, OWNER)
    descriptor = owner.open("dir", os.O_RDONLY)
    owner.fails(EINVAL).getdents(descriptor, 8)


@cases("readdir/not-a-directory", kind=[kind for kind in NOT_DIRECTORIES if kind in ("regular", "fifo", "char")])
def test_only_directories(kind: str, root: Caller, make: Make) -> None:
    make(kind, "file")
    if kind == "char" and root.statvfs().f_flag & os.ST_NODEV:
        root.fails(EACCES).open("file", os.O_RDWR | os.O_NONBLOCK)
        return
    descriptor = root.open("file", os.O_RDWR | os.O_NONBLOCK)
    root.fails(ENOTDIR).getdents(descriptor, 4096)


CHANGES = ("create", "unlink-later", "unlink-earlier", "rename-new", "rename-within", "all")


@cases("readdir/while/{change}", change=CHANGES, size=[300, 4096], count=[40, 150])
def test_while_the_directory_changes(
    change: str, size: int, count: int, owner: Caller, root: Caller, make: Make
) -> None:
    """Names that exist from before opening until after the end are given exactly once (readdir(3p))."""
    make("dir", "dir", OWNER)
    make("dir", "spare", OWNER)
    make("regular", "file", OWNER)  # one file with many names: all that matters here are names
    for pattern in ("dir/stays-%04d", "dir/goes-%04d", "dir/moves-%04d", "spare/new-%04d"):
        owner.batch([("link_until_error", ("file", pattern, count))])
    made: set[int] = set()

    def between(turn: int) -> None:
        number = turn * 7 % count
        if number in made:
            return
        made.add(number)
        if change in ("create", "all"):
            root.setup.mknod(f"dir/made-{number}", FORMAT["regular"] | 0o644)
        if change in ("unlink-later", "all"):
            root.setup.unlink(f"dir/goes-{count - 1 - number:04d}")
        if change == "unlink-earlier":
            root.setup.unlink(f"dir/goes-{number:04d}")
        if change in ("rename-new", "all"):
            root.setup.rename(f"spare/new-{number:04d}", f"dir/new-{number:04d}")
        if change in ("rename-within", "all"):
            root.setup.rename(f"dir/moves-{number:04d}", f"dir/moved-{number:04d}")

    entries = read_all(owner, owner.open("dir", os.O_RDONLY), size, between)
    counted = Counter(entry[0] for entry in entries)
    stable = [b"stays-%04d" % number for number in range(count)]
    wrong = {name: counted[name] for name in stable if counted[name] != 1}
    checks.check(not wrong, f"names that stayed were given {checks.shown(wrong)} times")
    checks.equal([counted[name] for name in DOTS], [1, 1], "`.` and `..`")
    twice = [name for name, times in counted.items() if times > 1 and not name.startswith((b"move", b"new", b"made"))]
    checks.equal(twice, [], "names given twice")


@cases("readdir/remove-all", size=[300, 32768])
def test_removing_what_was_read(size: int, owner: Caller, root: Caller, make: Make) -> None:
    """How rm -r works: what one call gave is removed before the next."""
    make("dir", "dir", OWNER)
    make("regular", "file", OWNER)
    owner.batch([("link_until_error", ("file", "dir/file-%04d", 1500))])
    descriptor = owner.open("dir", os.O_RDONLY)
    removed = 0
    while part := owner.setup.getdents(descriptor, size):
        names = [entry[0] for entry in part if entry[0] not in DOTS]
        owner.batch([("unlink", (b"dir/" + name,)) for name in names])
        removed += len(names)
    checks.equal(removed, 1500, "names removed")
    root.rmdir("dir")


@cases("readdir/rewind")
def test_rewinding(owner: Caller, make: Make) -> None:
    """From the start again, a directory shows what has come meanwhile."""
    make("dir", "dir", OWNER)
    owner.batch([("make_many", ("dir/file-%d", 0, 50))])
    descriptor = owner.open("dir", os.O_RDONLY)
    checks.equal(len(read_all(owner, descriptor, 1000)), 52, "entries")
    checks.equal(owner.getdents(descriptor, 1000), [], "entries after the end")
    owner.batch([("make_many", ("dir/file-%d", 50, 60)), ("unlink", ("dir/file-0",))])
    owner.lseek(descriptor, 0, os.SEEK_SET)
    names = {entry[0] for entry in read_all(owner, descriptor, 1000)}
    checks.equal(names, {*DOTS, *(b"file-%d" % number for number in range(1, 60))}, "names")


@cases("readdir/seek")
def test_seeking(owner: Caller, make: Make) -> None:
    """The offset that comes with an entry leads to the one behind it, also from another open."""
    make("dir", "dir", OWNER)
    owner.batch([("make_many", ("dir/file-%03d", 0, 200))])
    descriptor = owner.open("dir", os.O_RDONLY)
    entries = read_all(owner, descriptor, 700)
    another = owner.open("dir", os.O_RDONLY)
    for position in (0, 1, 2, 50, 123, 200):
        for where in (descriptor, another):
            owner.lseek(where, entries[position][3], os.SEEK_SET)
            rest = [entry[0] for entry in read_all(owner, where, 700)]
            checks.equal(rest, [entry[0] for entry in entries[position + 1 :]], f"names behind entry {position}")


@cases("readdir/two-readers")
def test_two_readers(owner: Caller, other: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    owner.batch([("make_many", ("dir/file-%03d", 0, 300))])
    first, second = owner.open("dir", os.O_RDONLY), other.open("dir", os.O_RDONLY)
    found: list[list[bytes]] = [[], []]
    while True:
        one, two = owner.setup.getdents(first, 600), other.setup.getdents(second, 1000)
        found[0] += [entry[0] for entry in one]
        found[1] += [entry[0] for entry in two]
        if not one and not two:
            break
    for names in found:
        checks.equal(sorted(names), sorted([*DOTS, *(b"file-%03d" % number for number in range(300))]), "names")


@cases("names/single-bytes")
def test_names_of_every_byte(owner: Caller, root: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    names = [bytes([number]) for number in range(1, 256) if bytes([number]) not in (b"/", b".")]
    for name in names:
        owner.mkdir(b"dir/" + name)
        root.expect(b"dir/" + name, kind="dir", owner=(OWNER.uid, OWNER.gid))
    checks.equal(sorted(owner.names("dir")), names, "names")
    for name in names:
        owner.rename(b"dir/" + name, b"dir/x" + name)
        owner.rmdir(b"dir/x" + name)
    checks.equal(owner.names("dir"), [], "names after removal")


@cases("names/longest", filler={"ascii": b"a", "high": b"\xff", "utf-8": "é".encode(), "newline": b"\n", "dots": b"."})
def test_longest_names(filler: bytes, owner: Caller, root: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    longest = (filler * 255)[: root.statvfs().f_namemax]
    for name in (longest, longest[:-1], longest[1:] + b"z"):
        owner.write_file(b"dir/" + name, name)
        root.expect(b"dir/" + name, size=len(name))
        checks.equal(owner.contents(b"dir/" + name), name, "contents")
    checks.equal(set(owner.names("dir")), {longest, longest[:-1], longest[1:] + b"z"}, "names")
    for name in (longest, longest[:-1]):
        owner.unlink(b"dir/" + name)
    checks.equal(owner.names("dir"), [longest[1:] + b"z"], "names")


@cases(
    "names/special",
    name=[
        b"...",
        b"..a",
        b".a",
        b" ",
        b"\t",
        b"a b",
        b"-rf",
        b"~",
        b"*",
        b"$(x)",
        b"\\",
        b"'",
        b'"',
        b"\x7f",
        b"%s%n",
        b"con",
        b"a:b",
    ],
)
def test_special_names(name: bytes, owner: Caller, root: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    path = b"dir/" + name
    owner.write_file(path, b"data")
    checks.equal(owner.names("dir"), [name], "names")
    owner.link(path, b"dir/link")
    owner.rename(path, b"dir/other")
    root.missing(path)
    owner.symlink(name, path)
    checks.equal(os.fsencode(owner.readlink(path)), name, "target")
    owner.unlink(path)
    checks.equal(sorted(owner.names("dir")), [b"link", b"other"], "names")


@cases("names/case-and-normalisation")
def test_similar_names_differ(owner: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    names = ["File", "file", "FILE", "\u00e9", "e\u0301", "\u00c5", "A\u030a", "\u212b", "\ufb01le", "file "]
    for name in names:
        owner.write_file(f"dir/{name}", name.encode())
    checks.equal(sorted(owner.names("dir")), sorted(map(os.fsencode, names)), "names")
    for name in names:
        checks.equal(owner.contents(f"dir/{name}"), name.encode(), "contents")


@pytest.fixture
def huge(posix_target: Target, scene: Scene) -> Iterator[Caller]:
    """An empty directory for 100,000 files, in which the callers work; the value is root behind the target, where that
    can be chosen: files are made there, in memory, where it is quick."""
    try:
        with small_filesystem(posix_target, "tmpfs", 1 << 16, inodes=110_000) as filesystem:
            behind = scene.another(ROOT)
            scene.move(filesystem.path)
            behind.batch([("enter", (filesystem.backing,))])
            yield behind
            scene.close_files()
    except Unavailable:
        yield scene.root


@cases("huge")
def test_a_hundred_thousand_names(huge: Caller, root: Caller) -> None:
    """One directory with 100,000 entries: listed, found, and some of them removed."""
    count, some = 100_000, 2_000
    huge.batch([("make_many", ("entry-%06d", 0, count - some))])
    root.batch([("make_many", ("entry-%06d", count - some, count))])
    names = root.names()
    checks.equal(len(names), count, "names")
    checks.equal(len(set(names)), count, "different names")
    checks.equal(root.batch([("stat_many", ("entry-%06d", 0, count, 10))]), [count // 10], "inode numbers of their own")
    root.batch([("unlink_every_other", ("entry-%06d", count // 2, count // 2 + some, 0))])
    names = root.names()
    checks.equal(len(names), count - some // 2, "names after removing some")
    gone = {b"entry-%06d" % number for number in range(count // 2, count // 2 + some, 2)}
    checks.check(not gone & set(names), "names that were removed are listed")
    huge.batch([("unlink_every_other", ("entry-%06d", 0, count // 2, remainder)) for remainder in (0, 1)])
