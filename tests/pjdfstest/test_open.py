"""open(2): access modes, permission classes, and its own errors."""

import os
import stat
from errno import EACCES, EEXIST, EISDIR, ELOOP, ENOENT, ENOTDIR, ENXIO, EPERM, ETXTBSY

from .harness import checks
from .harness.caller import Caller
from .harness.cases import cases
from .harness.process import Identity
from .harness.programs import running_program, unchanged_but_read
from .harness.scene import AsUser, Make
from .harness.status import KINDS, NOT_DIRECTORIES
from .harness.times import moves, unchanged
from .harness.users import MEMBER, OTHER, OWNER, ROOT, SUPPLEMENTARY, THIRD

READS = {os.O_RDONLY: True, os.O_WRONLY: False, os.O_RDWR: True}
WRITES = {os.O_RDONLY: False, os.O_WRONLY: True, os.O_RDWR: True}
ACCESS = {"O_RDONLY": os.O_RDONLY, "O_WRONLY": os.O_WRONLY, "O_RDWR": os.O_RDWR}


@cases(
    "open/permissions/{kind}/{caller}/{access}",
    kind=["regular", "fifo", "char", "dir"],
    caller=[OWNER, MEMBER, SUPPLEMENTARY, OTHER],
    access=ACCESS,
)
def test_permission_classes(
    kind: str, caller: Identity, access: int, root: Caller, as_user: AsUser, make: Make
) -> None:
    """Only the bits of the first class that applies count, whatever the others allow."""
    # Where devices cannot be opened nobody may, whatever the mode says (mount(8), nodev).
    openable = kind != "char" or not root.statvfs().f_flag & os.ST_NODEV
    make(kind, "file", OWNER)
    make("symlink", "link", target="file")
    if kind == "fifo":  # so that opening waits for nobody
        root.setup.open("file", os.O_RDWR | os.O_NONBLOCK)
    shift = {OWNER: 6, MEMBER: 3, SUPPLEMENTARY: 3}.get(caller, 0)
    user = as_user(caller)
    for bits in range(8):
        enough = (not READS[access] or bits & 4 != 0) and (not WRITES[access] or bits & 2 != 0)
        for others in (0, 0o777):
            root.setup.chmod("file", (others & ~(7 << shift)) | bits << shift)
            for path in ("file", "link"):
                flags = access | os.O_NONBLOCK
                if kind == "dir" and WRITES[access]:
                    user.fails(EISDIR).open(path, flags)
                elif enough and openable:
                    user.setup.close(user.open(path, flags))
                else:
                    user.fails(EACCES).open(path, flags)


@cases("open/permissions/{kind}/root/{access}", kind=["regular", "fifo"], access=ACCESS)
def test_root_may_open_anything(kind: str, access: int, root: Caller, make: Make) -> None:
    make(kind, "file", OWNER, mode=0)
    if kind == "fifo":
        root.setup.open("file", os.O_RDWR | os.O_NONBLOCK)
    root.open("file", access | os.O_NONBLOCK)


