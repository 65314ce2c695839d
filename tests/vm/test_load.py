"""What programs do on the mount: a part of the workload, and a pause of the machine under load."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.program import Program, Programs
from tests.vm.machine import Machine

pytestmark = pytest.mark.timeout(900)

JOBS = ("sqlite", "rsync")
"""Of the workload; the others take too long under emulation to be run every time."""


@pytest.fixture
def data(guest: Machine, program: Programs, volume: Path, unmounted: Callable[[str], None]) -> Iterator[Program]:
    """The volume, mounted at /data in the guest; the server must end with a clean log."""
    server = program("serve", "--listen", f"firecracker:{guest.vsock}:5000", "--volume", f"data={volume}")
    server.ready()
    unmounted("/data")
    guest.run("fusepipe mount vsock:2:5000/data /data --daemon --log-file /run/mount.log", seconds=200)
    yield server
    guest.run("fusepipe umount /data", seconds=100)
    assert guest.run("cat /run/mount.log; rm /run/mount.log") == ""


def test_workload(guest: Machine, data: Program) -> None:
    """Real programs, each with a check of what it wrote and read."""
    said = guest.run(f"python3 -m tests.workload --size guest --only {','.join(JOBS)} /data 2>&1", seconds=800)
    summary = json.loads(said.splitlines()[-1])
    assert summary["passed"] and set(summary["jobs"]) == set(JOBS)


def test_pause(guest: Machine, data: Program, volume: Path) -> None:
    """A machine that is paused under load for 30 seconds goes on without an error, and its mount with it."""
    load = guest.begin("python3", "/host/tests/vm/guest/load.py", "/data", "20", seconds=400)
    deadline = time.monotonic() + 100
    while not any(volume.glob("worker-*/*.done")):
        assert time.monotonic() < deadline, "the load has not begun"
        assert not load.done(), load.result().output
        time.sleep(0.2)
    guest.pause()
    try:
        done = {str(path) for path in volume.glob("worker-*/*.done")}
        time.sleep(30)
        assert len({str(path) for path in volume.glob("worker-*/*.done")} - done) <= 4, "it was not paused"
    finally:
        guest.resume()
    found = json.loads(load.result(timeout=500).checked())
    assert found["done"] >= 4
    for path in volume.glob("worker-*/*.done"):
        number = int(path.name.removeprefix("file-").removesuffix(".done"))
        assert path.read_bytes() == number.to_bytes(8, "big") * (64 * 1024 // 8)
