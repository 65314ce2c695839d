"""A connection that is cut, delayed, truncated, silent or damaged again and again, under a load: nobody notices.

    FUSEPIPE_FAULT_SEED=7 FUSEPIPE_FAULT_CUTS=5000 .venv/bin/python -m pytest tests/faults/test_cuts.py

is the longer run; by default each run has 200 cuts, seed 1, and at most one that only a PING finds out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults import chaos
from tests.faults.chaos import Chaos
from tests.faults.load import HELD, WARM
from tests.faults.statistics import Session
from tests.mount import children, mounttable
from tests.support import world
from tests.support.program import REPOSITORY, Program, Programs

THREADS = 32
PATIENCE = 100.0 + chaos.cuts()
"""Seconds for all cuts of a run, on a busy machine."""

NOISE = r"connection|a client broke the protocol|a client was refused|resum|lost"
"""What the logs may say about connections that are harmed."""


@dataclass
class Load:
    """The program of load.py."""

    process: subprocess.Popen[str]

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def hear(self, seconds: float) -> str:
        return children.read_line(self.process, seconds)


@contextmanager
def load(mnt: Path, volume: Path, seed: int, *options: str) -> Iterator[Load]:
    """The load at work; ended and reaped in any case."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.load", mnt, volume, str(seed), str(THREADS), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    try:
        one = Load(process)
        assert one.hear(120) == "ready"
        yield one
    finally:
        if process.poll() is None:
            process.kill()
            if (found := mounttable.find(mnt)) is not None and not _ends(process):
                mounttable.abort(found)
        with process:
            pass


def _ends(process: subprocess.Popen[str]) -> bool:
    return world.wait_until(lambda: process.poll() is not None, 5)


def addresses(folder: Path, *, checksums: bool) -> tuple[str, Path, str]:
    """Where the server listens, its socket, and where the client goes through the relay."""
    if checksums:
        return f"firecracker:{folder}/s:5000", folder / "s_5000", f"firecracker-connect:{folder}/relay:5000/data"
    return f"unix:{folder}/s", folder / "s", f"unix:{folder}/relay/data"


@pytest.mark.timeout(400 + 2 * chaos.cuts())
@pytest.mark.parametrize("cuts", [0, chaos.cuts()], ids=["untouched", "cut"])
@pytest.mark.parametrize("checksums", [False, True], ids=["plain", "checksums"])
@pytest.mark.parametrize("native", ["off", "auto"])
def test_a_load_notices_nothing(
    fuse: None, program: Programs, open_path: Path, native: str, checksums: bool, cuts: int
) -> None:
    """Every call has the result that the model says, and in the end the session holds what a quiet run holds."""
    listen, server_socket, target = addresses(open_path, checksums=checksums)
    volume, mnt = open_path / "volume", open_path / "mnt"
    volume.mkdir(mode=0o700)
    mnt.mkdir()
    common = ("--native", native, "--log-format", "json", "--log-level", "info")
    server = program("serve", "--listen", listen, "--volume", f"data={volume}", *common)
    server.ready()
    seed = chaos.seed()
    with Chaos(open_path / "relay", server_socket, seed, checksums=checksums, vmm=checksums) as relay:
        client = program("mount", target, mnt, "--locks", "shared", *common)
        client.ready()
        if cuts:
            for one in (server, client):
                one.expect_log(NOISE)
        session = Session(server.pid, lambda: server.stderr)
        with load(mnt, volume, seed) as running:
            relay.begin(cuts, silences=1 + cuts // 500)
            assert relay.wait(PATIENCE), f"only {relay.harmed}"
            running.say("stop")
            outcome = json.loads(running.hear(180))
            assert outcome["problems"] == [], f"seed {seed}, {relay.harmed}:\n" + "\n".join(outcome["problems"])
            assert outcome["steps"] >= WARM * THREADS
            running.say("hold")
            assert running.hear(60) == "held"
            _check_held(session, mnt)
            running.say("free")
            assert running.hear(60) == "free"
            session.wait_for({"inodes": 1, "handles": 0, "locks": 0}, lambda: mounttable.drop_dentries(mnt))
            assert session.statistics()["overforgotten"] == 0
            running.say("end")
            assert running.process.wait(30) == 0
        _check_ends(client, server, mnt)
    if cuts:
        print(f"seed {seed}: {outcome['steps']} steps, {dict(relay.harmed)}", file=sys.stderr)


def _check_held(session: Session, mnt: Path) -> None:
    """What is open and locked counts, each thing once; all else has been forgotten."""
    handles = HELD["files"] + HELD["unlinked"] + HELD["folders"]
    wanted = {"inodes": handles + 2, "handles": handles, "locks": HELD["locks"], "pinned": HELD["unlinked"]}
    session.wait_for(wanted, lambda: mounttable.drop_dentries(mnt))


def _check_ends(client: Program, server: Program, mnt: Path) -> None:
    assert client.stop() == 0
    assert mounttable.find(mnt) is None
    assert server.stop() == 0
    assert not os.listdir(mnt)
