"""Bytes that change, vanish or do not come: the connection ends with a line that says so; no byte is ever wrong."""

import errno
import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mount.relay import ACTIONS, PARTS, Fault, Relay
from tests.support import world
from tests.support.program import Program, Programs

SIZE = 3 << 20
SILENCE = 12.0
"""Seconds after which a silent connection is dead: 10 by client/liveness.py, and some for a busy machine."""
LIMIT = 45.0

FAULTS = [Fault(to, part, "flip") for to in ("client", "server") for part in PARTS]
FAULTS += [Fault(to, part, "drop") for to in ("client", "server") for part in ("payload length", "payload")]
# Every withheld one costs 10 seconds: in the middle of a payload, and of a prefix.
FAULTS += [Fault("client", "payload", "withhold"), Fault("server", "number", "withhold")]
assert {fault.action for fault in FAULTS} == set(ACTIONS)

LOST = r"the connection to the server is lost"


def _transfer(place: Path, fault: Fault) -> int | None:
    """Read or write a large file; the errno that it ends with, None where all of it was right."""
    try:
        if fault.to == "client":
            data = (place / "read").read_bytes()
            assert hashlib.sha256(data).hexdigest() == hashlib.sha256(_content()).hexdigest()
        else:
            fd = os.open(place / "written", os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                assert os.write(fd, _content()) == SIZE
                os.fsync(fd)
            finally:
                os.close(fd)
    except OSError as error:
        return error.errno
    return None


def _content() -> bytes:
    return b"".join(hashlib.sha256(str(i).encode()).digest() for i in range(SIZE // 32))


@pytest.fixture
def served(program: Programs, open_path: Path) -> Program:
    (open_path / "volume").mkdir(mode=0o700)  # or the server warns of what guests may leave there
    (open_path / "volume" / "read").write_bytes(_content())
    listen, volume = f"firecracker:{open_path}/s:5000", f"data={open_path}/volume"
    server = program("serve", "--session-grace", "0", "--listen", listen, "--volume", volume)
    server.ready()
    return server


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_damage(fuse: None, program: Programs, served: Program, open_path: Path, fault: Fault) -> None:
    """One fault in a transfer: EIO in time, a line in the log that says why, and nothing wrong on either side."""
    (open_path / "mnt").mkdir()
    server = Path(f"{open_path}/s_5000")
    with Relay(open_path / "vmm", server) as relay, ThreadPoolExecutor(1) as pool:
        client = program(
            "mount", "--on-disconnect", "fail", f"firecracker-connect:{open_path}/vmm:5000/data", open_path / "mnt"
        )
        client.expect_log(LOST)
        client.ready()
        served.expect_log("a client broke the protocol")
        relay.fault = fault
        begin = time.monotonic()
        outcome = pool.submit(_transfer, open_path / "mnt", fault)
        assert outcome.result(timeout=LIMIT) == errno.EIO
        assert relay.happened.is_set()
        seconds = time.monotonic() - begin
        assert client.wait(LIMIT) == 8
    assert LOST in client.stderr and "the connection to the server was lost" in client.stderr
    if fault.action == "withhold":
        assert "silent" in client.stderr
        assert seconds < SILENCE + 20
    elif fault.to == "client":
        assert "silent" not in client.stderr
    elif fault.to == "server":
        assert world.wait_until(lambda: "a client broke the protocol" in served.stderr, 10), served.stderr
    if fault.to == "server":
        written = (open_path / "volume" / "written").read_bytes()
        content = _content()
        # WRITEs arrive in any order, so there may be holes; what is there is right.
        pages = [(i, written[i : i + 4096]) for i in range(0, len(written), 4096)]
        assert all(page in (content[i : i + 4096], bytes(len(page))) for i, page in pages)
    assert world.wait_until(lambda: "a session ended" in served.stderr, 15), served.stderr
    assert program.run("umount", open_path / "mnt").process.returncode == 0


def test_no_damage(fuse: None, program: Programs, served: Program, open_path: Path) -> None:
    """The relay itself changes nothing: both transfers pass, and the mount ends cleanly."""
    (open_path / "mnt").mkdir()
    with Relay(open_path / "vmm", Path(f"{open_path}/s_5000")):
        client = program("mount", f"firecracker-connect:{open_path}/vmm:5000/data", open_path / "mnt")
        client.ready()
        for to in ("client", "server"):
            assert _transfer(open_path / "mnt", Fault(to, "payload", "flip")) is None
        assert (open_path / "volume" / "written").read_bytes() == _content()
        assert client.stop() == 0
