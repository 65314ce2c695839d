"""What can go wrong on the wire: the peer broke the protocol, or we did."""

from enum import IntEnum


class ErrorCode(IntEnum):
    """Why a server ends a connection; the third element of an error frame's header."""

    PROTOCOL = 1
    """The peer broke the protocol."""
    VERSION = 2
    """No common version; the detail is the sender's major, lowest minor and highest minor."""
    NO_SUCH_VOLUME = 3
    """The server has no volume of that name."""
    REFUSED = 4
    """This peer may not use the volume."""
    STALE = 5
    """The session has ended, or goes on elsewhere."""
    LIMIT = 6
    """A limit of the server does not allow it."""
    FAILED = 7
    """The volume cannot be served now.  Codes that a reader does not know mean this as well."""


class RemoteProtocolError(Exception):
    """The peer broke the protocol, or asked for what cannot be: its connection must be closed.

    The only exception that bytes from the peer can cause.  `code`, `text` and `detail` are what an error frame carries;
    they never contain a secret.
    """

    def __init__(
        self, text: str, code: ErrorCode = ErrorCode.PROTOCOL, detail: tuple[int | str | bytes | None, ...] = ()
    ) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.detail = detail


class LocalProtocolError(Exception):
    """This program used the wire wrongly: a bug of its own, whatever the peer sent."""
