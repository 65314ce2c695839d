"""Times, modes, owners, special files, extended attributes and the figures of the whole filesystem."""

from __future__ import annotations

import errno
import os
import socket
import stat
import time
from pathlib import Path

import pytest

from tests.mount import children
from tests.mount.conftest import MountFactory, Place
from tests.mount.expect import fails

TIMES = [
    0,
    1,
    -1,
    -1_500_000_000_123_456_789,  # 1922
    2_147_483_647_999_999_999,
    2_147_483_648_000_000_001,  # after 2038
    6_000_000_000_987_654_321,  # 2160
]


@pytest.mark.parametrize("when", TIMES)
def test_times_to_the_nanosecond(place: Place, when: int) -> None:
    for name in ("file", "directory", "link"):
        path = place.mnt / name
        if name == "file":
            path.touch()
        elif name == "directory":
            path.mkdir()
        else:
            path.symlink_to("nowhere")
        os.utime(path, ns=(when, when + 5), follow_symlinks=False)
        os.utime(path, ns=(when, when + 5), follow_symlinks=False)
        for top in (place.mnt, place.src):
            found = (top / name).lstat()
            assert (found.st_atime_ns, found.st_mtime_ns) == (when, when + 5)


def test_utime_now_and_omit(place: Place) -> None:
    path = place.mnt / "file"
    path.touch()
    os.utime(path, ns=(1_000, 2_000))
    before = time.time_ns()
    out = children.run(
        """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        NOW, OMIT = (1 << 30) - 1, (1 << 30) - 2
        def set_times(atime, mtime):
            times = (ctypes.c_long * 4)(0, atime, 0, mtime)
            assert libc.utimensat(-100, os.fsencode(sys.argv[1]), times, 0) == 0
            s = os.stat(sys.argv[1])
            print(s.st_atime_ns, s.st_mtime_ns)
        set_times(OMIT, 77)
        set_times(OMIT, OMIT)
        set_times(NOW, OMIT)
        """,
        path,
    )
    (first, second, third) = [tuple(map(int, line.split())) for line in out.splitlines()]
    assert first == second == (1_000, 77)
    assert third[1] == 77
    assert abs(third[0] - before) < 60_000_000_000
    assert (place.src / "file").stat().st_atime_ns == third[0]


def test_writing_moves_mtime_and_ctime(place: Place) -> None:
    path = place.mnt / "file"
    path.write_text("one")
    os.utime(path, ns=(5, 5))
    before = path.stat()
    time.sleep(0.03)
    with path.open("a") as file:
        file.write("two")
    after = path.stat()
    assert after.st_mtime_ns > before.st_ctime_ns > 5
    assert after.st_ctime_ns > before.st_ctime_ns
    assert after.st_mtime_ns == (place.src / "file").stat().st_mtime_ns
    directory = place.mnt.stat()
    time.sleep(0.03)
    (place.mnt / "new").touch()
    assert place.mnt.stat().st_mtime_ns > directory.st_mtime_ns


def test_chmod_and_chown(place: Place) -> None:
    path = place.mnt / "file"
    path.touch()
    for mode in (0, 0o7777, 0o644, 0o4711, 0o1600):
        path.chmod(mode)
        assert stat.S_IMODE((place.src / "file").stat().st_mode) == mode == stat.S_IMODE(path.stat().st_mode)
    path.chmod(0o644)
    os.chown(path, 12345, -1)
    os.chown(path, -1, 12346)
    found = (place.src / "file").stat()
    assert (found.st_uid, found.st_gid) == (12345, 12346)
    os.chown(path, 4_000_000_000, 4_000_000_001)
    found = path.stat()
    assert (found.st_uid, found.st_gid) == (4_000_000_000, 4_000_000_001)


