"""Immutable and append-only files and directories (chattr +i and +a): EPERM, whoever asks (ioctl_iflags(2))."""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import ENOTTY, EOPNOTSUPP, EPERM

import pytest

from .harness import checks
from .harness.caller import UTIME_NOW, Caller
from .harness.cases import cases
from .harness.process import Identity
from .harness.scene import AsUser, Make
from .harness.times import unchanged
from .harness.users import OWNER, ROOT

IMMUTABLE, APPEND = 0x10, 0x20
FLAGS = {"immutable": IMMUTABLE, "append-only": APPEND}
DATE = (1_000_000_000, 0)


@contextmanager
def flagged(behind: Caller, path: str, flags: int) -> Iterator[None]:
    """Set the flags for a while, on the filesystem itself and not through what is under test.

    That moves the ctime, which a cache of the target may not have seen yet: compare attributes behind it as well.
    """
    number, before = behind.attempt("get_flags", path)
    if number == 0:
        number, _ = behind.attempt("set_flags", path, before | flags)
    if number in (ENOTTY, EOPNOTSUPP):
        pytest.skip("this filesystem has no such flags")
    assert number == 0, f"cannot set the flags of {path}: {os.strerror(number)}"
    try:
        yield
    finally:
        behind.setup.set_flags(path, before)


Action = Callable[[Caller], object]
BOTH, ONLY_IMMUTABLE = (IMMUTABLE, APPEND), (IMMUTABLE,)

ON_FILE: dict[str, tuple[Action, tuple[int, ...]]] = {
    "chmod": (lambda user: user.chmod("dir/file", 0o600), BOTH),
    "chown": (lambda user: user.chown("dir/file", OWNER.uid, OWNER.gid), BOTH),
    "lchown": (lambda user: user.lchown("dir/file", OWNER.uid, OWNER.gid), BOTH),
    "truncate": (lambda user: user.truncate("dir/file", 1), BOTH),
    "utimensat": (lambda user: user.utimensat("dir/file", (DATE, DATE)), BOTH),
    "utimensat-now": (lambda user: user.utimensat("dir/file", (UTIME_NOW, UTIME_NOW)), ONLY_IMMUTABLE),
    "link": (lambda user: user.link("dir/file", "dir/second"), BOTH),
    "rename-from": (lambda user: user.rename("dir/file", "dir/new"), BOTH),
    "rename-onto": (lambda user: user.rename("dir/spare", "dir/file"), BOTH),
    "unlink": (lambda user: user.unlink("dir/file"), BOTH),
    "open-write": (lambda user: user.open("dir/file", os.O_WRONLY), BOTH),
    "open-append": (lambda user: user.open("dir/file", os.O_WRONLY | os.O_APPEND), ONLY_IMMUTABLE),
    "open-truncate": (lambda user: user.open("dir/file", os.O_WRONLY | os.O_APPEND | os.O_TRUNC), BOTH),
    "setxattr": (lambda user: user.setxattr("dir/file", "user.name", b"value"), BOTH),
}


@cases("{call}/flags/file-{flag}/{caller}", call=ON_FILE.keys(), flag=FLAGS, caller=[ROOT, OWNER])
def test_flags_on_a_file(
    call: str, flag: int, caller: Identity, behind: Caller, root: Caller, as_user: AsUser, make: Make
) -> None:
    action, refusing = ON_FILE[call]
    make("dir", "dir", OWNER)
    make("regular", "dir/file", OWNER)
    make("regular", "dir/spare", OWNER)
    root.setup.write_file("dir/file", b"data")
    if call == "setxattr" and as_user(caller).attempt("setxattr", "dir/spare", "user.x", b"", 0, True)[0]:
        pytest.skip("this filesystem has no user attributes")
    user = as_user(caller)
    with flagged(behind, "dir/file", flag):
        if flag in refusing:
            with unchanged(behind, "dir", "dir/file", wait=True):
                action(user.fails(EPERM))
            checks.equal(root.contents("dir/file"), b"data", "contents")
        else:
            action(user)
    with unchanged(behind, "dir/spare") if call != "rename-onto" else _nothing():
        action(user)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


