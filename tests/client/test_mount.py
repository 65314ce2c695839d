"""The life of a mount: its mount point, its end, and what is left of it."""

import errno
import os
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fusepipe.client import MountError, MountPointError, unmount
from fusepipe.client.mountpoint import prepared
from fusepipe.client.mounttable import mount_at, mounts, resolved
from tests.client.conftest import Mounted
from tests.client.test_device import WAITS, program
from tests.support import world

Mounting = Callable[..., Mounted]

# ---- the mount point ------------------------------------------------------------------------------------------------


def test_mount_points_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(MountPointError, match="does not exist; create it: mkdir -p"):
        prepared(str(tmp_path / "missing"), nonempty=False)
    (tmp_path / "file").touch()
    with pytest.raises(MountPointError, match="is not a directory"):
        prepared(str(tmp_path / "file"), nonempty=False)
    with pytest.raises(MountPointError, match="is not empty"):
        prepared(str(tmp_path), nonempty=False)
    assert prepared(str(tmp_path), nonempty=True) == str(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(MountPointError, match="symbolic links"):
        prepared(str(tmp_path / "loop"), nonempty=False)


def test_symlinks_lead_to_the_mount_point(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert prepared(str(tmp_path / "link"), nonempty=False) == str(tmp_path / "real")
    assert resolved("/") == "/"
    assert mount_at("/proc") is not None


def test_strange_names_are_read_from_the_mount_table(mounted: Mounting, tmp_path: Path) -> None:
    strange = tmp_path / "a b\\c\nd\té"
    strange.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "fusepipe-test", strange], check=True, timeout=10)
    try:
        entry = mount_at(str(strange))
        assert entry is not None
        assert (entry.fstype, entry.source, entry.is_ours) == ("tmpfs", "fusepipe-test", False)
        with pytest.raises(MountPointError, match="mount of tmpfs, not of fusepipe"):
            unmount(str(strange))
    finally:
        subprocess.run(["umount", strange], check=True, timeout=10)


def test_a_mount_point_in_use_is_refused(mounted: Mounting) -> None:
    mount = mounted()
    with pytest.raises(MountPointError, match="is mounted already; unmount it first"):
        prepared(str(mount.path), nonempty=True)
    mount.unmount()


# ---- the end --------------------------------------------------------------------------------------------------------


def test_the_mount_shows_what_it_is(mounted: Mounting) -> None:
    mount = mounted(fsname="left,right")
    entry = mount_at(str(mount.path))
    assert entry is not None
    assert (entry.fstype, entry.source) == ("fuse.fusepipe", "left,right")
    mount.unmount()


def test_a_signal_unmounts_and_says_goodbye(mounted: Mounting) -> None:
    mount = mounted()
    assert os.listdir(mount.path) == ["file"]
    mount.terminate()
    assert not os.path.ismount(mount.path)
    assert mount.log == ""


def test_a_signal_unmounts_while_programs_use_it(mounted: Mounting) -> None:
    mount = mounted()
    fd = os.open(mount.path / "file", os.O_RDONLY)
    mount.terminate()
    assert not os.path.ismount(mount.path)
    assert "was in use" in mount.log
    assert errno_of(lambda: os.read(fd, 1)) == errno.ENOTCONN
    assert errno_of(lambda: os.close(fd)) in (0, errno.ENOTCONN)  # closed it is, whatever FLUSH says


def test_a_signal_before_the_kernel_is_done_unmounts(mounted: Mounting) -> None:
    mount = mounted(ready=False)
    while not mounts_of_ours(mount.path) and mount.process.poll() is None:
        time.sleep(0.001)
    mount.process.send_signal(signal.SIGTERM)
    assert mount.heard() in (["ready"], ["CANCELLED"])
    mount.process.wait(15)
    assert not mounts_of_ours(mount.path)


def mounts_of_ours(path: Path) -> bool:
    return any(entry.is_ours and entry.mountpoint == str(path) for entry in mounts())


def errno_of(call: Callable[[], object]) -> int:
    try:
        call()
    except OSError as error:
        assert error.errno is not None
        return error.errno
    return 0


