"""The session's process is killed again and again, under a load: another one goes on, and what was said stays true.

    FUSEPIPE_FAULT_SEED=7 FUSEPIPE_FAULT_KILLS=200 .venv/bin/python -m pytest tests/faults/test_kills.py

is the longer run; by default each run has 10 kills, and seed 1.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.faults import chaos
from tests.faults.load import HELD, WARM
from tests.faults.statistics import Session
from tests.faults.test_cuts import THREADS, load
from tests.mount import mounttable
from tests.support import world
from tests.support.program import Program, Programs

NOISE = (
    r"a session process died, and another one goes on|a session goes on in another process|what became of a request"
    r"|a request is given up|locks are lost|the connection to the server is lost|the session goes on over a new"
)
"""What the logs say about deaths."""


def kills() -> int:
    return int(os.environ.get("FUSEPIPE_FAULT_KILLS", "10"))


@pytest.mark.timeout(400 + 30 * kills())
@pytest.mark.parametrize("sandbox", ["none", "prefer"])
@pytest.mark.parametrize("native", ["off", "auto"])
def test_killed_under_a_load(fuse: None, program: Programs, open_path: Path, native: str, sandbox: str) -> None:
    """Calls have the result that the model says; one whose answer was EIO has taken effect once or not at all."""
    volume, mnt = open_path / "volume", open_path / "mnt"
    volume.mkdir(mode=0o700)
    mnt.mkdir()
    common = ("--native", native, "--log-format", "json", "--log-level", "info")
    server = program(
        *("serve", "--listen", f"unix:{open_path}/s", "--volume", f"data={volume}"),
        *("--session-deaths", "1000", "--sandbox", sandbox, *common),
    )
    server.ready()
    client = program("mount", f"unix:{open_path}/s/data", mnt, *common)
    client.ready()
    for one in (server, client):
        one.expect_log(NOISE)
    session, rng = Session(server.pid, lambda: server.stderr), random.Random(chaos.seed())
    with load(mnt, volume, chaos.seed(), "bears") as running:
        for _ in range(kills()):
            _kill(server, session)
            time.sleep(rng.random())  # anywhere in the load
        running.say("stop")
        outcome = json.loads(running.hear(180))
        assert outcome["problems"] == [], f"seed {chaos.seed()}:\n" + "\n".join(outcome["problems"])
        assert outcome["steps"] >= WARM * THREADS
        assert outcome["failed"] <= kills() * THREADS
        running.say("hold")
        assert running.hear(60) == "held"
        _kill(server, session)
        handles = HELD["files"] + HELD["unlinked"] + HELD["folders"]
        mounttable.drop_dentries(mnt)
        assert session.statistics()["handles"] >= handles
        running.say("free")
        assert running.hear(60) == "free"
        mounttable.drop_dentries(mnt)
        assert session.statistics()["overforgotten"] == 0, "a lookup count was too low"
        running.say("end")
        assert running.process.wait(30) == 0
    assert client.stop() == 0
    assert server.stop() == 0
    assert not os.listdir(mnt)
    print(f"seed {chaos.seed()}: {outcome}", file=sys.stderr)


def _kill(server: Program, session: Session) -> None:
    """Kill the session's process, and wait until the mount goes on with another one."""
    went_on = server.stderr.count("a session goes on over new connections")
    os.kill(session.pid, signal.SIGKILL)
    assert world.wait_until(lambda: server.stderr.count("a session goes on over new connections") > went_on, 60), (
        server.stderr
    )
