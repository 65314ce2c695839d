"""Extended attributes (xattr(7))."""

import os
from errno import E2BIG, EACCES, EEXIST, ENODATA, ENOSPC, EOPNOTSUPP, EPERM, ERANGE

import pytest

from ..harness import checks
from ..harness.caller import Caller
from ..harness.cases import cases
from ..harness.process import Identity
from ..harness.scene import AsUser, Make
from ..harness.status import KINDS
from ..harness.times import moves, unchanged
from ..harness.users import MEMBER, OTHER, OWNER, ROOT, SUPPLEMENTARY

CREATE, REPLACE = os.XATTR_CREATE, os.XATTR_REPLACE


@pytest.fixture(autouse=True)
def _supported(root: Caller, make: Make) -> None:
    make("regular", "probe")
    if root.attempt("setxattr", "probe", "user.probe", b"1", 0, True)[0] == EOPNOTSUPP:
        pytest.skip("no user attributes on this filesystem")
    root.setup.unlink("probe")


def of_user(names: list[str]) -> list[str]:
    return sorted(name for name in names if name.startswith("user."))


@cases("xattr/values", kind=["regular", "dir"], caller=[ROOT, OWNER])
def test_values(kind: str, caller: Identity, as_user: AsUser, make: Make) -> None:
    make(kind, "file", OWNER)
    user = as_user(caller)
    for value in (b"", b"v", b"value\0with\0nulls", bytes(range(256)), b"x" * 3000):
        user.setxattr("file", "user.name", value)
        checks.equal(user.getxattr("file", "user.name"), value, "value")
        checks.equal(user.getxattr_sized("file", b"user.name", 0)[0], len(value), "length that is asked for")
    checks.equal(of_user(user.listxattr("file")), ["user.name"], "names")
    user.removexattr("file", "user.name")
    checks.equal(of_user(user.listxattr("file")), [], "names after removal")
    user.fails(ENODATA).getxattr("file", "user.name")


@cases("xattr/create-replace", kind=["regular", "dir"])
def test_create_and_replace(kind: str, root: Caller, owner: Caller, make: Make) -> None:
    make(kind, "file", OWNER)
    with unchanged(root, "file", wait=True):
        owner.fails(ENODATA).setxattr("file", "user.a", b"1", REPLACE)
        owner.fails(ENODATA).removexattr("file", "user.a")
    owner.setxattr("file", "user.a", b"1", CREATE)
    with unchanged(root, "file", wait=True):
        owner.fails(EEXIST).setxattr("file", "user.a", b"2", CREATE)
    checks.equal(owner.getxattr("file", "user.a"), b"1", "value")
    owner.setxattr("file", "user.a", b"3", REPLACE)
    checks.equal(owner.getxattr("file", "user.a"), b"3", "value")
    owner.removexattr("file", "user.a")
    owner.fails(ENODATA).removexattr("file", "user.a")


@cases("xattr/times", kind=["regular", "dir"])
def test_times(kind: str, root: Caller, owner: Caller, make: Make) -> None:
    make(kind, "file", OWNER)
    mtime = root.lstat("file").mtime
    with moves(root, {"file": "ctime"}):
        owner.setxattr("file", "user.a", b"1")
    with moves(root, {"file": "ctime"}):
        owner.removexattr("file", "user.a")
    root.expect("file", mtime=mtime)


@cases("xattr/buffer")
def test_buffer_sizes(owner: Caller, make: Make) -> None:
    make("regular", "file", OWNER)
    owner.setxattr("file", "user.name", b"0123456789")
    owner.fails(ERANGE).getxattr_sized("file", b"user.name", 9)
    owner.fails(ERANGE).getxattr_sized("file", b"user.name", 1)
    for size in (10, 11, 4096, 65536):
        checks.equal(owner.getxattr_sized("file", b"user.name", size), (10, b"0123456789"), f"with room for {size}")
    length, _ = owner.listxattr_sized("file", 0)
    owner.fails(ERANGE).listxattr_sized("file", length - 1)
    checks.check(b"user.name\0" in owner.listxattr_sized("file", length)[1], "the name is missing")