def test_a_server_that_dies_ends_every_call_with_eio_within_a_second(mounted: Mounting) -> None:
    mount = mounted(readers=2)
    mount("hold", "lookup")
    errors: list[int] = []

    def call(number: int) -> None:
        errors.append(errno_of(lambda: os.stat(mount.path / f"name{number}")))

    threads = [threading.Thread(target=call, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    mount.eventually(lambda stats: stats["device"]["waiting"] == 5)
    mount("cut")
    begun = time.monotonic()
    for thread in threads:
        thread.join(10)
    assert time.monotonic() - begun < 1.5
    assert errors == [errno.EIO] * 5
    assert mount.heard() == ["CONNECTION_LOST"]
    assert mount.process.wait(10) == 0
    assert mounts_of_ours(mount.path)  # nobody may write into the directory below
    assert errno_of(lambda: os.statvfs(mount.path)) == errno.ENOTCONN
    assert "the connection to the server is lost" in mount.log and len(mount.log.splitlines()) == 1
    unmount(str(mount.path))
    assert not mounts_of_ours(mount.path)
    assert os.listdir(mount.path) == []


def test_the_next_mount_replaces_what_a_killed_client_left(mounted: Mounting) -> None:
    first = mounted()
    first.process.kill()
    first.process.wait()
    assert errno_of(lambda: os.statvfs(first.path)) == errno.ENOTCONN
    second = mounted()
    assert os.listdir(second.path) == ["file"]
    second.unmount()
    assert not mounts_of_ours(second.path)


# ---- unmount --------------------------------------------------------------------------------------------------------


def test_unmount_of_an_idle_mount(mounted: Mounting) -> None:
    mount = mounted()
    unmount(str(mount.path))
    assert mount.heard() == ["UNMOUNTED"]
    assert mount.process.wait(10) == 0
    with pytest.raises(MountPointError, match="is not a mount point"):
        unmount(str(mount.path))
    with pytest.raises(MountPointError, match="is not a mount point"):
        unmount(str(mount.path / "missing" / "more"))


def test_unmount_of_a_busy_mount(mounted: Mounting) -> None:
    mount = mounted()
    with open(mount.path / "file") as file:
        with pytest.raises(MountError, match="is busy; end the programs") as raised:
            unmount(str(mount.path))
        assert raised.value.exit_code == 3
        unmount(str(mount.path), lazy=True)
        assert not mounts_of_ours(mount.path)
        assert file.read() == "0123456789"
    assert mount.heard() == ["UNMOUNTED"]


def test_unmount_of_a_silent_server_frees_its_programs(mounted: Mounting) -> None:
    mount = mounted()
    mount("deaf")
    waiting = program(WAITS, mount.path / "name", stderr=subprocess.DEVNULL)
    mount.eventually(lambda stats: stats["device"]["waiting"] == 1)
    begun = time.monotonic()
    unmount(str(mount.path))
    assert waiting.wait(10) == 1
    assert time.monotonic() - begun < 8
    assert not mounts_of_ours(mount.path)
    assert mount.heard() == ["UNMOUNTED"]


def test_unmount_of_a_client_that_hangs(mounted: Mounting) -> None:
    mount = mounted()
    mount.process.send_signal(signal.SIGSTOP)
    with pytest.raises(MountPointError, match="does not answer"):
        prepared(str(mount.path), nonempty=False)
    unmount(str(mount.path))
    assert not mounts_of_ours(mount.path)
    mount.process.send_signal(signal.SIGCONT)
    assert mount.heard() == ["UNMOUNTED"]


# ---- faults ---------------------------------------------------------------------------------------------------------


def test_a_bug_in_an_operation_fails_that_request_alone(mounted: Mounting) -> None:
    mount = mounted(cache="none")
    mount("break_operation", "of_entry")
    assert errno_of(lambda: os.stat(mount.path / "file")) == errno.EINTR
    mount("break_operation", "of_node")
    assert errno_of(lambda: os.stat(mount.path)) == errno.EIO
    assert mount("stats")["device"]["waiting"] == 0
    lines = mount.log.splitlines()
    assert len(lines) == 2
    assert "operation=lookup" in lines[0] and "4 bytes" in lines[0]
    assert "operation=getattr" in lines[1] and "RuntimeError: a bug" in lines[1]
    mount.unmount()


def test_a_bug_behind_the_mount_ends_it_with_one_line(mounted: Mounting) -> None:
    mount = mounted()
    mount("break_task")
    (mount.path / "file").read_bytes()
    kind, text = mount.heard()
    assert kind == "InternalError"
    assert "see the log" in text
    assert mount.process.wait(10) == 0
    assert errno_of(lambda: os.statvfs(mount.path)) == errno.ENOTCONN
    lines = mount.log.splitlines()
    assert len(lines) == 1 and "the mount ends" in lines[0] and "TypeError" in lines[0]
    unmount(str(mount.path))


def test_a_read_only_mount(mounted: Mounting) -> None:
    mount = mounted(read_only=True)
    assert errno_of(lambda: os.mkdir(mount.path / "new")) == errno.EROFS
    assert os.statvfs(mount.path).f_flag & os.ST_RDONLY
    mount.unmount()


def test_what_root_may_allow(mounted: Mounting) -> None:
    plain = mounted()
    assert os.statvfs(plain.path).f_flag & (os.ST_NOSUID | os.ST_NODEV) == os.ST_NOSUID | os.ST_NODEV
    plain.unmount()
    asked = mounted(suid=True, dev=True)
    assert not os.statvfs(asked.path).f_flag & (os.ST_NOSUID | os.ST_NODEV)
    assert stat.S_ISDIR(os.stat(asked.path).st_mode)
    asked.unmount()
    assert not world.mounts_below(asked.path)