IN_DIRECTORY: dict[str, tuple[Action, tuple[int, ...]]] = {
    "open": (lambda user: user.open("dir/new", os.O_CREAT | os.O_WRONLY, 0o644), ONLY_IMMUTABLE),
    "mkdir": (lambda user: user.mkdir("dir/new"), ONLY_IMMUTABLE),
    "mkfifo": (lambda user: user.mkfifo("dir/new"), ONLY_IMMUTABLE),
    "mknod": (lambda user: user.mknod("dir/new", stat.S_IFREG | 0o644), ONLY_IMMUTABLE),
    "symlink": (lambda user: user.symlink("target", "dir/new"), ONLY_IMMUTABLE),
    "link": (lambda user: user.link("outside", "dir/new"), ONLY_IMMUTABLE),
    "rename-into": (lambda user: user.rename("outside", "dir/new"), ONLY_IMMUTABLE),
    "rename-from": (lambda user: user.rename("dir/file", "new"), BOTH),
    "rename-onto": (lambda user: user.rename("outside", "dir/file"), BOTH),
    "unlink": (lambda user: user.unlink("dir/file"), BOTH),
    "rmdir": (lambda user: user.rmdir("dir/sub"), BOTH),
    "chmod": (lambda user: user.chmod("dir", 0o711), BOTH),
    "chown": (lambda user: user.chown("dir", OWNER.uid, OWNER.gid), BOTH),
    "utimensat": (lambda user: user.utimensat("dir", (DATE, DATE)), BOTH),
}


@cases("{call}/flags/directory-{flag}/{caller}", call=IN_DIRECTORY.keys(), flag=FLAGS, caller=[ROOT, OWNER])
def test_flags_on_a_directory(
    call: str, flag: int, caller: Identity, behind: Caller, root: Caller, as_user: AsUser, make: Make
) -> None:
    action, refusing = IN_DIRECTORY[call]
    make("dir", "dir", OWNER)
    make("dir", "dir/sub", OWNER)
    make("regular", "dir/file", OWNER)
    make("regular", "outside", OWNER)
    root.setup.chmod(".", 0o777)
    user = as_user(caller)
    with flagged(behind, "dir", flag):
        if flag in refusing:
            with unchanged(behind, "dir", "dir/sub", "dir/file", "outside", wait=True):
                action(user.fails(EPERM))
        else:
            action(user)
    if flag in refusing:
        action(user)


@cases("{call}/flags/free", call=["chmod", "write", "link"], flag=FLAGS)
def test_files_in_flagged_directories_are_free(
    call: str, flag: int, behind: Caller, root: Caller, owner: Caller, make: Make
) -> None:
    """The flag of a directory protects its names, not the files behind them."""
    make("dir", "dir", OWNER)
    make("dir", "elsewhere", OWNER)
    make("regular", "dir/file", OWNER)
    with flagged(behind, "dir", flag):
        if call == "chmod":
            owner.chmod("dir/file", 0o600)
            root.expect("dir/file", mode=0o600)
        elif call == "write":
            owner.write(owner.open("dir/file", os.O_WRONLY), b"data")
            root.expect("dir/file", size=4)
        else:
            owner.link("dir/file", "elsewhere/file")
            root.expect("dir/file", nlink=2)


@cases("ftruncate/flags/append-only", caller=[ROOT, OWNER])
def test_append_only_files_are_not_cut(
    caller: Identity, behind: Caller, root: Caller, as_user: AsUser, make: Make
) -> None:
    make("regular", "file", OWNER)
    root.setup.write_file("file", b"data")
    user = as_user(caller)
    descriptor = user.open("file", os.O_RDWR)
    with flagged(behind, "file", APPEND), unchanged(behind, "file", wait=True):
        user.fails(EPERM).ftruncate(descriptor, 1)
    user.ftruncate(descriptor, 1)


@cases("write/flags/append-only")
def test_appending(behind: Caller, root: Caller, owner: Caller, make: Make) -> None:
    make("regular", "file", OWNER)
    with flagged(behind, "file", APPEND):
        descriptor = owner.open("file", os.O_WRONLY | os.O_APPEND)
        owner.write(descriptor, b"one")
        owner.write(descriptor, b"two")
        checks.equal(owner.contents("file"), b"onetwo", "contents")


@cases("ioctl/flags", flag={**FLAGS, "nodump": 0x40, "noatime": 0x80})
def test_flags_through_the_target(flag: int, root: Caller, make: Make) -> None:
    make("regular", "file")
    number, before = root.attempt("get_flags", "file")
    if number == 0:
        number, _ = root.attempt("set_flags", "file", before | flag)
    checks.equal(number, 0, "errno of the ioctl")
    try:
        checks.check(root.get_flags("file") & flag != 0, "the flag is not shown")
    finally:
        root.setup.set_flags("file", before)
    checks.check(root.get_flags("file") & flag == 0, "the flag is still shown")
