"""Mounting and unmounting as a whole, and what the options of a mount do to the programs that use it."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount import children, harness, mounttable
from tests.mount.blocking import BUSY
from tests.mount.conftest import MountFactory
from tests.mount.expect import fails
from tests.mount.harness import Mount, eventually


def test_one_line_says_ready(mounts: MountFactory, real: str) -> None:
    mount = mounts()
    assert mount.client is not None
    lines = mount.client.output().splitlines()
    assert len(lines) == 1
    assert str(mount.path) in lines[0]
    assert mount.client.errors() == ""


def test_plain_umount_ends_the_client(mounts: MountFactory, real: str) -> None:
    mount = mounts()
    mounttable.umount(mount.path)
    assert mount.client is not None
    assert mount.client.wait() == 0
    mount.client.gone()


def test_a_signal_ends_a_mount_that_is_in_full_swing(mounts: MountFactory, real: str) -> None:
    """At once and with exit code 0; the programs get errors, and none hangs."""
    mount = mounts()
    programs = [children.spawn(BUSY, mount.path, who) for who in range(6)]
    for program in programs:
        assert children.read_line(program) == "ready"
    eventually(lambda: len(os.listdir(mount.source)) == 60, 30.0, "60 files, ten of each program")
    mount.allow.append("the mount was in use")
    mount.unmount()
    allowed = {errno.errorcode[code] for code in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO)}
    assert {children.finish(program, 30.0).strip() for program in programs} <= allowed


def test_remount_many_times(mounts: MountFactory, real: str) -> None:
    mount = mounts()
    (mount.path / "file").write_text("x")
    for _ in range(4):
        mount.remount()
        assert (mount.path / "file").read_text() == "x"


def test_many_mounts_at_once(mounts: MountFactory, real: str, scratch: Path) -> None:
    """Eight mounts that are started and stopped together; for `serve` all of one volume on one address."""
    source = scratch / "common"
    source.mkdir()
    (source / "file").write_text("common")
    first = mounts(source=source)
    points = [scratch / f"mnt{i}" for i in range(7)]
    programs = []
    try:
        for i, point in enumerate(points):
            point.mkdir()
            what = ("bind", source) if real == "bind" else ("mount", f"unix:{first.socket}/vol")
            programs.append(harness.Program(f"many{i}", harness.Runner().command(*what, point), scratch))
        for program in programs:
            program.wait_line()
        for i, point in enumerate(points):
            assert (point / "file").read_text() == "common"
            (point / f"from{i}").write_text(str(i))
        assert sorted(os.listdir(first.path)) == ["file", *(f"from{i}" for i in range(7))]
        for program in programs:
            program.family()
            program.process.send_signal(signal.SIGTERM)
        for program in programs:
            assert program.wait() == 0
            program.gone()
            assert program.errors() == ""
    finally:
        for program in programs:
            program.destroy()


def read_only_checks(mount: Mount) -> None:
    path = mount.path
    assert (path / "file").read_text() == "x"
    calls: list[Callable[[], object]] = [
        lambda: (path / "new").touch(),
        lambda: (path / "file").unlink(),
        lambda: (path / "directory").mkdir(),
        lambda: (path / "file").rename(path / "other"),
        lambda: (path / "file").chmod(0o600),
        lambda: os.open(path / "file", os.O_WRONLY),
        lambda: os.open(path / "file", os.O_RDWR),
        lambda: os.open(path / "file", os.O_RDONLY | os.O_TRUNC),
        lambda: os.truncate(path / "file", 0),
        lambda: os.setxattr(path / "file", "user.x", b""),
        lambda: os.link(path / "file", path / "hard"),
        lambda: (path / "link").symlink_to("x"),
        lambda: os.utime(path / "file", (1, 1)),
        lambda: os.mkfifo(path / "fifo"),
    ]
    for call in calls:
        with fails(errno.EROFS):
            call()
    assert os.listdir(mount.source) == ["file"]
    assert (mount.source / "file").read_text() == "x"


def test_read_only_mount(mounts: MountFactory, real: str) -> None:
    mount = mounts("--read-only", start=False)
    (mount.source / "file").write_text("x")
    read_only_checks(mount.start())


@pytest.mark.only_on("serve")
def test_read_only_volume(mounts: MountFactory, real: str) -> None:
    """The host's word holds whatever the guest mounts."""
    mount = mounts(read_only_volume=True, start=False)
    (mount.source / "file").write_text("x")
    read_only_checks(mount.start())


@pytest.mark.once
def test_reading_changes_nothing_on_the_host(mounts: MountFactory, real: str) -> None:
    mount = mounts()
    (mount.source / "file").write_text("x")
    os.utime(mount.source / "file", ns=(1, 2))
    before = (mount.source / "file").stat()
    assert (mount.path / "file").read_text() == "x"
    mount.unmount()
    after = (mount.source / "file").stat()
    assert (after.st_mtime_ns, after.st_ctime_ns, after.st_mode) == (
        before.st_mtime_ns,
        before.st_ctime_ns,
        before.st_mode,
    )


@pytest.mark.only_on("serve")
def test_a_stale_socket_file_is_replaced(mounts: MountFactory, real: str) -> None:
    mount = mounts(start=False)
    mount.start_server()
    assert mount.server is not None
    mount.server.process.kill()
    mount.server.wait()
    assert mount.socket.exists()
    mount.server = None
    mount.start()
    assert os.listdir(mount.path) == []


WHO_AM_I = r"""
#include <stdio.h>
#include <unistd.h>
int main(void) { printf("%d\n", (int)geteuid()); return 0; }
"""


@pytest.mark.once
def test_set_uid_programs(mounts: MountFactory, real: str, scratch: Path) -> None:
    """They work where the option allows them and not otherwise."""
    (scratch / "who.c").write_text(WHO_AM_I)
    subprocess.run(["cc", "-o", scratch / "who", scratch / "who.c"], check=True)
    for options, expected in ((("--suid",), "0"), (("--no-suid",), "12345")):
        mount = mounts("--allow-other", *options)
        (mount.path / "who").write_bytes((scratch / "who").read_bytes())
        (mount.path / "who").chmod(0o4755)
        out = children.run("os.execv(sys.argv[1], ['who'])", mount.path / "who", user=12345)
        assert out.strip() == expected, options


@pytest.mark.once
def test_devices(mounts: MountFactory, real: str) -> None:
    for options, expected in ((("--dev",), "ok"), (("--no-dev",), "EACCES")):
        mount = mounts(*options)
        os.mknod(mount.path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        out = children.outcome("os.write(os.open(sys.argv[1], os.O_WRONLY), b'x')", mount.path / "null")
        assert out == expected, options


@pytest.mark.once
def test_allow_other(mounts: MountFactory, real: str) -> None:
    for options, expected in ((("--allow-other",), "ok"), (("--no-allow-other",), "EACCES")):
        mount = mounts(*options)
        assert children.outcome("os.listdir(sys.argv[1])", mount.path, user=12345) == expected, options


@pytest.mark.once
def test_options_as_o(mounts: MountFactory, real: str) -> None:
    mount = mounts("-o", "readers=3,cache=none,read-only", start=False)
    (mount.source / "file").write_text("x")
    mount.start()
    with fails(errno.EROFS):
        (mount.path / "new").touch()
    (mount.source / "file").write_text("changed")
    assert (mount.path / "file").read_text() == "changed"
