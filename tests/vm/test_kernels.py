"""A directory of the host in a guest, over vsock and a Firecracker-style socket, with every kernel."""

import hashlib
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import world
from tests.support.program import Programs
from tests.vm.machine import Machine
from tests.vm.places import KERNELS

pytestmark = pytest.mark.timeout(1800)

SIZES = (0, 1, 4096, 65_536, (3 << 20) + 5)


@pytest.mark.parametrize("guest", KERNELS, indirect=True)
def test_a_directory_of_the_host(
    guest: Machine, program: Programs, volume: Path, unmounted: Callable[[str], None]
) -> None:
    """Files of both sides are the same on the other, and everything ends when the guest unmounts."""
    hashes = {}
    (volume / "from-host").mkdir()
    for size in SIZES:
        data = random.Random(size).randbytes(size)
        (volume / "from-host" / str(size)).write_bytes(data)
        hashes[str(size)] = hashlib.sha256(data).hexdigest()
    server = program("serve", "--listen", f"firecracker:{guest.vsock}:5000", "--volume", f"data={volume}")
    server.ready()
    socket = Path(f"{guest.vsock}_5000")
    assert socket.is_socket()

    unmounted("/data")
    said = guest.run("fusepipe mount vsock:2:5000/data /data --daemon", seconds=300)
    assert "vsock:2:5000/data is mounted at /data" in said
    assert "vsock:2:5000/data /data fuse.fusepipe rw" in guest.run("grep /data /proc/mounts")
    seen = json.loads(guest.run("python3 /host/tests/vm/guest/exchange.py /data", seconds=400))

    assert seen["found"] == hashes
    there = volume / "from-guest"
    for size, expected in seen["written"].items():
        if size != "0":
            data = (there / ("one" if size == "1" else size)).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (int(size), expected)
    status = (there / "one").stat()
    assert (status.st_ino, status.st_nlink) == (seen["inode"], seen["links"])
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o640, 1234, 5678)
    assert os.getxattr(there / "one", "user.colour") == b"blue"
    assert os.readlink(there / "soft") == "one"
    assert not (there / "0").exists() and not (there / "gone").exists()

    assert len(world.processes()) >= 2
    guest.run("fusepipe umount /data", seconds=300)
    assert world.wait_until(lambda: "a session ended" in server.stderr, 200)
    assert server.stop() == 0
    assert not socket.exists()
