"""A server on AF_VSOCK, as on a host whose kernel has it: server and client in one guest, over its vsock_loopback."""

import json

import pytest

from tests.vm.machine import Machine

pytestmark = pytest.mark.timeout(1800)


def test_a_server_on_vsock(guest: Machine) -> None:
    """`vsock:any:PORT` serves, `vsock:1:PORT` mounts; --allow-cid lets the CIDs in that it names, and nobody else."""
    place = guest.run("mktemp -d").strip()
    try:
        found = json.loads(guest.run("python3", "/host/tests/vm/guest/loopback.py", place, seconds=800))
    finally:
        guest.run(f"! mountpoint -q {place}/mnt || umount -l {place}/mnt; rm -rf --one-file-system {place}")
    assert found["line"].startswith(f"vsock:1:5100/data {place}/mnt fuse.fusepipe rw")
    code, said = found["refused"]
    assert (code, said.count("\n")) == (6, 1)
    assert "the machine with CID 1 may not connect here" in said

    (warning,) = [line for line in found["refusing"] if " warning " in line or " error " in line]
    assert "a client was refused" in warning and "the machine with CID 1 may not connect here" in warning
    assert not [line for line in found["refusing"] if "a session began" in line]
    assert not [line for line in found["accepting"] if " warning " in line or " error " in line]
    assert [line for line in found["accepting"] if "a session began" in line and "cid 1 " in line]
