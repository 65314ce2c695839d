"""Whose a new inode is: ids, supplementary groups, umask, set-gid directories, default ACLs."""

import errno
import os
import stat
import struct
from collections.abc import Callable

import pytest

from fusepipe.wire import Op
from tests.server.volume import ROOT, Volume, fails, in_thread, needs_root

pytestmark = needs_root

UID, GID, GROUP = 1000, 2000, 3000
KILL = 4


@pytest.fixture(autouse=True)
def _open_to_all(volume: Volume) -> None:
    volume.path.chmod(0o777)


def make(volume: Volume, kind: str, name: bytes, umask: int, uid: int, gid: int, groups: tuple[int, ...]) -> object:
    who = (uid, gid, groups)
    if kind == "directory":
        return volume(Op.MKDIR, ROOT, name, 0o777, umask, *who)
    if kind == "symlink":
        return volume(Op.SYMLINK, ROOT, name, b"target", *who)
    if kind == "created":
        return volume(Op.CREATE, ROOT, name, os.O_RDWR, 0o666, umask, *who, False)
    types = {"file": stat.S_IFREG, "fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK}
    return volume(Op.MKNOD, ROOT, name, types[kind] | 0o666, 0, umask, *who)


KINDS = ["directory", "symlink", "created", "file", "fifo", "socket"]


@pytest.mark.parametrize("kind", KINDS)
def test_it_belongs_to_the_caller(volume: Volume, kind: str) -> None:
    make(volume, kind, b"mine", 0o027, UID, GID, ())
    st = (volume.path / "mine").lstat()
    assert (st.st_uid, st.st_gid) == (UID, GID)
    if kind != "symlink":
        assert stat.S_IMODE(st.st_mode) == (0o750 if kind == "directory" else 0o640)


@pytest.mark.parametrize("kind", KINDS)
def test_a_set_gid_directory_gives_its_group(volume: Volume, kind: str) -> None:
    os.chown(volume.path, 0, GROUP)
    volume.path.chmod(0o2777)
    make(volume, kind, b"mine", 0o022, UID, GID, ())
    st = (volume.path / "mine").lstat()
    assert (st.st_uid, st.st_gid) == (UID, GROUP)
    assert bool(st.st_mode & stat.S_ISGID) is (kind == "directory")


@pytest.mark.parametrize("kind", KINDS)
def test_permission_to_create_by_a_supplementary_group(volume: Volume, kind: str) -> None:
    os.chown(volume.path, 0, GROUP)
    volume.path.chmod(0o775)
    with fails(errno.EACCES):
        make(volume, kind, b"mine", 0, UID, GID, (5,))
    make(volume, kind, b"mine", 0, UID, GID, (5, GROUP))
    assert (volume.path / "mine").lstat().st_gid == GID


@pytest.mark.parametrize("kind", ["directory", "created", "file"])
def test_a_default_acl_replaces_the_umask(volume: Volume, kind: str) -> None:
    entry = struct.Struct("<HHI")
    rights = ((0x01, 7, 0), (0x02, 7, 1234), (0x04, 5, 0), (0x10, 7, 0), (0x20, 0, 0))
    acl = struct.pack("<I", 2) + b"".join(
        entry.pack(tag, perm, ident if tag == 0x02 else 0xFFFFFFFF) for tag, perm, ident in rights
    )
    os.setxattr(volume.path, "system.posix_acl_default", acl)
    make(volume, kind, b"mine", 0o077, UID, GID, ())
    mode = stat.S_IMODE((volume.path / "mine").stat().st_mode)
    assert mode == (0o770 if kind == "directory" else 0o660), "the group bits are the mask of the ACL"
    assert "system.posix_acl_access" in os.listxattr(volume.path / "mine")


def test_set_id_bits_survive_creation(volume: Volume) -> None:
    volume(Op.MKNOD, ROOT, b"f", stat.S_IFREG | 0o4755, 0, 0, UID, GID, ())
    assert stat.S_IMODE((volume.path / "f").stat().st_mode) == 0o4755


def test_devices_are_for_root(volume: Volume) -> None:
    device = os.makedev(1, 3)
    with fails(errno.EPERM):
        volume(Op.MKNOD, ROOT, b"dev", stat.S_IFCHR | 0o600, device, 0, UID, GID, ())
    entry = volume(Op.MKNOD, ROOT, b"dev", stat.S_IFCHR | 0o600, device, 0, 0, 0, ()).entry
    assert (entry.attr.rdev, stat.S_ISCHR(entry.attr.mode)) == (device, True)


def test_an_existing_file_is_opened_with_the_callers_rights(volume: Volume) -> None:
    (volume.path / "root's").touch(0o600)
    with fails(errno.EACCES):
        volume(Op.CREATE, ROOT, b"root's", os.O_RDWR, 0o666, 0, UID, GID, (), False)


def test_no_id_is_no_root(volume: Volume) -> None:
    """-1 would leave root's ids in place."""
    for who in (((1 << 32) - 1, GID), (UID, (1 << 32) - 1)):
        with fails(errno.EINVAL):
            volume(Op.MKDIR, ROOT, b"d", 0o777, 0, *who, ())
        with fails(errno.EINVAL):
            volume(Op.CREATE, ROOT, b"f", os.O_RDWR, 0o666, 0, *who, (), False)
    assert os.listdir(volume.path) == []


def test_the_threads_own_identity_comes_back(volume: Volume) -> None:
    def identity() -> dict[str, str]:
        with open("/proc/thread-self/status") as status:
            fields = dict(line.rstrip("\n").split(":", 1) for line in status)
        return {name: fields[name] for name in ("Uid", "Gid", "Groups", "CapEff", "CapPrm", "Umask")}

    def check() -> None:
        before = identity()
        make(volume, "created", b"one", 0o077, UID, GID, (1, 2, 3))
        assert identity() == before
        with fails(errno.EEXIST):
            make(volume, "directory", b"one", 0o077, UID, GID, tuple(range(1, 500)))
        assert identity() == before
        with fails(errno.EACCES):
            volume(Op.ACCESS, volume.lookup(b"one").node, 7, UID + 1, GID + 1, ())
        assert identity() == before
        with fails(errno.EINVAL):
            make(volume, "directory", b"two", 0, UID, GID, tuple(range(70000)))
        assert identity() == before
        (volume.path / "one").chmod(0o6766)
        node = volume.lookup(b"one").node
        volume.write(volume.open(node), b"x", 0, KILL)
        volume(Op.OPEN, node, os.O_RDWR | os.O_TRUNC, True, 0, 0)
        assert identity() == before

    in_thread(check)


def test_a_server_that_is_not_root_creates_as_itself(
    volume: Volume, as_user: Callable[[Callable[[], None]], None]
) -> None:
    def check() -> None:
        with Volume(volume.path, privileged=False) as mine:
            mine(Op.MKDIR, ROOT, b"d", 0o777, 0o022, 0, 0, ())
            mine(Op.CREATE, ROOT, b"f", os.O_RDWR, 0o666, 0o022, 12, 13, (), False)

    as_user(check)
    for name, mode in (("d", 0o755), ("f", 0o644)):
        st = (volume.path / name).stat()
        assert (st.st_uid, stat.S_IMODE(st.st_mode)) == (65534, mode)
