"""What the connections of a session share, kept in its memfd."""

from ...syscalls import Tree
from ...wire import Remembered, Secret


class Memory:
    """A wire.SessionMemory: what it was told outlives the process, and `remembered` gives it to the next one."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def opened(self, opening: bytes, secret: bytes) -> None:
        """HELLO is about to be answered."""
        self._tree.session_begin(opening, secret)

    def confirmed(self, secret: bytes) -> None:
        """The session has another secret."""
        self._tree.session_secret(secret)

    def known(self) -> None:
        """The client has shown that it knows the session."""
        self._tree.session_known()

    def ended(self) -> None:
        """BYE has come."""
        self._tree.session_ended()

    def remembered(self) -> Remembered | None:
        """All of it; None where HELLO has not been answered."""
        found = self._tree.session()
        if found is None:
            return None
        opening, secret, known, ended = found
        return Remembered(opening, Secret(secret), known, ended)
