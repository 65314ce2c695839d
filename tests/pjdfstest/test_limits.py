"""What happens at the limits: a full filesystem, an exhausted quota, too many links."""

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from errno import EDQUOT, EMLINK, ENOSPC

import pytest

from .harness import checks
from .harness.caller import Caller
from .harness.cases import cases
from .harness.filesystems import Unavailable
from .harness.scene import Make, Scene
from .harness.smallfs import SmallFilesystem, small_filesystem
from .harness.targets import Target
from .harness.users import OWNER, ROOT

CREATE = {
    "open": lambda user: user.open("new", os.O_CREAT | os.O_WRONLY, 0o644),
    "mkdir": lambda user: user.mkdir("new"),
    "mkfifo": lambda user: user.mkfifo("new"),
    "mknod": lambda user: user.mknod("new", stat.S_IFREG | 0o644),
    "symlink": lambda user: user.symlink("target", "new"),
    "link": lambda user: user.link("file", "new"),
}


@pytest.fixture
def in_small_tmpfs(scene: Scene, small_tmpfs: SmallFilesystem) -> Iterator[None]:
    yield from _within(scene, small_tmpfs)


@pytest.fixture
def in_small_ext4(scene: Scene, small_ext4: SmallFilesystem) -> Iterator[None]:
    yield from _within(scene, small_ext4)


def _within(scene: Scene, filesystem: SmallFilesystem) -> Iterator[None]:
    """Let the callers work in a directory of the small filesystem, and empty it afterwards."""
    directory = f"{filesystem.path}/case"
    scene.root.batch([("mkdir", (directory, 0o755)), ("chown", (directory, OWNER.uid, OWNER.gid))])
    scene.move(directory)
    yield
    scene.close_files()
    scene.root.batch([("remove_tree", (directory,))])


@cases("{call}/enospc", call=CREATE.keys())
def test_no_space_for_names(call: str, in_small_tmpfs: None, root: Caller, owner: Caller, make: Make) -> None:
    """A tmpfs counts its names, and has no room for another."""
    make("regular", "file", OWNER)
    count = 0
    while (number := root.attempt("mknod", f"fill-{count}", stat.S_IFREG | 0o644)[0]) == 0:
        count += 1
        assert count < 10_000, "the small filesystem is not small"
    checks.equal(number, ENOSPC, "errno of the first that failed")
    CREATE[call](owner.fails(ENOSPC))
    root.missing("new")
    root.unlink("fill-0")
    CREATE[call](owner)
    root.lstat("new")


@cases("write/enospc", way=["write", "O_APPEND", "O_SYNC"])
def test_no_space_for_data(way: str, in_small_tmpfs: None, root: Caller, owner: Caller) -> None:
    flags = {"write": 0, "O_APPEND": os.O_APPEND, "O_SYNC": os.O_SYNC}[way]
    descriptor = owner.open("file", os.O_CREAT | os.O_RDWR | flags, 0o644)
    written, number = owner.attempt("write_until_error", descriptor, 4096, 64 << 20)[1]
    checks.equal(number, ENOSPC, "errno of the write that failed")
    root.expect("file", size=written)
    checks.equal(root.statvfs().f_bavail, 0, "free blocks")
    owner.ftruncate(descriptor, 0)
    owner.pwrite(descriptor, b"fits again", 0)
    checks.equal(owner.contents("file"), b"fits again", "contents")


@cases("link/emlink")
def test_too_many_links(
    in_small_ext4: None, small_ext4: SmallFilesystem, scene: Scene, root: Caller, aged: Callable[[], None], make: Make
) -> None:
    """ext4 gives a file at most 65,000 names.  All but the last are made behind the target, where that is quick."""
    make("regular", "file")
    behind = scene.another(ROOT)
    behind.batch([("enter", (f"{small_ext4.backing}/case",)), ("link_until_error", ("file", "link-%d", 64_990))])
    aged()
    root.expect("file", nlink=64_991)
    number, _ = root.attempt("link_until_error", "file", "last-%d", 20)
    checks.equal(number, EMLINK, "errno of the link that failed")
    root.expect("file", nlink=65_000)
    root.fails(EMLINK).link("link-7", "another")
    root.missing("another")
    root.unlink("link-7")
    root.link("file", "another")
    root.expect("another", nlink=65_000)
    behind.batch([("unlink_every_other", ("link-%d", 8, 64_990, remainder)) for remainder in (0, 1)])


@pytest.fixture(scope="module")
def limited_btrfs(posix_target: Target) -> Iterator[SmallFilesystem]:
    """A btrfs with a subvolume of at most 8 MiB at its root."""
    try:
        with small_filesystem(posix_target, "btrfs", 128 << 10) as filesystem:
            limited = f"{filesystem.backing}/limited"
            for command in (
                ["quota", "enable", filesystem.backing],
                ["subvolume", "create", limited],
                ["qgroup", "limit", "8M", limited],
            ):
                done = subprocess.run(["btrfs", *command], capture_output=True, check=False, timeout=60)
                if done.returncode:
                    pytest.skip(f"btrfs {command[0]}: {done.stderr.decode(errors='replace').strip()}")
            yield filesystem
    except (Unavailable, FileNotFoundError) as reason:
        pytest.skip(str(reason))


@cases("write/edquot")
def test_quota(limited_btrfs: SmallFilesystem, scene: Scene, root: Caller) -> None:
    scene.move(f"{limited_btrfs.path}/limited")
    descriptor = root.open("file", os.O_CREAT | os.O_RDWR, 0o644)
    written, number = root.attempt("write_until_error", descriptor, 1 << 16, 64 << 20)[1]
    checks.equal(number, EDQUOT, "errno of the write that failed")
    checks.check(written <= 8 << 20, f"{written} bytes were written, more than the quota allows")
    root.close(descriptor)
    root.unlink("file")
