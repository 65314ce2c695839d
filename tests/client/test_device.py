"""The filter on a real /dev/fuse, and the mount without it."""

import errno
import fcntl
import mmap
import os
import select
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fusepipe.device import InitFlag, Ioctl
from tests.client.conftest import Mounted

Mounting = Callable[..., Mounted]


def program(code: str, *arguments: str | Path, **more: object) -> subprocess.Popen[bytes]:
    """A program that uses the mount."""
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], **more)  # type: ignore[call-overload,no-any-return]  # passed on


def test_inode_numbers_are_the_hosts_and_not_the_node_ids(mounted: Mounting) -> None:
    mount = mounted()
    number = mount("stats")["inos"]["file"]
    assert number > 1 << 40
    assert os.stat(mount.path / "file").st_ino == number
    assert {e.name: e.inode() for e in os.scandir(mount.path)} == {"file": number}
    with open(mount.path / "file") as file:
        assert os.fstat(file.fileno()).st_ino == number
    os.link(mount.path / "file", mount.path / "other")
    assert os.stat(mount.path / "other").st_ino == number
    makes: list[Callable[[Path], None]] = [os.mkdir, os.mkfifo, Path.touch, lambda path: os.symlink("x", path)]
    for make in makes:
        make(mount.path / "new")
        made = os.lstat(mount.path / "new")
        assert made.st_ino == mount("stats")["inos"]["new"]
        (os.rmdir if stat.S_ISDIR(made.st_mode) else os.unlink)(mount.path / "new")
    mount.unmount()


def test_init_is_what_was_asked_for(mounted: Mounting) -> None:
    mount = mounted(readers=48)
    agreed = mount("stats")["agreed"]
    flags = InitFlag(agreed["flags"])
    offered = InitFlag(agreed["offered"])
    for flag in (
        InitFlag.PARALLEL_DIROPS,
        InitFlag.DONT_MASK,
        InitFlag.ASYNC_DIO,
        InitFlag.POSIX_ACL,
        InitFlag.MAX_PAGES,
    ):
        assert flag & flags
    for flag in (InitFlag.HANDLE_KILLPRIV_V2, InitFlag.CREATE_SUPP_GROUP, InitFlag.DIRECT_IO_ALLOW_MMAP):
        assert (flag & flags) == (flag & offered)
    assert not flags & (InitFlag.WRITEBACK_CACHE | InitFlag.READDIRPLUS_AUTO | InitFlag.POSIX_LOCKS)
    assert (agreed["max_write"], agreed["max_readahead"]) == (1 << 20, 1 << 20)
    assert (agreed["max_background"], agreed["congestion_threshold"]) == (48, 36)
    device = os.stat(mount.path).st_dev
    read_ahead = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb").read_text()
    assert int(read_ahead) == 1024
    mount.unmount()


def test_requests_keep_to_the_limits_of_the_server(mounted: Mounting) -> None:
    mount = mounted(limits={"max_write": 65536, "max_read": 131072})
    with open(mount.path / "file", "wb", buffering=0) as file:
        file.write(bytes(300_000))
    assert (mount.path / "file").read_bytes() == bytes(300_000)
    fd = os.open(mount.path / "file", os.O_RDWR | os.O_DIRECT)
    os.close(fd)
    assert max(r["size"] for r in mount("requests", "ReadRequest")) <= 65536
    assert len(mount("requests", "WriteRequest")) >= 5
    mount.unmount()


def test_forgets_and_releases_come_in_batches_and_lose_nothing(mounted: Mounting) -> None:
    mount = mounted()
    mount("add_many", 500)
    for _ in range(3):
        assert len(os.listdir(mount.path)) == 501
        for entry in os.scandir(mount.path):
            with open(entry.path):
                pass
    Path("/proc/sys/vm/drop_caches").write_text("2")
    stats = mount.eventually(lambda stats: len(stats["counts"]) < 50 and not stats["handles"])
    assert stats["device"]["releases"] >= 1500
    assert stats["device"]["forgets"] >= 450
    assert stats["answered"]["CLEANUP"] < stats["device"]["releases"]
    assert stats["device"]["lost"] == 0 and stats["device"]["waiting"] == 0
    mount.unmount()


