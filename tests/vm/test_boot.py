"""A guest with systemd: a line of /etc/fstab at boot, mount(8), and units."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import world
from tests.support.program import Program, Programs
from tests.vm.machine import SYSTEMD, Machine
from tests.vm.places import REPOSITORY
from tests.vm.preparing import payload

pytestmark = pytest.mark.timeout(2400)

PATIENT = {
    "/etc/systemd/system/data.mount.d/patient.conf": "[Mount]\nTimeoutSec=600\n",
    "/etc/systemd/system/fusepipe-data.service.d/patient.conf": "[Service]\nTimeoutSec=600\n",
}
"""90 seconds, systemd's own limit, can be too short where guest and host are emulated and share two busy processors."""


@pytest.fixture
def machine(prepared: None, tmp_path: Path) -> Machine:
    """A guest that is to mount at boot, by the line of guest/fstab."""
    (tmp_path / "vm").mkdir()
    fstab = (REPOSITORY / "guest/fstab").read_text()
    return Machine("sid", tmp_path / "vm", payload(tmp_path, {"/etc/fstab": fstab, **PATIENT}), init=SYSTEMD)


@pytest.fixture
def server(machine: Machine, program: Programs, volume: Path) -> Program:
    """What gives the volume, on the host, before the guest is there."""
    (volume / "name").write_text("data")
    server = program("serve", "--listen", f"firecracker:{machine.vsock}:5000", "--volume", f"data={volume}")
    server.ready()
    server.expect_log("there is no volume 'other'")
    return server


@pytest.fixture
def guest(machine: Machine, server: Program) -> Iterator[Machine]:
    with machine:
        yield machine


def test_at_boot_and_by_mount(guest: Machine, server: Program, volume: Path) -> None:
    """One boot, since under emulation each costs half a minute."""
    _by_fstab(guest, volume)
    _by_mount_unit(guest)
    assert world.wait_until(lambda: server.stderr.count("began") == server.stderr.count("a session ended"), 200)
    _by_service(guest)
    assert server.stop() == 0


def _by_fstab(guest: Machine, volume: Path) -> None:
    # /etc/fstab, by systemd, at boot
    guest.run("systemctl start data.mount && systemctl is-active data.mount", seconds=300)
    assert guest.run("cat /data/name") == "data"
    line = guest.run("grep ' /data ' /proc/mounts")
    assert line.startswith("vsock:2:5000/data /data fuse.fusepipe rw") and line.count("\n") == 1

    # mount(8) knows that it is there, and by the line of fstab how to mount it again
    guest.run("mount -a && test $(grep -c ' /data ' /proc/mounts) = 1", seconds=300)
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
    failed = guest.begin("mkdir /mnt/no; mount -t fusepipe vsock:2:5000/other /mnt/no 2>&1").result(timeout=400)
    assert failed.status == 32 and "the server has no volume 'other'" in failed.output

    guest.run("systemctl stop data.mount && ! mountpoint -q /data", seconds=300)


def _by_mount_unit(guest: Machine) -> None:
    """guest/data.mount in place of the line in /etc/fstab."""
    guest.run("cp /opt/fusepipe/examples/data.mount /etc/systemd/system && : >/etc/fstab && systemctl daemon-reload")
    guest.run("systemctl enable --now data.mount && systemctl is-active data.mount", seconds=300)
    assert "/etc/systemd/system/data.mount" in guest.run("systemctl show -P FragmentPath data.mount")
    assert guest.run("cat /data/name") == "changed\n"
    guest.run("systemctl disable --now data.mount && ! mountpoint -q /data", seconds=300)
    guest.run("rm /etc/systemd/system/data.mount && systemctl daemon-reload")


def _by_service(guest: Machine) -> None:
    """guest/fusepipe-data.service: active when the mount is ready, and mounted again when its process has died."""
    guest.run("cp /opt/fusepipe/examples/fusepipe-data.service /etc/systemd/system && systemctl daemon-reload")
    guest.run(
        "systemctl enable --now fusepipe-data && cat /data/name && systemctl is-active fusepipe-data", seconds=300
    )
    before = guest.run("systemctl show -P MainPID fusepipe-data").strip()
    guest.run("systemctl kill -s KILL fusepipe-data")
    guest.run(
        f"until systemctl -q is-active fusepipe-data && test $(systemctl show -P MainPID fusepipe-data) != {before}; "
        "do sleep 3; done",
        seconds=900,
    )
    assert guest.run("cat /data/name") == "changed\n"
    guest.run("systemctl disable --now fusepipe-data && ! mountpoint -q /data", seconds=300)
