"""GETXATTR, SETXATTR, LISTXATTR and REMOVEXATTR."""

import errno
import os

from fusepipe.wire import Op
from tests.server.volume import ROOT, Volume, fails, me, needs_root


def test_set_get_list_remove(disk: Volume) -> None:
    node = disk.create(b"f", mode=0)[0].node
    assert disk(Op.LISTXATTR, node).names == []
    disk(Op.SETXATTR, node, b"user.one", b"1\0\xff", 0)
    disk(Op.SETXATTR, node, b"user.empty", b"", 0)
    assert disk(Op.GETXATTR, node, b"user.one").value == b"1\0\xff"
    assert disk(Op.GETXATTR, node, b"user.empty").value == b""
    assert sorted(disk(Op.LISTXATTR, node).names) == [b"user.empty", b"user.one"]
    disk(Op.REMOVEXATTR, node, b"user.one")
    with fails(errno.ENODATA):
        disk(Op.GETXATTR, node, b"user.one")
    with fails(errno.ENODATA):
        disk(Op.REMOVEXATTR, node, b"user.one")


def test_create_and_replace(disk: Volume) -> None:
    node = disk.mkdir(b"d").node
    with fails(errno.ENODATA):
        disk(Op.SETXATTR, node, b"user.x", b"1", os.XATTR_REPLACE)
    disk(Op.SETXATTR, node, b"user.x", b"1", os.XATTR_CREATE)
    with fails(errno.EEXIST):
        disk(Op.SETXATTR, node, b"user.x", b"2", os.XATTR_CREATE)
    disk(Op.SETXATTR, node, b"user.x", b"2", os.XATTR_REPLACE)
    assert os.getxattr(disk.path / "d", "user.x") == b"2"


def test_names_and_sizes_at_the_limit(disk: Volume) -> None:
    disk(Op.SETXATTR, ROOT, b"user." + b"n" * 250, b"v", 0)
    with fails(errno.ERANGE):
        disk(Op.SETXATTR, ROOT, b"user." + b"n" * 251, b"v", 0)
    with fails(errno.EINVAL):
        disk(Op.GETXATTR, ROOT, b"user.a\0b")
    with fails(errno.E2BIG):
        disk(Op.SETXATTR, ROOT, b"user.big", bytes(65537), 0)
    with fails(errno.EOPNOTSUPP):
        disk(Op.SETXATTR, ROOT, b"unknown.x", b"v", 0)


def test_a_large_value(disk: Volume) -> None:
    value = os.urandom(3000)  # one block of ext4 holds about 4,000 bytes
    disk(Op.SETXATTR, ROOT, b"user.big", value, 0)
    assert disk(Op.GETXATTR, ROOT, b"user.big").value == value


@needs_root
def test_symlinks_have_their_own(disk: Volume) -> None:
    """A link is not followed: trusted.* is the link's, user.* is refused as the kernel refuses it."""
    (disk.path / "f").touch()
    os.setxattr(disk.path / "f", "user.x", b"of the file")
    os.setxattr(disk.path / "f", "trusted.x", b"of the file")
    node = disk(Op.SYMLINK, ROOT, b"link", b"f", *me()).entry.node
    disk(Op.SETXATTR, node, b"trusted.x", b"of the link", 0)
    assert os.getxattr(disk.path / "link", "trusted.x", follow_symlinks=False) == b"of the link"
    assert disk(Op.GETXATTR, node, b"trusted.x").value == b"of the link"
    assert disk(Op.LISTXATTR, node).names == [b"trusted.x"]
    with fails(errno.EPERM):
        disk(Op.SETXATTR, node, b"user.x", b"1", 0)
    with fails(errno.ENODATA):
        disk(Op.GETXATTR, node, b"user.x")
    disk(Op.REMOVEXATTR, node, b"trusted.x")
    assert os.getxattr(disk.path / "f", "trusted.x") == b"of the file"
