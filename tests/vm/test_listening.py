"""A guest that listens, and is dialled by its host."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import world
from tests.support.program import Programs
from tests.vm.machine import Machine

pytestmark = pytest.mark.timeout(1800)


def test_a_guest_that_listens(
    guest: Machine, program: Programs, volume: Path, unmounted: Callable[[str], None]
) -> None:
    """The host dials (`CONNECT port`), before the guest listens, again for the next mount, and ends with the server."""
    server = program("serve", "--listen", f"firecracker-connect:{guest.vsock}:6000", "--volume", f"data={volume}")
    server.ready()
    unmounted("/data")
    for number in ("1", "2"):
        mounted = guest.run("fusepipe mount vsock-listen:6000/data /data --daemon --connect-timeout 60", seconds=300)
        assert "vsock-listen:6000/data is mounted at /data" in mounted
        guest.run(f"dd if=/dev/urandom of=/data/{number} bs=1M count=3 status=none && sync /data/{number}")
        there = guest.run(f"sha256sum </data/{number}")
        assert (volume / number).stat().st_size == 3 << 20
        assert hashlib.sha256((volume / number).read_bytes()).hexdigest() in there
        guest.run("fusepipe umount /data", seconds=300)
        assert world.wait_until(lambda n=int(number): server.stderr.count("a session ended") >= n, 200)  # type: ignore[misc]
    assert server.stop() == 0