@cases("xattr/limits/name")
def test_longest_name(owner: Caller, make: Make) -> None:
    make("regular", "file", OWNER)
    longest = "user." + "n" * 250
    owner.setxattr("file", longest, b"value")
    checks.equal(owner.getxattr("file", longest), b"value", "value")
    checks.equal(of_user(owner.listxattr("file")), [longest], "names")
    owner.fails(ERANGE).setxattr("file", longest + "n", b"value")
    owner.fails(ERANGE).getxattr("file", longest + "n")


@cases("xattr/limits/value", size=[4000, 65535, 65536])
def test_largest_values(size: int, owner: Caller, root: Caller, make: Make) -> None:
    """64 KiB is Linux's limit; a filesystem may have less room (ENOSPC), but must not cut the value."""
    make("regular", "file", OWNER)
    value = os.urandom(size)
    number, _ = owner.attempt("setxattr", "file", "user.large", value, 0, True)
    checks.one_of(number, (0,) if size == 4000 else (0, ENOSPC, E2BIG), "errno")
    if number == 0:
        checks.check(owner.getxattr("file", "user.large") == value, "value")
    else:
        owner.fails(ENODATA).getxattr("file", "user.large")
    owner.fails(E2BIG).setxattr("file", "user.larger", bytes(65537))


@cases("xattr/many")
def test_many_names(owner: Caller, make: Make) -> None:
    make("regular", "file", OWNER)
    names = [f"user.{'name' * (number % 5)}{number}" for number in range(60)]
    for number, name in enumerate(names):
        owner.setxattr("file", name, b"%d" % number)
    checks.equal(of_user(owner.listxattr("file")), sorted(names), "names")
    for number, name in enumerate(names):
        checks.equal(owner.getxattr("file", name), b"%d" % number, "value")
    for name in names[::2]:
        owner.removexattr("file", name)
    checks.equal(of_user(owner.listxattr("file")), sorted(names[1::2]), "names that remain")


@cases("xattr/name-bytes")
def test_names_are_bytes(owner: Caller, make: Make) -> None:
    make("regular", "file", OWNER)
    name = b"user.\xff\xfe\x01 \xc3\xa9.=#"
    owner.setxattr("file", name, b"value")
    checks.equal(owner.getxattr("file", name), b"value", "value")
    checks.equal([os.fsencode(found) for found in of_user(owner.listxattr("file"))], [name], "names")


@cases("xattr/user-on/{kind}", kind=[kind for kind in KINDS if kind not in ("regular", "dir")])
def test_only_files_and_directories(kind: str, root: Caller, owner: Caller, make: Make) -> None:
    """User attributes of special files and symlinks are not allowed to anybody (xattr(7))."""
    make(kind, "file", OWNER)
    with unchanged(root, "file"):
        for user in (root, owner):
            user.fails(EPERM).setxattr("file", "user.a", b"1", 0, False)
            user.fails(ENODATA, EPERM).getxattr("file", "user.a", False)


@cases("xattr/trusted/{kind}", kind=[kind for kind in KINDS if kind != "symlink"])
def test_trusted(kind: str, root: Caller, owner: Caller, make: Make) -> None:
    """Attributes of root, on all types; for others they do not exist."""
    make(kind, "file", OWNER)
    root.setxattr("file", "trusted.a", b"secret", 0, False)
    checks.equal(root.getxattr("file", "trusted.a", False), b"secret", "value")
    checks.check("trusted.a" in root.listxattr("file", False), "root does not see the name")
    checks.check("trusted.a" not in owner.listxattr("file", False), "the owner sees the name")
    owner.fails(ENODATA, EPERM).getxattr("file", "trusted.a", False)
    owner.fails(EPERM).setxattr("file", "trusted.a", b"mine", 0, False)
    owner.fails(EPERM).removexattr("file", "trusted.a", False)
    root.removexattr("file", "trusted.a", False)


