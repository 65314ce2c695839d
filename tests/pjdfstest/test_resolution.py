"""Errors that come from resolving a path, in every call that takes one."""

from errno import EACCES, EFAULT, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, EROFS

import pytest

from .harness import checks
from .harness.caller import Caller
from .harness.cases import cases
from .harness.paths import PATH_CALLS, PathCall
from .harness.process import Identity
from .harness.protocol import Pointer
from .harness.scene import AsUser, Make, Scene
from .harness.smallfs import SmallFilesystem
from .harness.status import NOT_DIRECTORIES
from .harness.times import unchanged
from .harness.users import MEMBER, OTHER, OWNER, ROOT, SUPPLEMENTARY
from .test_chmod import need_lchmod

PATH_MAX = 4096  # limits.h: with the terminating null byte


@pytest.fixture(autouse=True)
def _kernel_has(request: pytest.FixtureRequest) -> None:
    parameters = request.node.callspec.params
    if parameters["call"].name == "lchmod":
        make, root = request.getfixturevalue("make"), request.getfixturevalue("root")
        make("regular", "probe")
        need_lchmod(root, "probe")
        root.setup.unlink("probe")


@cases("{call}/enotdir/{kind}", call=PATH_CALLS, kind=(*NOT_DIRECTORIES, "symlink-to-file"))
def test_prefix_is_no_directory(call: PathCall, kind: str, root: Caller, owner: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    make("regular", "dir/target", OWNER)
    if kind in ("symlink", "symlink-to-file"):
        make("symlink", "dir/file", OWNER, target="target" if kind == "symlink-to-file" else "nowhere")
    else:
        make(kind, "dir/file", OWNER)
    if call.helper != "nothing":
        make(call.helper, "dir/helper", OWNER)
    wrong = ENOENT if kind == "symlink" else ENOTDIR
    with unchanged(root, "dir", "dir/file", "dir/target"):
        call.run(owner.fails(wrong), "dir/file/name", "dir/helper")
        call.run(root.fails(wrong), "dir/file/name", "dir/helper")
        call.run(owner.fails(wrong), "dir/file/more/name", "dir/helper")


@cases("{call}/enametoolong/component", call=PATH_CALLS)
def test_component_too_long(call: PathCall, scene: Scene, root: Caller, owner: Caller, make: Make) -> None:
    longest = root.statvfs().f_namemax
    make("dir", "dir", OWNER)
    exact, above = f"dir/{'n' * longest}", f"dir/{'n' * (longest + 1)}"
    call.prepare(make, exact, "dir/helper", owner=OWNER)
    call.run(owner, exact, "dir/helper")
    root.setup.batch([("remove_tree", (f"{scene.name}/dir",))])
    make("dir", "dir", OWNER)
    if call.helper != "nothing":
        make(call.helper, "dir/helper", OWNER)
    with unchanged(root, "dir"):
        call.run(owner.fails(ENAMETOOLONG), above, "dir/helper")
        call.run(owner.fails(ENAMETOOLONG), f"{above}/name", "dir/helper")
        call.run(root.fails(ENAMETOOLONG), above, "dir/helper")


@cases("{call}/enametoolong/path", call=PATH_CALLS)
def test_path_too_long(call: PathCall, root: Caller, owner: Caller, make: Make) -> None:
    component = min(root.statvfs().f_namemax, 250)
    directory = ""
    while PATH_MAX - 1 - len(directory) > 2 * component + 2:
        directory += "d" * component + "/"
        make("dir", directory[:-1], OWNER)
    rest = PATH_MAX - 1 - len(directory)
    middle = "m" * (rest // 2)
    make("dir", directory + middle, OWNER)
    exact = f"{directory}{middle}/{'x' * (rest - len(middle) - 1)}"
    checks.equal(len(exact), PATH_MAX - 1, "length of the longest path")
    make("dir", "free", OWNER)
    call.prepare(make, exact, "free/helper", owner=OWNER)
    call.run(owner, exact, "free/helper")
    if call.helper != "nothing":
        make(call.helper, "free/second", OWNER)
    with unchanged(root, directory + middle):
        call.run(owner.fails(ENAMETOOLONG), exact + "x", "free/second")
        call.run(root.fails(ENAMETOOLONG), exact + "x", "free/second")
    call.run(owner.fails(ENAMETOOLONG), "./" * (PATH_MAX // 2) + "x", "free/second")


@cases("{call}/enoent", call=PATH_CALLS)
def test_missing(call: PathCall, root: Caller, owner: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    make("symlink", "dir/dangling", OWNER, target="not-there")
    if call.helper != "nothing":
        make(call.helper, "dir/helper", OWNER)
    with unchanged(root, "dir", "dir/dangling"):
        call.run(owner.fails(ENOENT), "dir/missing/name", "dir/helper")
        call.run(owner.fails(ENOENT), "dir/dangling/name", "dir/helper")
        call.run(owner.fails(ENOENT), "", "dir/helper")
        if call.needs != "nothing":
            call.run(owner.fails(ENOENT), "dir/missing", "dir/helper")
            call.run(root.fails(ENOENT), "dir/missing", "dir/helper")
        if call.follows:
            call.run(owner.fails(ENOENT), "dir/dangling", "dir/helper")
    root.missing("dir/not-there")


CLASSES = {
    "owner": (OWNER, 0o100),
    "group": (MEMBER, 0o010),
    "supplementary": (SUPPLEMENTARY, 0o010),
    "other": (OTHER, 0o001),
}


@cases("{call}/eacces/search/{who}", call=PATH_CALLS, who=CLASSES)
def test_no_search_permission(
    call: PathCall, who: tuple[Identity, int], root: Caller, as_user: AsUser, make: Make
) -> None:
    """The prefix forbids searching to the one class that the caller is in, and to nobody else."""
    caller, bit = who
    make("dir", "dir", OWNER, mode=0o777)
    make("dir", "dir/sub", OWNER, mode=0o777)
    make("dir", "free", mode=0o777)
    call.prepare(make, "dir/sub/name", "free/helper", owner=caller)
    user = as_user(caller)
    for closed in ("dir", "dir/sub"):
        root.setup.chmod(closed, 0o777 & ~bit)
        with unchanged(root, "dir", "dir/sub"):
            call.run(user.fails(EACCES), "dir/sub/name", "free/helper")
        root.setup.chmod(closed, 0o777)
    call.run(user, "dir/sub/name", "free/helper")


@cases(
    "{call}/eacces/write-parent/{who}",
    call=[call for call in PATH_CALLS if call.changes_parent],
    who={
        "owner": (OWNER, 0o200),
        "group": (MEMBER, 0o020),
        "supplementary": (SUPPLEMENTARY, 0o020),
        "other": (OTHER, 0o002),
    },
)
def test_no_write_permission_on_the_parent(
    call: PathCall, who: tuple[Identity, int], root: Caller, as_user: AsUser, make: Make
) -> None:
    caller, bit = who
    make("dir", "dir", OWNER, mode=0o777 & ~bit)
    make("dir", "free", mode=0o777)
    call.prepare(make, "dir/name", "free/helper", owner=caller)
    with unchanged(root, "dir", "free", wait=True):
        call.run(as_user(caller).fails(EACCES), "dir/name", "free/helper")
    root.setup.chmod("dir", 0o777)
    call.run(as_user(caller), "dir/name", "free/helper")


@cases("{call}/eloop", call=PATH_CALLS, caller=[ROOT, OWNER])
def test_symlinks_that_point_at_each_other(
    call: PathCall, caller: Identity, root: Caller, as_user: AsUser, make: Make
) -> None:
    make("dir", "dir", OWNER)
    make("symlink", "dir/a", OWNER, target="b")
    make("symlink", "dir/b", OWNER, target="a")
    make("symlink", "dir/self", OWNER, target="self")
    if call.helper != "nothing":
        make(call.helper, "dir/helper", OWNER)
    user = as_user(caller)
    with unchanged(root, "dir", "dir/a", "dir/b"):
        for name in ("a", "b", "self"):
            call.run(user.fails(ELOOP), f"dir/{name}/name", "dir/helper")
            if call.follows or call.name == "open-create":
                call.run(user.fails(ELOOP), f"dir/{name}", "dir/helper")


@cases("{call}/symlink-chain", call=[call for call in PATH_CALLS if call.follows])
def test_chain_of_symlinks(call: PathCall, owner: Caller, make: Make) -> None:
    """Linux follows 40 symlinks in one resolution, and not 41 (path_resolution(7))."""
    make("dir", "dir", OWNER)
    call.prepare(make, "dir/0", owner=OWNER)
    for number in range(1, 42):
        make("symlink", f"dir/{number}", OWNER, target=str(number - 1))
    call.run(owner, "dir/40", "")
    call.run(owner.fails(ELOOP), "dir/41", "")


POINTERS = {"unmapped": Pointer.UNMAPPED, "kernel": Pointer.KERNEL, "null": Pointer.NULL}


def meant_as_path(call: PathCall, pointer: Pointer) -> bool:
    """A null path in utimensat(2) means the descriptor itself."""
    return pointer is not Pointer.NULL or not call.name.startswith("utimensat")


@cases("{call}/efault/{pointer}", call=PATH_CALLS, pointer=POINTERS, where=meant_as_path)
def test_bad_pointers(call: PathCall, pointer: Pointer, root: Caller, owner: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    make("regular", "dir/helper", OWNER)
    other_name = "dir/new" if call.helper == "nothing" else "dir/helper"
    with unchanged(root, "dir", "dir/helper"):
        call.run(owner.fails(EFAULT), pointer, other_name)
        call.run(root.fails(EFAULT), pointer, other_name)


@cases("{call}/erofs/{which}", call=[call for call in PATH_CALLS if call.writes], which=["filesystem", "mount"])
def test_read_only(
    call: PathCall, which: str, small_tmpfs: SmallFilesystem, scene: Scene, root: Caller, owner: Caller, make: Make
) -> None:
    scene.move(small_tmpfs.path)
    make("dir", "dir", OWNER, mode=0o777)
    call.prepare(make, "dir/name", "dir/helper", owner=OWNER)
    try:
        with small_tmpfs.read_only(which):
            with unchanged(root, "dir"):
                call.run(owner.fails(EROFS), "dir/name", "dir/helper")
                call.run(root.fails(EROFS), "dir/name", "dir/helper")
            if call.needs == "regular":
                checks.equal(owner.contents("dir/name"), b"", "reading is allowed")
        call.run(owner, "dir/name", "dir/helper")
    finally:
        scene.root.batch([("remove_tree", (f"{small_tmpfs.path}/dir",))])


@cases(
    "{call}/trailing-slash/{kind}",
    call=[call for call in PATH_CALLS if call.needs == "regular"],
    kind=["regular", "fifo", "socket"],
)
def test_slash_after_a_file(call: PathCall, kind: str, root: Caller, owner: Caller, make: Make) -> None:
    """A path that ends in a slash names a directory (path_resolution(7))."""
    make("dir", "dir", OWNER)
    make(kind, "dir/file", OWNER)
    with unchanged(root, "dir", "dir/file"):
        call.run(owner.fails(ENOTDIR), "dir/file/", "dir/helper")
        call.run(owner.fails(ENOTDIR), "dir/file//", "dir/helper")


@cases("{call}/trailing-slash/new", call=[call for call in PATH_CALLS if call.needs == "nothing"])
def test_slash_after_a_new_name(call: PathCall, root: Caller, owner: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    if call.helper != "nothing":
        make(call.helper, "dir/helper", OWNER)
    if call.name == "mkdir":
        call.run(owner, "dir/new//", "dir/helper")
        root.expect("dir/new", kind="dir")
    else:
        with unchanged(root, "dir"):
            call.run(owner.fails(EISDIR, ENOENT, ENOTDIR), "dir/new/", "dir/helper")
        root.missing("dir/new")


@cases("{call}/dots", call=[call for call in PATH_CALLS if call.needs != "nothing"])
def test_dots_in_a_path(call: PathCall, root: Caller, owner: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    make("dir", "dir/sub", OWNER)
    call.prepare(make, "dir/name", owner=OWNER)
    call.run(owner, "./dir/sub/../.././dir//name", "dir/helper")
    checks.equal(root.lstat("dir/sub/..").inode, root.lstat("dir").inode, "the parent")
