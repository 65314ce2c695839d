"""What programs do on the mount: the workload, parbench, a part of the POSIX suite, and a pause under load."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.program import Program, Programs
from tests.vm.machine import Machine

pytestmark = pytest.mark.timeout(2400)

JOBS = ("git", "tar", "build", "sqlite", "fio")
"""Of the workload."""
MODES = ("create", "fsync", "read", "stat", "rewrite", "rename", "unlink")
"""Of parbench."""
EVERY = 100
"""Of the POSIX suite every so many-th case runs here; docs/posix.md says how long all of them take."""


@pytest.fixture
def data(guest: Machine, program: Programs, volume: Path, unmounted: Callable[[str], None]) -> Iterator[Program]:
    """The volume, mounted at /data in the guest; the server must end with a clean log."""
    server = program("serve", "--listen", f"firecracker:{guest.vsock}:5000", "--volume", f"data={volume}")
    server.ready()
    unmounted("/data")
    guest.run("fusepipe mount vsock:2:5000/data /data --daemon --log-file /run/mount.log", seconds=300)
    yield server
    guest.run("fusepipe umount /data", seconds=300)
    assert guest.run("cat /run/mount.log; rm /run/mount.log") == ""


def test_programs(guest: Machine, data: Program, volume: Path) -> None:
    """Real programs, each with a check of what it wrote and read, and parbench, which checks what it reads."""
    said = guest.run(f"python3 -m tests.workload --size guest --only {','.join(JOBS)} /data 2>&1", seconds=2000)
    summary = json.loads(said.splitlines()[-1])
    assert summary["passed"] and set(summary["jobs"]) == set(JOBS)

    guest.run("mkdir /data/parbench")
    for mode in MODES:
        result = json.loads(guest.run(f"/host/parbench {mode} 8 128 /data/parbench", seconds=400))
        assert (result["mode"], result["threads"], result["count"]) == (mode, 8, 128)
        if mode == "rewrite":
            files = sorted((volume / "parbench").iterdir())
            assert len(files) == 128
            for number, path in enumerate(files):
                assert path.read_bytes() == bytes((number * 31 + i) & 255 for i in range(4096))
    assert not list((volume / "parbench").iterdir())


def test_posix(guest: Machine, data: Program) -> None:
    """Cases of every kind that the POSIX suite has."""
    said = guest.run(
        "mkdir -m 755 /data/posix && /opt/venv/bin/python -m pytest tests/pjdfstest -q -p no:cacheprovider "
        f"--posix-target /data/posix --posix-every {EVERY} --posix-jobs 2 --posix-patience 300 "
        "--timeout 600 -o faulthandler_timeout=0",
        seconds=2000,
    )
    assert " passed" in said.splitlines()[-1]


def test_pause(guest: Machine, data: Program, volume: Path) -> None:
    """A machine that is paused under load for 30 seconds goes on without an error, and its mount with it."""
    load = guest.begin("python3", "/host/tests/vm/guest/load.py", "/data", "15", seconds=800)
    deadline = time.monotonic() + 400
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
    found = json.loads(load.result(timeout=900).checked())
    assert found["done"] >= 1
    for path in volume.glob("worker-*/*.done"):
        number = int(path.name.removeprefix("file-").removesuffix(".done"))
        assert path.read_bytes() == number.to_bytes(8, "big") * (64 * 1024 // 8)