@cases("xattr/trusted/symlink")
def test_attributes_of_symlinks(root: Caller, make: Make) -> None:
    make("regular", "file")
    make("symlink", "link", target="file")
    root.setxattr("link", "trusted.a", b"link", 0, False)
    root.setxattr("link", "trusted.a", b"file", 0, True)
    checks.equal(root.getxattr("link", "trusted.a", False), b"link", "value of the link")
    checks.equal(root.getxattr("file", "trusted.a"), b"file", "value of the file")


@cases("xattr/permissions/{caller}", caller=[OWNER, MEMBER, SUPPLEMENTARY, OTHER], kind=["regular", "dir"])
def test_permissions(caller: Identity, kind: str, root: Caller, as_user: AsUser, make: Make) -> None:
    """They go by the file's read and write permission (xattr(7))."""
    make(kind, "file", OWNER, mode=0o777)
    root.setup.setxattr("file", "user.a", b"1")
    user = as_user(caller)
    shift = {OWNER: 6, MEMBER: 3, SUPPLEMENTARY: 3}.get(caller, 0)
    for bits in range(8):
        root.setup.chmod("file", 0o777 & ~(7 << shift) | bits << shift)
        user.expects(bits & 4 != 0, EACCES).getxattr("file", "user.a")
        user.expects(bits & 2 != 0, EACCES).setxattr("file", "user.a", b"2")
        user.expects(bits & 2 != 0, EACCES).setxattr("file", "user.b", b"2")
        user.expects(bits & 2 != 0, EACCES).removexattr("file", "user.b")
        checks.check("user.a" in user.listxattr("file"), "listing needs no permission on the file itself")


@cases("xattr/sticky-directory", caller=[OTHER, MEMBER])
def test_sticky_directories(caller: Identity, root: Caller, as_user: AsUser, make: Make) -> None:
    """Only its owner sets attributes of a sticky directory (xattr(7))."""
    make("dir", "dir", OWNER, mode=0o1777)
    with unchanged(root, "dir"):
        as_user(caller).fails(EPERM).setxattr("dir", "user.a", b"1")
    as_user(OWNER).setxattr("dir", "user.a", b"1")


@cases("xattr/namespaces")
def test_unknown_namespaces(root: Caller, make: Make) -> None:
    make("regular", "file")
    for name in ("nonsense.name", "noprefix", "user"):
        root.fails(EOPNOTSUPP).setxattr("file", name, b"1")
        root.fails(EOPNOTSUPP).getxattr("file", name)


@cases("xattr/names-share", way=["link", "rename"])
def test_attributes_belong_to_the_file(way: str, owner: Caller, make: Make) -> None:
    make("dir", "dir", OWNER)
    make("regular", "dir/file", OWNER)
    owner.setxattr("dir/file", "user.a", b"1")
    getattr(owner, way)("dir/file", "dir/second")
    checks.equal(owner.getxattr("dir/second", "user.a"), b"1", "value")
    owner.setxattr("dir/second", "user.a", b"2")
    if way == "link":
        checks.equal(owner.getxattr("dir/file", "user.a"), b"2", "value by the first name")


@cases("xattr/security-capability")
def test_file_capabilities(root: Caller, owner: Caller, other: Caller, make: Make) -> None:
    """Root may set them; they are gone after a write (capabilities(7))."""
    make("regular", "file", OWNER, mode=0o777)
    value = bytes.fromhex("0000000200040000000000000000000000000000")  # version 2, cap_net_bind_service permitted
    owner.fails(EPERM).setxattr("file", "security.capability", value)
    root.setxattr("file", "security.capability", value)
    checks.equal(root.getxattr("file", "security.capability"), value, "value")
    other.write(other.open("file", os.O_WRONLY), b"x")
    root.fails(ENODATA).getxattr("file", "security.capability")


@cases("xattr/seen-behind")
def test_the_same_behind(root: Caller, behind: Caller, make: Make) -> None:
    make("regular", "file")
    root.setxattr("file", "user.here", b"1")
    behind.setxattr("file", "user.there", b"2")
    for user in (root, behind):
        checks.equal(of_user(user.listxattr("file")), ["user.here", "user.there"], "names")
        checks.equal(user.getxattr("file", "user.there"), b"2", "value")