def test_fields_that_pyfuse3_hides_reach_the_server(mounted: Mounting) -> None:
    mount = mounted()
    previous = os.umask(0o027)
    try:
        os.close(os.open(mount.path / "new", os.O_CREAT | os.O_RDWR, 0o666))
        os.mkdir(mount.path / "dir", 0o777)
        os.mkfifo(mount.path / "fifo", 0o666)
    finally:
        os.umask(previous)
    for kind, name in (("CreateRequest", "new"), ("MkdirRequest", "dir"), ("MknodRequest", "fifo")):
        (request,) = mount("requests", kind)
        assert (request["name"], request["umask"]) == (name, 0o027)
    assert stat.S_IMODE(os.stat(mount.path / "new").st_mode) == 0o640
    os.utime(mount.path / "new")
    assert mount("requests", "SetattrRequest")[-1]["valid"] == 16 | 32 | 128 | 256
    os.utime(mount.path / "new", ns=(1, -1))
    last = mount("requests", "SetattrRequest")[-1]
    assert (last["valid"], last["atime_ns"], last["mtime"], last["mtime_ns"]) == (16 | 32, 1, -1, 999_999_999)
    os.setxattr(mount.path / "new", "user.a", b"1", os.XATTR_CREATE)
    with pytest.raises(FileExistsError):
        os.setxattr(mount.path / "new", "user.a", b"1", os.XATTR_CREATE)
    assert [r["flags"] for r in mount("requests", "SetxattrRequest")] == [os.XATTR_CREATE] * 2
    with open(mount.path / "new", "r+b") as file:
        file.truncate(3)
        assert mount("requests", "SetattrRequest")[-1]["handle"] != 0
    sizes = {r["size"] for r in mount("requests", "ReaddirRequest")}
    os.listdir(mount.path)
    sizes |= {r["size"] for r in mount("requests", "ReaddirRequest")}
    assert sizes and min(sizes) >= 4096
    mount.unmount()


UNPRIVILEGED = """
import os, sys
os.setgroups([5000, 5001, 5002]); os.setgid(4000); os.setuid(4001)
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o644)
for _ in range(10):
    os.write(fd, b"x")
os.ftruncate(fd, 0)
os.close(fd)
os.close(os.open(sys.argv[1], os.O_RDWR | os.O_TRUNC))
"""