def test_special_files(place: Place) -> None:
    os.mkfifo(place.mnt / "fifo", 0o640)
    os.mknod(place.mnt / "char", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(place.mnt / "block", stat.S_IFBLK | 0o600, os.makedev(259, 1_000_000))
    os.mknod(place.mnt / "socket-node", stat.S_IFSOCK | 0o600)
    os.mknod(place.mnt / "regular", stat.S_IFREG | 0o604)
    for name in ("fifo", "char", "block", "socket-node", "regular"):
        guest, host = (place.mnt / name).lstat(), (place.src / name).lstat()
        assert (guest.st_mode, guest.st_rdev) == (host.st_mode, host.st_rdev)
    assert (place.src / "char").stat().st_rdev == os.makedev(1, 3)
    os.mknod(place.src / "from-host", stat.S_IFBLK | 0o600, os.makedev(4000, 70_000))
    assert (place.mnt / "from-host").stat().st_rdev == os.makedev(4000, 70_000)


def test_fifo_and_socket_work(place: Place) -> None:
    os.mkfifo(place.mnt / "fifo")
    reader = children.spawn("print(open(sys.argv[1]).read(), end='')", place.mnt / "fifo")
    writer = children.spawn("open(sys.argv[1], 'w').write('through')", place.mnt / "fifo")
    children.finish(writer)
    assert children.finish(reader) == "through"
    os.chdir(place.mnt)
    try:
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            server.bind("socket")
            server.listen()
            client.connect("socket")
            connection, _ = server.accept()
            with connection:
                client.sendall(b"hello")
                assert connection.recv(10) == b"hello"
    finally:
        os.chdir("/")
    assert stat.S_ISSOCK((place.src / "socket").lstat().st_mode)


def test_xattrs(place: Place) -> None:
    path, twin = place.mnt / "file", place.src / "file"
    path.touch()
    values = {"user.text": b"value", "user.binary": bytes(range(256)), "user.empty": b"", "user." + "n" * 250: b"long"}
    values |= {"trusted.one": b"t", "security.test": b"s"}
    for name, value in values.items():
        os.setxattr(path, name, value)
    assert {name: os.getxattr(path, name) for name in os.listxattr(path)} == values
    assert {name: os.getxattr(twin, name) for name in os.listxattr(twin)} == values
    os.setxattr(path, "user.text", b"other", os.XATTR_REPLACE)
    assert os.getxattr(twin, "user.text") == b"other"
    with fails(errno.EEXIST):
        os.setxattr(path, "user.text", b"x", os.XATTR_CREATE)
    with fails(errno.ENODATA):
        os.setxattr(path, "user.absent", b"x", os.XATTR_REPLACE)
    with fails(errno.ENODATA):
        os.getxattr(path, "user.absent")
    os.removexattr(path, "user.text")
    with fails(errno.ENODATA):
        os.removexattr(path, "user.text")
    assert "user.text" not in os.listxattr(twin)


def outcome(call: object, *arguments: object) -> object:
    assert callable(call)
    try:
        return call(*arguments)
    except OSError as error:
        return error.errno


@pytest.mark.parametrize("size", [100, 3000, 4000, 4096, 10_000, 65_536])
def test_xattr_sizes_as_on_the_host(place: Place, size: int) -> None:
    for top in (place.twin, place.mnt):
        (top / "file").touch()
    value = b"v" * size
    assert outcome(os.setxattr, place.mnt / "file", "user.x", value) == outcome(
        os.setxattr, place.twin / "file", "user.x", value
    )
    assert outcome(os.getxattr, place.mnt / "file", "user.x") == outcome(os.getxattr, place.twin / "file", "user.x")


@pytest.mark.once
def test_xattr_limits_on_tmpfs(tmpfs: Path, mounts: MountFactory) -> None:
    """tmpfs takes values and lists up to the kernel's limits (64 KiB each); more is refused, by size and by name."""
    mount = mounts(source=tmpfs)
    path = mount.path / "file"
    path.touch()
    os.setxattr(path, "trusted.big", b"v" * 65_536)
    assert os.getxattr(path, "trusted.big") == b"v" * 65_536 == os.getxattr(tmpfs / "file", "trusted.big")
    assert outcome(os.setxattr, path, "trusted.big", b"v" * 65_537) == 7  # E2BIG
    assert outcome(os.setxattr, path, "user." + "n" * 251, b"") == 34  # ERANGE
    names = {f"trusted.{i:03d}" + "n" * 200 for i in range(200)}
    for name in names:
        os.setxattr(path, name, b"")
    assert set(os.listxattr(path)) == names | {"trusted.big"}


def test_xattr_of_directories_and_namespaces(place: Place) -> None:
    results = []
    for top in (place.twin, place.mnt):
        (top / "link").symlink_to("nowhere")
        (top / "directory").mkdir()
        os.mkfifo(top / "fifo")
        os.setxattr(top / "directory", "user.x", b"directory")
        results.append(
            [
                outcome(os.setxattr, top / "directory", "nonsense.x", b""),
                outcome(os.setxattr, top / "fifo", "user.x", b""),
                outcome(lambda top=top: os.setxattr(top / "link", "user.x", b"", follow_symlinks=False)),
                outcome(lambda top=top: os.listxattr(top / "link", follow_symlinks=False)),
                os.listxattr(top / "directory"),
                outcome(os.setxattr, top / "directory", "trusted.overlay.opaque", b"y"),
                outcome(os.getxattr, top / "directory", "security.capability"),
            ]
        )
    assert results[1] == results[0]


def test_file_capabilities(place: Place) -> None:
    """security.capability as setcap writes it, and the kernel drops it when somebody writes to the file."""
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    for top in (place.twin, place.mnt):
        (top / "program").write_text("x")
        os.setxattr(top / "program", "security.capability", capability)
        assert os.getxattr(top / "program", "security.capability") == capability
        with (top / "program").open("a") as file:
            file.write("more")
    assert (
        os.listxattr(place.mnt / "program")
        == os.listxattr(place.src / "program")
        == os.listxattr(place.twin / "program")
    )


def test_trusted_is_for_root(place: Place) -> None:
    place.src.chmod(0o777)
    (place.mnt / "file").touch()
    (place.mnt / "file").chmod(0o666)
    os.setxattr(place.mnt / "file", "trusted.secret", b"x")
    out = children.run(
        """
        os.setxattr(sys.argv[1], "user.mine", b"1")
        print(os.listxattr(sys.argv[1]))
        for call, args in ((os.getxattr, ("trusted.secret",)), (os.setxattr, ("trusted.mine", b""))):
            try:
                print(call(sys.argv[1], *args))
            except OSError as error:
                print(errno.errorcode[error.errno])
        """,
        place.mnt / "file",
        user=12345,
    )
    twin = place.twin / "file"
    assert out.splitlines()[1:] == ["ENODATA", "EPERM"], (out, twin)
    assert "user.mine" in out.splitlines()[0]


@pytest.mark.once
def test_statfs(tmpfs: Path, mounts: MountFactory) -> None:
    mount = mounts(source=tmpfs)
    (mount.path / "file").write_bytes(bytes(3_000_000))
    guest, host = os.statvfs(mount.path), os.statvfs(tmpfs)
    names = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_namemax")
    assert {n: getattr(guest, n) for n in names} == {n: getattr(host, n) for n in names}
    deep = mount.path / "directory"
    deep.mkdir()
    assert os.statvfs(deep).f_blocks == host.f_blocks


def test_block_size_and_blocks(place: Place) -> None:
    (place.mnt / "file").write_bytes(bytes(50_000))
    with (place.mnt / "file").open("rb") as file:
        os.fsync(file.fileno())
    guest, host = (place.mnt / "file").stat(), (place.src / "file").stat()
    assert (guest.st_blksize, guest.st_blocks, guest.st_size) == (host.st_blksize, host.st_blocks, host.st_size)


def test_access(place: Place) -> None:
    (place.mnt / "file").touch()
    (place.mnt / "file").chmod(0o640)
    os.chown(place.mnt / "file", 1, 12346)
    place.src.chmod(0o755)
    code = "print(*[os.access(sys.argv[1], m) for m in (os.F_OK, os.R_OK, os.W_OK, os.X_OK)])"
    assert children.run(code, place.mnt / "file", user=12345, groups=[12346]) == "True True False False\n"
    assert children.run(code, place.mnt / "file", user=12345) == "True False False False\n"
    assert children.run(code, place.mnt / "file") == "True True True False\n"
