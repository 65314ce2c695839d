"""Several volumes on one port, the errors that a guest's user sees, and a server that goes away."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.children import sessions_below
from tests.support.program import Program, Programs
from tests.vm.machine import Machine

pytestmark = pytest.mark.timeout(1800)

MOUNT = "fusepipe mount vsock:2:5000/{} {} --daemon --connect-timeout 60 2>&1"


def test_several_volumes_on_one_port(
    guest: Machine, program: Programs, tmp_path: Path, unmounted: Callable[[str], None]
) -> None:
    """Each has a session of its own; what the host serves read-only is so whatever the guest mounts."""
    for name in ("data", "docs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(name)
    server = program(
        *("serve", "--listen", f"firecracker:{guest.vsock}:5000"),
        *("--volume", f"data={tmp_path / 'data'}", "--volume", f"docs={tmp_path / 'docs'}:ro"),
    )
    server.ready()
    for name in ("data", "docs"):
        unmounted(f"/mnt/{name}")
        guest.run(f"mkdir -p /mnt/{name} && {MOUNT.format(name, f'/mnt/{name}')}", seconds=300)
    assert guest.run("cat /mnt/data/name /mnt/docs/name") == "datadocs"
    guest.run("echo new >/mnt/data/name")
    refused = guest.begin("echo new >/mnt/docs/name").result(timeout=400)
    assert refused.status == 1 and "Read-only file system" in refused.output
    assert (tmp_path / "data/name").read_text() == "new\n"
    assert (tmp_path / "docs/name").read_text() == "docs"
    for name in ("data", "docs"):
        guest.run(f"fusepipe umount /mnt/{name}", seconds=300)

    server.expect_log("a client was refused")
    missing = guest.begin(MOUNT.format("other", "/mnt/data")).result(timeout=400)
    assert missing.status == 4 and "the server has no volume 'other'" in missing.output
    assert server.stop() == 0


def test_nobody_listens(guest: Machine) -> None:
    """One line that says so, after the time that was asked for."""
    outcome = guest.begin("fusepipe mount vsock:2:5999/data /data --connect-timeout 8 2>&1").result(timeout=400)
    assert outcome.status == 5
    assert outcome.output.count("\n") == 1
    assert "nobody listens on port 5999 of CID 2" in outcome.output


def kill_sessions(server: Program) -> None:
    """All of them: a guest that was slow to shake hands dials again, before its first session has ended."""
    sessions = sessions_below(server.pid)
    assert sessions
    for session in sessions:
        os.kill(session, signal.SIGKILL)
    server.expect_log("a session process died")


def test_a_server_that_dies(guest: Machine, program: Programs, volume: Path, unmounted: Callable[[str], None]) -> None:
    """The guest goes on where the server does.

    Where that ends the session, calls fail with EIO, ESTALE or ENOTCONN, never hang, and the volume can be mounted
    again in the same place.
    """
    (volume / "file").write_text("before")
    listen = f"firecracker:{guest.vsock}:5000"
    server = program("serve", "--listen", listen, "--volume", f"data={volume}", "--session-deaths", "2")
    server.ready()
    unmounted("/data")
    guest.run(MOUNT.format("data", "/data"), seconds=300)
    assert guest.run("cat /data/file") == "before"
    kill_sessions(server)
    (volume / "file").write_text("between")
    assert guest.run("sleep 2; cat /data/file", seconds=300) == "between"
    kill_sessions(server)
    server.expect_log("the server does not know this session")  # which its mount would go on with
    outcome = guest.begin("sleep 2; cat /data/file 2>&1").result(timeout=400)
    assert outcome.status == 1
    errors = ("Input/output error", "Stale file handle", "Transport endpoint is not connected")
    assert any(error in outcome.output for error in errors), outcome.output
    (volume / "file").write_text("after")
    guest.run(MOUNT.format("data", "/data"), seconds=300)
    assert guest.run("cat /data/file") == "after"
    guest.run("fusepipe umount /data", seconds=300)
    assert server.stop() == 0
