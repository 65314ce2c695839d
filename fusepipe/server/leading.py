"""Which thread leads a connection, and what the session needs of a connection."""

import threading

from fusepipe.transport import Buffer
from fusepipe.wire import ServerConnection
from fusepipe.wire.server_session import Event


class Led:
    """A connection of a session.  At any time at most one thread leads: it calls `receive`.  Any thread may `send`.

    Locks: `_lead` is a leaf.
    """

    def __init__(self, wire: ServerConnection) -> None:
        """The caller leads."""
        self.wire = wire
        self.busy = 0
        """The number of the job that the leader is at; 0 while it receives."""
        self.relief_comes = False
        """Whether a thread was told to take over and has not looked yet, so that it makes no sense to send another."""
        self.hung_up = False
        """Whether the stream has ended; in the middle of a frame this is a client that died, not one that errs."""
        self._lead = threading.Lock()
        self._jobs = 0

    def begin(self) -> int:
        """The leader begins to work at a request: the number of that job."""
        self._jobs += 1
        self.busy = self._jobs
        return self._jobs

    def end(self, job: int) -> bool:
        """The thread that began the job has done it: whether it still leads, and receives next."""
        with self._lead:
            if self.busy != job:
                return False
            self.busy = 0
            return True

    def supersede(self, job: int) -> bool:
        """Whether the calling thread leads from now on: it does if the leader is still at that job."""
        return self.end(job)

    # ---- what each kind of connection does in its own way ----

    def feed(self, data: bytes) -> None:
        """Take bytes that were received elsewhere, before anything is received here."""
        raise NotImplementedError

    def receive(self) -> Event | None:
        """Wait for the next event; without an end, since a guest may be paused for days.  The leader only.

        Ends with Close when the client closes the connection or breaks it, or when `shut` was called; with None where
        the caller was held up and another thread leads now.
        """
        raise NotImplementedError

    def end_receiving(self) -> None:
        """Nobody will lead any more."""
        raise NotImplementedError

    def send(self, header: bytes, payload: Buffer = b"") -> bool:
        """Send a frame as far as the socket takes it.  Returns whether the caller must see to it that `flush` runs."""
        raise NotImplementedError

    def flush(self) -> None:
        """Wait until the client has read what is unsent."""
        raise NotImplementedError

    @property
    def unsent(self) -> bool:
        """Whether something waits for the client to read."""
        raise NotImplementedError

    def shut(self) -> None:
        """End the connection now."""
        raise NotImplementedError