@cases("open/creates")
def test_creation_moves_the_parents_times_once(root: Caller, owner: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    with moves(root, {"dir": "mtime ctime"}):
        owner.open("dir/file", os.O_CREAT | os.O_WRONLY, 0o644)
    with unchanged(root, "dir", "dir/file", wait=True):
        owner.open("dir/file", os.O_CREAT | os.O_WRONLY, 0o600)
    root.expect("dir/file", size=0, mode=0o644, nlink=1)


@cases("open/through-dangling-symlink")
def test_creates_what_a_symlink_names(root: Caller, owner: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    make("symlink", "dir/link", OWNER, target="file")
    descriptor = owner.open("dir/link", os.O_CREAT | os.O_WRONLY, 0o640)
    owner.write(descriptor, b"data")
    root.expect("dir/file", kind="regular", size=4, mode=0o640)
    root.expect("dir/link", kind="symlink")


@cases(
    "open/O_TRUNC/times", access={"O_WRONLY": os.O_WRONLY, "O_RDWR": os.O_RDWR}, data={"full": b"data", "empty": b""}
)
def test_truncation_moves_times(access: int, data: bytes, root: Caller, owner: Caller, make: Make) -> None:
    make("regular", "file", OWNER)
    root.setup.write_file("file", data)
    with moves(root, {"file": "mtime ctime"}), unchanged(root, "."):
        owner.open("file", access | os.O_TRUNC)
    root.expect("file", size=0)


@cases("open/O_TRUNC/with-O_CREAT")
def test_truncation_with_creation(root: Caller, owner: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    owner.write_file("dir/file", b"data")
    with moves(root, {"dir/file": "mtime ctime"}), unchanged(root, "dir"):
        owner.open("dir/file", os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    root.expect("dir/file", size=0, mode=0o666)


@cases("open/O_TRUNC/eacces", caller=[OWNER, MEMBER, SUPPLEMENTARY, OTHER], access=ACCESS)
def test_truncation_needs_write_permission(
    caller: Identity, access: int, root: Caller, as_user: AsUser, make: Make
) -> None:
    make("regular", "file", OWNER)
    root.setup.write_file("file", b"data")
    root.setup.chmod("file", {OWNER: 0o477, MEMBER: 0o747, SUPPLEMENTARY: 0o747}.get(caller, 0o774))
    with unchanged(root, "file", wait=True):
        as_user(caller).fails(EACCES).open("file", access | os.O_TRUNC)
    root.setup.chmod("file", 0o666)
    as_user(caller).open("file", access | os.O_TRUNC)
    root.expect("file", size=0)


@cases("open/eacces/create", caller=[OWNER, MEMBER, SUPPLEMENTARY, OTHER])
def test_creation_needs_write_permission_of_the_parent(
    caller: Identity, root: Caller, as_user: AsUser, make: Make
) -> None:
    make("dir", "dir", OWNER, mode={OWNER: 0o577, MEMBER: 0o757, SUPPLEMENTARY: 0o757}.get(caller, 0o775))
    make("regular", "dir/there", caller)
    with unchanged(root, "dir", wait=True):
        as_user(caller).fails(EACCES).open("dir/new", os.O_CREAT | os.O_RDWR, 0o644)
    as_user(caller).open("dir/there", os.O_CREAT | os.O_RDWR, 0o644)
    root.missing("dir/new")


@cases(
    "open/eisdir",
    flags={
        "O_WRONLY": os.O_WRONLY,
        "O_RDWR": os.O_RDWR,
        "O_TRUNC": os.O_RDONLY | os.O_TRUNC,
        "O_CREAT": os.O_RDONLY | os.O_CREAT,
        "O_WRONLY-O_TRUNC": os.O_WRONLY | os.O_TRUNC,
    },
    caller=[ROOT, OWNER],
)
def test_directories_are_not_written(flags: int, caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    make("dir", "dir", OWNER)
    with unchanged(root, "dir", wait=True):
        as_user(caller).fails(EISDIR).open("dir", flags, 0o644)


@cases("open/O_DIRECTORY", kind=NOT_DIRECTORIES)
def test_directory_wanted(kind: str, root: Caller, make: Make) -> None:
    make(kind, "file")
    make("symlink", "link", target="file")
    with unchanged(root, "file"):
        root.fails(ENOTDIR, ELOOP).open("file", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        root.fails(ENOTDIR, ENOENT).open("link", os.O_RDONLY | os.O_DIRECTORY)


@cases("open/O_NOFOLLOW", kind=KINDS)
def test_symlinks_are_refused(kind: str, root: Caller, owner: Caller, make: Make) -> None:
    make(kind, "file", OWNER)
    make("symlink", "link", OWNER, target="file")
    with unchanged(root, "file", "link"):
        for access in ACCESS.values():
            owner.fails(ELOOP).open("link", access | os.O_NOFOLLOW)
        owner.fails(ELOOP).open("link", os.O_RDONLY | os.O_NOFOLLOW | os.O_CREAT, 0o644)
        owner.fails(ELOOP).open("link", os.O_WRONLY | os.O_NOFOLLOW | os.O_TRUNC)
    if kind == "dir":  # a symlink further up is followed
        make("regular", "file/inner", OWNER)
        owner.open("link/inner", os.O_RDWR | os.O_NOFOLLOW)


@cases("open/enxio/fifo", caller=[ROOT, OWNER])
def test_fifo_without_reader(caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    make("fifo", "fifo", OWNER)
    user = as_user(caller)
    with unchanged(root, "fifo"):
        user.fails(ENXIO).open("fifo", os.O_WRONLY | os.O_NONBLOCK)
    reader = user.open("fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = user.open("fifo", os.O_WRONLY | os.O_NONBLOCK)
    user.write(writer, b"through")
    checks.equal(user.read(reader, 100), b"through", "what the fifo gives")


@cases("open/enxio/socket", access=ACCESS, caller=[ROOT, OWNER])
def test_sockets_cannot_be_opened(access: int, caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    make("socket", "socket", OWNER)
    with unchanged(root, "socket"):
        as_user(caller).fails(ENXIO).open("socket", access)


@cases("open/etxtbsy", flags={"O_WRONLY": os.O_WRONLY, "O_RDWR": os.O_RDWR, "O_TRUNC": os.O_WRONLY | os.O_TRUNC})
def test_running_program(flags: int, root: Caller, make: Make) -> None:
    with running_program(root, "program"), unchanged_but_read(root, "program"):
        root.fails(ETXTBSY).open("program", flags)
        root.setup.close(root.open("program", os.O_RDONLY))
    root.open("program", flags)


@cases("open/etxtbsy/exec")
def test_program_open_for_writing(root: Caller, make: Make) -> None:
    """The reverse: what is open for writing cannot be run (execve(2))."""
    with running_program(root, "program"):
        pass
    descriptor = root.open("program", os.O_RDWR)
    checks.equal(root.attempt("spawn", ["./program", "60"])[0], ETXTBSY, "errno of execve")
    root.close(descriptor)
    with running_program(root, "again"):
        root.setup.close(root.open("again", os.O_RDONLY))


@cases("open/O_EXCL", kind=(*KINDS, "dangling"), access=ACCESS)
def test_exclusive_creation(kind: str, access: int, root: Caller, owner: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    make("regular", "target", OWNER)
    if kind in ("symlink", "dangling"):
        make("symlink", "dir/file", OWNER, target="../target" if kind == "symlink" else "nothing")
    else:
        make(kind, "dir/file", OWNER)
    with unchanged(root, "dir", "dir/file", "target"):
        owner.fails(EEXIST).open("dir/file", access | os.O_CREAT | os.O_EXCL, 0o600)
        owner.fails(EEXIST).open("dir/file", access | os.O_CREAT | os.O_EXCL | os.O_TRUNC, 0o600)
    root.missing("dir/nothing")


@cases("open/large-file")
def test_beyond_two_gib(root: Caller, owner: Caller, make: Make) -> None:
    make("regular", "file", OWNER)
    descriptor = owner.open("file", os.O_RDWR)
    for size in ((1 << 31) - 1, 1 << 31, (1 << 32) + 5, 1 << 40):
        owner.pwrite(descriptor, b"end", size)
        root.expect("file", size=size + 3)
        checks.equal(owner.pread(descriptor, 10, size - 2), b"\0\0end", f"what stands at {size}")
        owner.setup.close(owner.open("file", os.O_RDONLY))
        owner.ftruncate(descriptor, 0)


@cases("open/created-without-permission", mode={"0": 0, "0400": 0o400, "0200": 0o200, "0070": 0o070}, access=ACCESS)
def test_descriptor_of_a_new_file(mode: int, access: int, root: Caller, owner: Caller, make: Make) -> None:
    """The mode given at creation holds for later opens only."""
    make("dir", "dir", OWNER)
    descriptor = owner.open("dir/file", os.O_CREAT | os.O_EXCL | access, mode)
    root.expect("dir/file", mode=mode, owner=(OWNER.uid, OWNER.gid))
    if WRITES[access]:
        owner.write(descriptor, b"data")
        root.expect("dir/file", size=4)
    if READS[access]:
        checks.equal(owner.pread(descriptor, 10, 0), b"data" if WRITES[access] else b"", "contents")
    owner.expects((not READS[access] or mode & 0o400 != 0) and (not WRITES[access] or mode & 0o200 != 0), EACCES).open(
        "dir/file", access
    )


@cases("open/O_NOATIME", caller=[OWNER, OTHER, ROOT])
def test_noatime_is_for_owners(caller: Identity, as_user: AsUser, make: Make) -> None:
    make("regular", "file", OWNER, mode=0o666)
    as_user(caller).expects(caller != OTHER, EPERM).open("file", os.O_RDONLY | os.O_NOATIME)


@cases("open/O_PATH", kind=KINDS)
def test_path_descriptors(kind: str, root: Caller, as_user: AsUser, make: Make) -> None:
    """O_PATH needs no permission on the file itself, and gives its attributes."""
    make(kind, "file", OWNER, mode=0)
    other = as_user(THIRD)
    descriptor = other.open("file", os.O_PATH | os.O_NOFOLLOW)
    seen = other.fstat(descriptor)
    checks.equal((seen.inode, seen.st_mode), (root.lstat("file").inode, root.lstat("file").st_mode), "what fstat gives")


@cases("open/read-moves-no-mtime")
def test_reading_moves_no_modification_time(root: Caller, owner: Caller, make: Make) -> None:
    make("regular", "file", OWNER)
    root.setup.write_file("file", b"data")
    before = root.lstat("file")
    descriptor = owner.open("file", os.O_RDONLY)
    owner.read(descriptor, 10)
    owner.close(descriptor)
    root.same("file", before, "atime")


@cases("write/times")
def test_writing_moves_times(root: Caller, owner: Caller, make: Make) -> None:
    make("regular", "file", OWNER)
    descriptor = owner.open("file", os.O_WRONLY)
    with moves(root, {"file": "mtime ctime"}):
        owner.write(descriptor, b"data")
        owner.fsync(descriptor)
    checks.check(stat.S_ISREG(root.expect("file", size=4).st_mode), "still a regular file")
