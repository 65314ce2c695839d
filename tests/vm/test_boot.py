"""A guest with systemd: a line of /etc/fstab at boot, and mount(8)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import world
from tests.support.program import Programs
from tests.vm.machine import Machine
from tests.vm.places import REPOSITORY
from tests.vm.preparing import payload

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def guest(prepared: None, program: Programs, tmp_path: Path, volume: Path) -> Iterator[Machine]:
    """A guest that mounts at boot what a server on the host, there before it, gives."""
    (volume / "name").write_text("data")
    fstab = (REPOSITORY / "guest/fstab").read_text()
    (tmp_path / "vm").mkdir()
    machine = Machine("sid", tmp_path / "vm", payload(tmp_path, {"/etc/fstab": fstab}), systemd=True)
    server = program("serve", "--listen", f"firecracker:{machine.vsock}:5000", "--volume", f"data={volume}")
    server.ready()
    server.expect_log("there is no volume 'other'")
    with machine:
        yield machine
        assert world.wait_until(lambda: server.stderr.count("began") == server.stderr.count("a session ended"), 30)
    assert server.stop() == 0


def test_at_boot_and_by_mount(guest: Machine, volume: Path) -> None:
    """One boot, since under emulation each costs half a minute."""
    # /etc/fstab, by systemd, at boot
    guest.run("systemctl start data.mount && systemctl is-active data.mount", seconds=200)
    assert guest.run("cat /data/name") == "data"
    line = guest.run("grep ' /data ' /proc/mounts")
    assert line.startswith("vsock:2:5000/data /data fuse.fusepipe rw") and line.count("\n") == 1

    # mount(8) knows that it is there, and by the line of fstab how to mount it again
    guest.run("mount -a && test $(grep -c ' /data ' /proc/mounts) = 1", seconds=200)
    guest.run("umount /data && ! mountpoint -q /data && mount /data && echo changed >/data/name", seconds=300)
    assert (volume / "name").read_text() == "changed\n"
    assert guest.run("cat /var/log/fusepipe-data.log") == ""

    # its flags and options
    read_only = guest.run(
        "mkdir /mnt/ro && mount -v -n -t fusepipe -o ro,nosuid,readers=4 vsock:2:5000/data /mnt/ro && "
        "grep ' /mnt/ro ' /proc/mounts && ! touch /mnt/ro/new 2>/dev/null && umount /mnt/ro",
        seconds=300,
    )
    assert "is mounted at /mnt/ro" in read_only and " ro,nosuid,nodev" in read_only

    # errors reach the user
    failed = guest.begin("mkdir /mnt/no; mount -t fusepipe vsock:2:5000/other /mnt/no 2>&1").result(timeout=300)
    assert failed.status == 32 and "the server has no volume 'other'" in failed.output

    guest.run("systemctl stop data.mount && ! mountpoint -q /data", seconds=200)
