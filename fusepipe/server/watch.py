"""Who receives goes on with the work itself, and the watch sees to it that nobody waits for long because of that.

A thread that leads a connection (receives from it) runs each request itself, without waking another one: with Python's
global lock, handing every request from thread to thread costs three times as much as the request.  As long as it works,
nobody receives.  So the watch looks at all connections every TICK while there is work, and where a leader has been at
the same request since its last look, another thread leads from then on.
"""

import threading
from collections.abc import Callable, Iterable
from time import sleep

from fusepipe.server.leading import Led

TICK = 0.0005
"""Seconds between two looks: a request waits behind a slow one for at most two of them."""

QUIET = 8
"""Looks in a row that find nobody at work, after which the watch sleeps until it is roused."""


class Watch:
    """Looks after the leaders of a session's connections, in one thread of its own."""

    def __init__(self, connections: Callable[[], Iterable[Led]], relieve: Callable[[Led, int], object]) -> None:
        """`connections` gives those to look at; `relieve` makes another thread lead one that is busy with this job."""
        self._connections = connections
        self._relieve = relieve
        self._lock = threading.Lock()  # a leaf
        self._gate = threading.Lock()
        self._gate.acquire()
        self._stopped = False
        self._awake = False

    def begun(self) -> None:
        """A leader has begun to work."""
        if not self._awake:
            self._rouse()

    def _rouse(self) -> None:
        with self._lock:
            if not self._awake:
                self._awake = True
                self._gate.release()

    def stop(self) -> None:
        """End `run`, soon."""
        self._stopped = True
        self._rouse()

    def run(self) -> None:
        """The life of the watch, until `stop`."""
        quiet = 0
        seen: dict[Led, int] = {}
        while not self._stopped:
            if not self._awake:
                # Ends when a leader begins to work, or with `stop`.
                self._gate.acquire()
                quiet = 0
                seen.clear()
                continue
            sleep(TICK)
            now = {connection: connection.busy for connection in self._connections() if connection.busy}
            for connection, job in now.items():
                if seen.get(connection) == job:
                    self._relieve(connection, job)
            # Once relieved, the new leader has two ticks to take over before another thread is sent.
            seen = {connection: job for connection, job in now.items() if seen.get(connection) != job}
            quiet = 0 if now else quiet + 1
            if quiet >= QUIET:
                self._sleep()

    def _sleep(self) -> None:
        """Go to sleep, unless a leader began to work just now and took the watch to be awake."""
        self._awake = False
        if any(connection.busy for connection in self._connections()):
            self._rouse()
