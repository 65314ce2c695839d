"""The requests that reach the server of a mount, from its trace."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable

from tests.mount.harness import Mount

TRACED = ("--trace", "server")
"""Options of a mount whose requests are to be counted."""

SETTLED = 0.2  # seconds without a request: what was collected has been sent, and what was done is noted
LATEST = 20.0
REQUEST = re.compile(r" trace +server: (\w+) ")


def _all(mount: Mount) -> list[str]:
    programs = [program for program in (mount.client, mount.server) if program is not None]
    return [name for program in programs for name in REQUEST.findall(program.errors())]


def _settled(mount: Mount) -> int:
    """How many requests there were, once no more come."""
    end = time.monotonic() + LATEST
    before, now = -1, len(_all(mount))
    while before != now and time.monotonic() < end:
        time.sleep(SETTLED)
        before, now = now, len(_all(mount))
    return now


def requests_of(mount: Mount, work: Callable[[], object]) -> Counter[str]:
    """Requests by name that `work` leads to; of a mount by `bind` with the options TRACED."""
    before = _settled(mount)
    work()
    _settled(mount)
    return Counter(_all(mount)[before:])