def test_callers_are_named_with_the_group_that_matters_and_kill_flags(mounted: Mounting, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    tmp_path.parent.chmod(0o755)
    mount = mounted()
    os.chown(mount.path, 0, 5001)
    os.chmod(mount.path, 0o775)
    assert program(UNPRIVILEGED, mount.path / "new").wait(10) == 0
    (request,) = mount("requests", "CreateRequest")
    assert (request["uid"], request["gid"]) == (4001, 4000)
    agreed = InitFlag(mount("stats")["agreed"]["flags"])
    groups = [5001] if InitFlag.CREATE_SUPP_GROUP & agreed else [5000, 5001, 5002]
    assert request["groups"] == groups
    if InitFlag.HANDLE_KILLPRIV_V2 & agreed:
        assert mount("requests", "OpenRequest")[-1]["kill"] is True
        assert mount("requests", "SetattrRequest")[-1]["valid"] & (1 << 11)
        assert mount("requests", "WriteRequest")[-1]["flags"] & 4
        asked = [r for r in mount("requests", "GetxattrRequest") if r["name"] == "security.capability"]
        assert len(asked) <= 2  # else one for each write
    mount.unmount()


SETS_ACL = """
import os, struct, sys
os.setgroups([]); os.setgid(4000); os.setuid(4001)
entry = lambda tag, bits, who=0xFFFFFFFF: struct.pack("<HHI", tag, bits, who)
acl = struct.pack("<I", 2) + entry(1, 7) + entry(2, 6, 4002) + entry(4, 7) + entry(16, 7) + entry(32, 0)
os.setxattr(sys.argv[1], "system.posix_acl_access", acl)
os.setxattr(sys.argv[1], "user.long", b"v" * 10_000, os.XATTR_CREATE)
"""


def test_an_acl_clears_set_gid_and_values_arrive_whole(mounted: Mounting, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    tmp_path.parent.chmod(0o755)
    mount = mounted()
    os.chown(mount.path / "file", 4001, 5001)
    os.chmod(mount.path / "file", 0o2770)
    assert program(SETS_ACL, mount.path / "file").wait(10) == 0
    acl, plain = mount("requests", "SetxattrRequest")
    assert (acl["name"], len(acl["value"]), acl["flags"]) == ("system.posix_acl_access", 44, 0)
    assert plain == {**plain, "name": "user.long", "value": "v" * 10_000, "flags": os.XATTR_CREATE}
    if InitFlag.SETXATTR_EXT & InitFlag(mount("stats")["agreed"]["flags"]):
        assert stat.S_IMODE(os.stat(mount.path / "file").st_mode) == 0o770
    mount.unmount()


def test_what_nothing_serves_yet_is_refused_and_harms_nothing(mounted: Mounting) -> None:
    mount = mounted()
    (mount.path / "file").write_bytes(bytes(10_000))
    with open(mount.path / "file", "r+b") as file:
        fd = file.fileno()
        with pytest.raises(OSError, match=os.strerror(errno.ENOTTY)):
            fcntl.ioctl(fd, 0x5401)
        fcntl.lockf(fd, fcntl.LOCK_EX)
        fcntl.flock(fd, fcntl.LOCK_EX)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        assert poll.poll(0)
    os.sync()
    assert subprocess.run(["stat", "-f", mount.path], capture_output=True, timeout=10).returncode == 0
    assert mount("stats")["device"]["waiting"] == 0
    mount.unmount()


def test_what_pyfuse3_does_not_know_is_answered(mounted: Mounting) -> None:
    mount = mounted()
    (mount.path / "file").write_bytes(bytes(8192) + b"data")
    with open(mount.path / "file", "r+b") as file, open(mount.path / "copy", "w+b") as copy:
        fd = file.fileno()
        assert os.lseek(fd, 0, os.SEEK_DATA) == 8192
        assert os.lseek(fd, 8192, os.SEEK_HOLE) == 8196
        with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
            os.lseek(fd, 8196, os.SEEK_DATA)
        os.posix_fallocate(fd, 0, 20_000)
        assert os.fstat(fd).st_size == 20_000
        assert os.copy_file_range(fd, copy.fileno(), 20_000, 8192, 3) == 20_000 - 8192
        assert copy.read(8) == b"\0\0\0data\0"
        assert os.fstat(copy.fileno()).st_size == 20_000 - 8192 + 3
    (allocated,), (copied,) = mount("requests", "FallocateRequest"), mount("requests", "CopyFileRangeRequest")
    assert (allocated["mode"], allocated["offset"], allocated["length"], allocated["kill"]) == (0, 0, 20_000, False)
    assert (copied["offset"], copied["to_offset"], copied["length"], copied["kill"]) == (8192, 3, 20_000 - 8192, False)
    stats = mount("stats")
    assert stats["device"]["taken"] == 5
    assert stats["answered"]["LSEEK"] == 3
    assert stats["device"]["waiting"] == 0
    mount.unmount()


def test_flags_files_without_names_and_birth_times(mounted: Mounting) -> None:
    mount = mounted()
    previous = os.umask(0o027)
    try:
        fd = os.open(mount.path, os.O_TMPFILE | os.O_RDWR, 0o666)
    finally:
        os.umask(previous)
    assert (os.fstat(fd).st_nlink, stat.S_IMODE(os.fstat(fd).st_mode)) == (0, 0o640)
    assert os.fstat(fd).st_ino > 1 << 40  # not the node id
    os.write(fd, b"text")
    os.link(f"/proc/self/fd/{fd}", mount.path / "linked", src_dir_fd=fd, follow_symlinks=True)
    os.close(fd)
    assert (mount.path / "linked").read_text() == "text"
    (request,) = mount("requests", "TmpfileRequest")
    assert (request["parent"], request["umask"], request["uid"]) == (1, 0o027, 0)
    with open(mount.path / "linked", "rb") as file:
        fcntl.ioctl(file, Ioctl.SETFLAGS, struct.pack("@l", 0x40))
        assert struct.unpack_from("@i", fcntl.ioctl(file, Ioctl.GETFLAGS, bytes(8))) == (0x40,)
        for command in (0x5401, Ioctl.FSSETXATTR):
            with pytest.raises(OSError) as caught:
                fcntl.ioctl(file, command, bytes(100))
            assert caught.value.errno in (errno.ENOTTY, errno.EOPNOTSUPP)
    said = subprocess.run(["stat", "-c", "%W %s", mount.path / "linked"], capture_output=True, text=True, timeout=30)
    assert said.stdout.split() == ["1000000000", "4"]
    assert mount("stats")["device"]["waiting"] == 0
    mount.unmount()


SEEKS = "import os, sys; os.lseek(os.open(sys.argv[1], os.O_RDONLY), 0, os.SEEK_DATA)"


def test_what_pyfuse3_does_not_know_is_interrupted_as_everything_else(mounted: Mounting) -> None:
    """With one slot, which is taken: the first request waits for the server, the others for the slot."""
    mount = mounted(readers=1)
    mount("hold", "lseek")
    waiting = program(SEEKS, mount.path / "file")
    mount.eventually(lambda stats: stats["held"].get("lseek") == 1)
    parked = [program(WAITS, mount.path / f"name{number}") for number in range(3)]
    mount.eventually(lambda stats: stats["device"]["waiting"] == 4)
    for one in parked:
        one.kill()
    assert [one.wait(30) for one in parked] == [-signal.SIGKILL] * 3
    waiting.kill()
    mount.eventually(lambda stats: stats["interrupted"] == 1)
    mount("release", "lseek")
    assert waiting.wait(30) == -signal.SIGKILL
    mount.eventually(lambda stats: stats["device"]["waiting"] == 0)
    mount.unmount()


def test_a_bug_in_a_taken_request_is_its_own_alone(mounted: Mounting) -> None:
    mount = mounted()
    (mount.path / "file").write_bytes(b"data")
    with open(mount.path / "file", "rb") as file:
        mount("break_answers", "lseek_out")
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            os.lseek(file.fileno(), 0, os.SEEK_DATA)
        assert file.read() == b"data"
    assert "an operation failed unexpectedly" in mount.log
    mount.unmount()


WAITS = "import os, sys; os.stat(sys.argv[1])"


def test_a_waiting_program_can_be_killed(mounted: Mounting) -> None:
    mount = mounted()
    mount("hold", "lookup")
    waiting = program(WAITS, mount.path / "name")
    mount.eventually(lambda stats: stats["held"].get("lookup") == 1)
    begun = time.monotonic()
    waiting.kill()
    assert waiting.wait(10) == -signal.SIGKILL
    assert 0.5 < time.monotonic() - begun < 5
    assert mount("stats")["interrupted"] == 1
    mount("add", "name")
    mount("release", "lookup")  # a late reply, whose lookup count is given back
    mount.eventually(lambda stats: "CLEANUP" in stats["answered"] and list(stats["counts"]) == ["1"])
    mount.unmount()


HANDLES_SIGNALS = """
import os, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: None)
print("ready", flush=True)
os.stat(sys.argv[1])
"""


def test_a_program_that_handles_its_signal_waits_on(mounted: Mounting) -> None:
    mount = mounted()
    mount("hold", "lookup")
    waiting = program(HANDLES_SIGNALS, mount.path / "file", stdout=subprocess.PIPE)
    assert waiting.stdout is not None
    waiting.stdout.readline()
    mount.eventually(lambda stats: stats["held"].get("lookup") == 1)
    waiting.send_signal(signal.SIGUSR1)
    mount.eventually(lambda stats: stats["interrupted"] == 1)
    time.sleep(2.2)
    assert waiting.poll() is None
    mount("release", "lookup")
    assert waiting.wait(10) == 0
    waiting.stdout.close()
    mount.unmount()


def test_interrupts_come_through_while_every_slot_is_taken(mounted: Mounting) -> None:
    mount = mounted(readers=2)
    mount("hold", "lookup")
    waiting = [program(WAITS, mount.path / f"name{number}") for number in range(6)]
    mount.eventually(lambda stats: stats["device"]["waiting"] == 6)
    for one in waiting:
        one.kill()
    time.sleep(1.5)
    mount("release", "lookup")
    assert [one.wait(10) for one in waiting] == [-signal.SIGKILL] * 6
    mount.unmount()


def test_without_the_filter_the_mount_works_and_says_so(mounted: Mounting) -> None:
    mount = mounted(device_filter=False)
    with open(mount.path / "file", "rb") as file:
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 10  # as on a filesystem without holes
    assert "the filter on /dev/fuse is missing" in mount.log
    assert mount("stats")["device"] is None
    number = os.stat(mount.path / "file").st_ino
    assert number == 2  # the node id
    assert {e.name: e.inode() for e in os.scandir(mount.path)} == {"file": 2}
    previous = os.umask(0o027)
    try:
        (mount.path / "new").write_text("text")
    finally:
        os.umask(previous)
    assert stat.S_IMODE(os.stat(mount.path / "new").st_mode) == 0o640
    assert (mount.path / "new").read_text() == "text"
    os.setxattr(mount.path / "new", "user.a", b"1", os.XATTR_CREATE)
    with pytest.raises(FileExistsError):
        os.setxattr(mount.path / "new", "user.a", b"2", os.XATTR_CREATE)
    mount("add_many", 300)
    assert len(os.listdir(mount.path)) == 302
    (mount.path / "new").unlink()
    Path("/proc/sys/vm/drop_caches").write_text("2")
    mount.eventually(lambda stats: len(stats["counts"]) < 20 and not stats["handles"])
    mount.unmount()
    assert len(mount.log.splitlines()) == 1


def test_without_the_filter_a_smaller_limit_is_refused(mounted: Mounting) -> None:
    mount = mounted(ready=False, device_filter=False, limits={"max_write": 65536})
    kind, text = mount.heard()
    assert kind == "RefusedError"
    assert "65536" in text
    assert mount.process.wait(10) == 0
    assert not os.path.ismount(mount.path)


def test_without_the_filter_no_locks_are_shared(mounted: Mounting) -> None:
    """A lock that nobody else sees is none."""
    mount = mounted(ready=False, device_filter=False, shared_locks=True)
    kind, text = mount.heard()
    assert kind == "PermissionDeniedError"
    assert "locks cannot be shared" in text
    assert "--locks local" in text
    assert mount.process.wait(30) == 0
    assert not os.path.ismount(mount.path)


def test_cache_none_passes_the_page_cache_by(mounted: Mounting) -> None:
    mount = mounted(cache="none")
    direct = InitFlag.DIRECT_IO_ALLOW_MMAP & InitFlag(mount("stats")["agreed"]["flags"])
    with open(mount.path / "file", "r+b", buffering=0) as file:
        for _ in range(3):
            assert os.pread(file.fileno(), 4, 0) == b"0123"
        with mmap.mmap(file.fileno(), 10) as mapped:
            assert mapped[:4] == b"0123"
            mapped[:4] = b"abcd"
            mapped.flush()
        assert os.pread(file.fileno(), 5, 0) == b"abcd4"
    if direct:
        assert len([r for r in mount("requests", "ReadRequest") if r["size"] <= 5]) == 4
    assert (mount.path / "file").stat().st_size == 10
    before = mount("stats")["answered"]["LOOKUP"]
    for _ in range(5):
        os.stat(mount.path / "file")
    assert mount("stats")["answered"]["LOOKUP"] >= before + 5
    mount.unmount()
