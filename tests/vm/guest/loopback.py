"""Runs in the guest: `loopback.py DIRECTORY` serves over AF_VSOCK and mounts that in the same guest (vsock_loopback).

One server lets the machine's own CID in, another one a stranger's only.  Prints one JSON object with what came of it;
whatever else goes wrong ends it with a traceback and status 1.
"""

import hashlib
import json
import os
import selectors
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS = 200.0
LOCAL, STRANGER = 1, 4711
"""VMADDR_CID_LOCAL, which vsock_loopback gives to the peer, and a CID that nobody has."""


@contextmanager
def serving(port: int, allowed: int, volume: str) -> Iterator[list[str]]:
    """A server on every CID of this machine; the list is filled with what it logged when it has ended."""
    command = ["fusepipe", "serve", "--listen", f"vsock:any:{port}", "--volume", f"data={volume}"]
    log: list[str] = []
    process = subprocess.Popen(
        [*command, "--allow-cid", str(allowed)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            ready = process.stdout.readline() if selector.select(SECONDS) else ""
        assert f"serving data on vsock:any:{port}" in ready, ready
        yield log
        process.terminate()
        _, said = process.communicate(timeout=SECONDS)
        log += said.splitlines()
        assert process.returncode == 0, said
    finally:
        process.kill()
        process.wait()


def run(*command: str) -> tuple[int, str]:
    """The exit code of a command and what it printed."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS)
    return done.returncode, done.stdout + done.stderr


def digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def exchange(volume: str, mountpoint: str) -> None:
    """Files of both sides are the same on the other."""
    for number, (here, there) in enumerate(((volume, mountpoint), (mountpoint, volume))):
        for size in (0, 1, 32_001, 65_536, (3 << 20) + 5):
            name = f"{number}-{size}"
            with open(os.path.join(here, name), "wb") as file:
                file.write(os.urandom(size))
            assert digest(os.path.join(here, name)) == digest(os.path.join(there, name)), name
    assert sorted(os.listdir(volume)) == sorted(os.listdir(mountpoint))


def main(place: str) -> None:
    volume, mountpoint = os.path.join(place, "volume"), os.path.join(place, "mnt")
    os.mkdir(volume)
    os.mkdir(mountpoint)
    with serving(5100, LOCAL, volume) as accepting, serving(5101, STRANGER, volume) as refusing:
        mounted = run("fusepipe", "mount", "vsock:1:5100/data", mountpoint, "--daemon")
        assert mounted[0] == 0, mounted
        with open("/proc/mounts") as table:
            line = next(line for line in table if f" {mountpoint} " in line)
        exchange(volume, mountpoint)
        unmounted = run("fusepipe", "umount", mountpoint)
        assert unmounted[0] == 0, unmounted
        refused = run("fusepipe", "mount", "vsock:1:5101/data", mountpoint, "--daemon")
    print(json.dumps({"line": line, "refused": refused, "accepting": accepting, "refusing": refusing}))


if __name__ == "__main__":
    main(sys.argv[1])
