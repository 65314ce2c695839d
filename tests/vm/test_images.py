"""What `guest/` has for a guest's image, as it is, each in a guest that it starts: a script as PID 1, and OpenRC."""

from pathlib import Path

import pytest

from tests.support import world
from tests.support.program import Program, Programs
from tests.vm.machine import Machine
from tests.vm.preparing import guest_tar, openrc, payload

pytestmark = pytest.mark.timeout(1800)

APPLICATION = """#!/bin/sh
# Says what a program of the guest sees.
cat /data/name >/data/seen
grep ' /data ' /proc/mounts >/data/mounts
echo "application: done"
"""

SERVICES = {
    "/etc/insserv.conf": "# Debian's OpenRC reads it for every service that it looks at.\n",
    "/etc/init.d/localmount": """#!/sbin/openrc-run
# Of OpenRC itself where a distribution is made with it; Debian's package leaves it out.
start() { return 0; }
""",
    "/etc/init.d/agent": """#!/sbin/openrc-run
# Runs commands for the host.
start() {
	. /host/environment
	setsid python3 -E -S /host/agent.py </dev/null >/dev/null 2>&1 &
}
""",
}
RUNLEVELS = {
    "/etc/runlevels/sysinit/agent": "/etc/init.d/agent",
    "/etc/runlevels/boot/localmount": "/etc/init.d/localmount",
    "/etc/runlevels/default/fusepipe": "/etc/init.d/fusepipe",
    "/etc/init.d/fusepipe": "/opt/fusepipe/examples/openrc-fusepipe",
}


def _serving(program: Programs, machine: Machine, volume: Path) -> Program:
    (volume / "name").write_text("data")
    server = program("serve", "--listen", f"firecracker:{machine.vsock}:5000", "--volume", f"data={volume}")
    server.ready()
    return server


def _folder(tmp_path: Path) -> Path:
    folder = tmp_path / "vm"
    folder.mkdir()
    return folder


@pytest.fixture
def plain(prepared: None, tmp_path: Path) -> Machine:
    """A guest whose PID 1 is guest/init."""
    # As the package systemd-sysv has it, which Debian's smallest set of packages leaves out.
    links = {"/usr/sbin/poweroff": "/usr/bin/systemctl"}
    disk = payload(tmp_path, {"/usr/local/bin/application": APPLICATION}, links=links)
    return Machine("trixie", _folder(tmp_path), disk, init="/opt/fusepipe/examples/init", agent=False)


def test_a_script_as_init(plain: Machine, program: Programs, volume: Path) -> None:
    """It mounts, runs the guest's program, unmounts cleanly and powers off."""
    server = _serving(program, plain, volume)
    with plain:
        plain.wait(300)
    assert "application: done" in plain.console(), plain.console()
    assert (volume / "seen").read_text() == "data"
    assert (volume / "mounts").read_text().startswith("vsock:2:5000/data /data fuse.fusepipe rw")
    assert world.wait_until(lambda: "a session ended" in server.stderr, 200)
    assert server.stop() == 0


@pytest.fixture
def with_openrc(prepared: None, tmp_path: Path) -> Machine:
    """A guest with OpenRC, in which guest/openrc-fusepipe is a service of the default runlevel."""
    disk = payload(tmp_path, SERVICES, trees=[openrc()], links=RUNLEVELS)
    return Machine("trixie", _folder(tmp_path), disk, init="/sbin/openrc-init")


def test_openrc(with_openrc: Machine, program: Programs, volume: Path) -> None:
    """The service is started at boot, says that it is, stops and starts again."""
    server = _serving(program, with_openrc, volume)
    with with_openrc as guest:
        guest.run("until rc-service fusepipe status; do sleep 0.5; done", seconds=300)
        assert guest.run("cat /data/name") == "data"
        assert guest.run("grep ' /data ' /proc/mounts").startswith("vsock:2:5000/data /data fuse.fusepipe rw")
        guest.run("rc-service fusepipe stop && ! mountpoint -q /data && ! rc-service fusepipe status", seconds=300)
        guest.run("rc-service fusepipe start && echo changed >/data/name && rc-service fusepipe stop", seconds=300)
        assert (volume / "name").read_text() == "changed\n"
        assert guest.run("cat /var/log/fusepipe-data.log") == ""
    assert server.stop() == 0


def test_size() -> None:
    """The directory for guests stays as small as docs/firecracker.md says that it is."""
    assert guest_tar().stat().st_size < 3 << 20
