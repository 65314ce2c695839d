"""O_TMPFILE: files without names, whole before anybody sees them."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.mount import children, mounttable
from tests.mount.conftest import MountFactory, Place
from tests.mount.expect import fails

USER = 4321
MIB = 1 << 20


def tmpfile(directory: Path, mode: int = 0o600, flags: int = os.O_RDWR) -> int:
    return os.open(directory, os.O_TMPFILE | flags, mode)


def link(fd: int, path: Path) -> None:
    """os.link() follows the symlink only when it is given a directory."""
    os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)


def test_written_whole_and_then_named(place: Place) -> None:
    data = os.urandom(3 * MIB)
    fd = tmpfile(place.mnt)
    os.write(fd, data)
    found = os.fstat(fd)
    assert (found.st_nlink, found.st_size) == (0, len(data))
    assert os.listdir(place.src) == []
    place.mount.drop_dentries()
    assert os.pread(fd, len(data), 0) == data
    link(fd, place.mnt / "whole")
    assert os.fstat(fd).st_nlink == os.stat(place.mnt / "whole").st_nlink == 1
    assert os.stat(place.mnt / "whole").st_ino == found.st_ino == os.stat(place.src / "whole").st_ino
    os.write(fd, b"tail")
    os.close(fd)
    assert (place.src / "whole").read_bytes() == (place.mnt / "whole").read_bytes() == data + b"tail"
    with fails(errno.EEXIST):
        fd = tmpfile(place.mnt)
        try:
            link(fd, place.mnt / "whole")
        finally:
            os.close(fd)


def test_o_excl_means_never_a_name(place: Place) -> None:
    fd = tmpfile(place.mnt, flags=os.O_RDWR | os.O_EXCL)
    os.write(fd, b"private")
    with fails(errno.ENOENT):
        link(fd, place.mnt / "name")
    assert os.pread(fd, 10, 0) == b"private"
    os.close(fd)


def test_its_space_is_free_afterwards(tmpfs: Path, mounts: MountFactory, real: str) -> None:
    mount = mounts(source=tmpfs)
    for _ in range(5):  # of 40 MiB each, in 64
        fd = tmpfile(mount.path)
        os.write(fd, b"x" * (40 * MIB))
        os.close(fd)
    mount.unmount()
    assert list(tmpfs.iterdir()) == []


AS_USER = """
os.umask(0o027)
fd = os.open(sys.argv[1], os.O_TMPFILE | os.O_RDWR, 0o666)
os.write(fd, b"his")
os.link(f"/proc/self/fd/{fd}", sys.argv[1] + "/" + sys.argv[2], src_dir_fd=fd, follow_symlinks=True)
"""


def test_it_belongs_to_who_made_it(place: Place) -> None:
    (place.mnt / "open").mkdir()
    (place.mnt / "open").chmod(0o1777)
    (place.mnt / "group").mkdir()
    os.chown(place.mnt / "group", 0, USER + 1)
    (place.mnt / "group").chmod(0o2775)
    place.mnt.chmod(0o755)
    place.src.chmod(0o755)
    for directory, groups, gid in (("open", [], USER), ("group", [USER + 1], USER + 1)):
        done = subprocess.run(
            ["python3", "-c", f"import os, sys\n{AS_USER}", place.mnt / directory, "file"],
            user=USER,
            group=USER,
            extra_groups=groups,
            timeout=60,
        )
        assert done.returncode == 0
        found = os.stat(place.src / directory / "file")
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (USER, gid, 0o640)
    refused = subprocess.run(
        ["python3", "-c", f"import os, sys\n{AS_USER}", place.mnt / "group", "second"],
        user=USER,
        group=USER,
        extra_groups=[],
        timeout=60,
        capture_output=True,
    )
    assert b"PermissionError" in refused.stderr


def test_a_default_acl_replaces_the_umask(place: Place) -> None:
    (place.src / "dir").mkdir()
    subprocess.run(
        ["setfacl", "-d", "-m", f"u::rwx,g::rwx,o::r,u:{USER}:rw", place.src / "dir"], check=True, timeout=30
    )
    modes = []
    before = os.umask(0o077)
    try:
        for top in (place.src, place.mnt):
            fd = tmpfile(top / "dir", 0o666)
            modes.append(os.fstat(fd).st_mode)
            link(fd, top / "dir" / f"file{len(modes)}")
            os.close(fd)
    finally:
        os.umask(before)
    assert modes[0] == modes[1]
    acls = [os.getxattr(place.src / "dir" / f"file{n}", "system.posix_acl_access") for n in (1, 2)]
    assert acls[0] == acls[1]


@pytest.mark.once
def test_where_the_host_has_none(scratch: Path, mounts: MountFactory, real: str) -> None:
    """Programs fall back to a name on EOPNOTSUPP (open(2))."""
    proc = scratch / "proc"
    proc.mkdir()
    mounttable.mount("proc", proc, "proc", 0, "")
    try:
        mount = mounts(source=proc)
        with fails(errno.EOPNOTSUPP):
            tmpfile(mount.path)
        mount.unmount()
    finally:
        mounttable.umount(proc, mounttable.MNT_DETACH)


def test_read_only(mounts: MountFactory, real: str) -> None:
    mount = mounts("--read-only") if real != "serve" else mounts(read_only_volume=True)
    with fails(errno.EROFS):
        tmpfile(mount.path)


HOLDS = """
fds = [os.open(sys.argv[1], os.O_TMPFILE | os.O_RDWR, 0o600) for _ in range(200)]
for number, fd in enumerate(fds):
    os.write(fd, str(number).encode())
print("ready", flush=True)
sys.stdin.readline()
assert [os.pread(fd, 10, 0) for fd in fds] == [str(number).encode() for number in range(200)]
print("same", flush=True)
"""


def test_many_at_once(place: Place) -> None:
    holders = [children.spawn(HOLDS, place.mnt) for _ in range(3)]
    for holder in holders:
        assert children.read_line(holder) == "ready"
    place.mount.drop_dentries()
    for holder in holders:
        assert holder.stdin is not None
        holder.stdin.write("go\n")
        holder.stdin.flush()
        assert children.read_line(holder) == "same"
        holder.wait(30)
