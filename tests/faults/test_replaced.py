"""The server is replaced again and again, under a load, and at times nearly: nobody notices, and nothing is lost.

    FUSEPIPE_FAULT_SEED=7 FUSEPIPE_FAULT_REPLACEMENTS=100 .venv/bin/python -m pytest tests/faults/test_replaced.py

is the longer run; by default each run has 2 replacements, and seed 1.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path

import pytest

from fusepipe.server import Volume
from tests.faults import chaos
from tests.faults.load import HELD, WARM
from tests.faults.statistics import Session
from tests.faults.test_cuts import THREADS, load
from tests.mount import mounttable
from tests.server.half_way import take_and_go_away
from tests.support import world
from tests.support.program import Program, Programs

GOES_ON = "a session goes on over new connections"
"""What the server's log says."""

LOST = "the connection to the server is lost|the session goes on over a new"
"""What the client's log says."""


def replacements() -> int:
    return int(os.environ.get("FUSEPIPE_FAULT_REPLACEMENTS", "2"))


@pytest.mark.timeout(400 + 60 * replacements())
@pytest.mark.parametrize(("native", "locks"), [("off", "shared"), ("auto", "local")])
def test_replaced_under_a_load(fuse: None, program: Programs, open_path: Path, native: str, locks: str) -> None:
    """Every call has the result that the model says, and in the end the session holds what it should."""
    volume, mnt = open_path / "volume", open_path / "mnt"
    volume.mkdir(mode=0o700)
    mnt.mkdir()
    common = ("--native", native, "--log-format", "json", "--log-level", "info")
    serve = ("serve", "--listen", f"unix:{open_path}/s", "--volume", f"data={volume}", *common)
    server = program(*serve)
    server.ready()
    client = program("mount", f"unix:{open_path}/s/data", mnt, "--locks", locks, *common)
    client.ready()
    client.expect_log(LOST)
    rng = random.Random(chaos.seed())
    with load(mnt, volume, chaos.seed()) as running:
        for _ in range(replacements()):
            server = _replace(program, server, serve)
            time.sleep(rng.random())  # anywhere in the load
        server.expect_log("the other server has not taken over, and this one goes on")
        for until_all in (False, True):
            before = server.stderr.count(GOES_ON)
            take_and_go_away(open_path / "s", Volume("data", str(volume)), until_all=until_all)
            _wait_for_more(server, before)
            time.sleep(rng.random())
        running.say("stop")
        outcome = json.loads(running.hear(180))
        assert outcome["problems"] == [], f"seed {chaos.seed()}:\n" + "\n".join(outcome["problems"])
        assert outcome["steps"] >= WARM * THREADS
        running.say("hold")
        assert running.hear(60) == "held"
        server = _replace(program, server, serve)
        session = Session(server.pid, lambda: server.stderr)
        handles = HELD["files"] + HELD["unlinked"] + HELD["folders"]
        wanted = {"handles": handles, "pinned": HELD["unlinked"], "lost_locks": 0}
        wanted["locks"] = HELD["locks"] if locks == "shared" else 0
        session.wait_for(wanted, lambda: mounttable.drop_dentries(mnt))
        running.say("free")
        assert running.hear(60) == "free"
        session.wait_for({"inodes": 1, "handles": 0, "locks": 0}, lambda: mounttable.drop_dentries(mnt))
        assert session.statistics()["overforgotten"] == 0, "a lookup count was too low"
        running.say("end")
        assert running.process.wait(30) == 0
    assert client.stop() == 0
    assert server.stop() == 0
    assert not os.listdir(mnt)
    assert not (open_path / "s").exists()
    print(f"seed {chaos.seed()}: {outcome}", file=sys.stderr)


def _wait_for_more(server: Program, before: int) -> None:
    """Wait until the mount goes on, which had been said so often before."""
    assert world.wait_until(lambda: server.stderr.count(GOES_ON) > before, 60), server.stderr


def _replace(program: Programs, server: Program, serve: tuple[str, ...]) -> Program:
    """Replace the server, and wait until the mount goes on with the other one."""
    new = program(*serve, "--replace")
    new.ready()
    assert server.wait() == 0, server.stderr
    _wait_for_more(new, 0)
    return new
