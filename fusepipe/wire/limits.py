"""What both ends agree on in HELLO, and how requests count against it.  SPEC.md, section "Limits and features"."""

from dataclasses import dataclass
from typing import Final

from .codec import Message
from .errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from .messages import MAJOR, MINOR, ROWS, HelloReply, HelloRequest, Row

MAGIC: Final = b"fusepipe"
MINOR_MIN: Final = 0
"""The lowest minor version that this code can talk to."""
BODY_CRC: Final = "body-crc"
"""Feature of a connection: every frame carries a checksum of header and payload."""
SERVER_FEATURES: Final[frozenset[str]] = frozenset()
"""Features of a session that the server can agree to; none exists yet."""

NAME_FIELDS: Final = {
    op: tuple(index for index, field in enumerate(row.request_fields) if field.type == "name")
    for op, row in ROWS.items()
}
"""Which fields of a request are names, whose length is limited by `max_name`."""

_SIZE_FIELD: Final = {
    op: [field.name for field in row.request_fields].index("size") for op, row in ROWS.items() if row.payload == "reply"
}

MAX_SLOTS: Final = 2048
"""Most slots of a session, of all kinds together: a RESUME must fit into a first frame."""

_LOWEST: Final = {
    "request_slots": 1,
    "cleanup_slots": 1,
    "lock_slots": 0,
    "connections": 1,
    "max_read": 4096,
    "max_write": 4096,
    "max_in_flight": 4096,
    "max_name": 1,
}
"""Every limit that is negotiated, and the least that makes sense."""


@dataclass(frozen=True)
class ServerLimits:
    """The most that a server grants; sizes in bytes.  Raises LocalProtocolError where a limit is below the least."""

    request_slots: int = 64
    cleanup_slots: int = 4
    lock_slots: int = 64
    connections: int = 16
    max_read: int = 1 << 20
    max_write: int = 1 << 20
    max_in_flight: int = 16 << 20
    max_name: int = 255

    def __post_init__(self) -> None:
        for name, lowest in _LOWEST.items():
            if getattr(self, name) < lowest:
                raise LocalProtocolError(f"{name} is {getattr(self, name)}; the least is {lowest}")
        if self.slots > MAX_SLOTS:
            raise LocalProtocolError(f"{self.slots} slots; the most is {MAX_SLOTS}")

    @property
    def slots(self) -> int:
        """Slots of all kinds together."""
        return self.request_slots + self.cleanup_slots + self.lock_slots


def reply_size(row: Row, request: Message) -> int:
    """How many bytes of payload the reply to a request may have."""
    size: int = request[_SIZE_FIELD[row.op]] if row.payload == "reply" else 0
    return size


def version_refused(text: str) -> RemoteProtocolError:
    """The refusal of a version, which says both ends'."""
    return RemoteProtocolError(text, ErrorCode.VERSION, (MAJOR, MINOR_MIN, MINOR))


def grant(offer: HelloRequest, limits: ServerLimits) -> dict[str, int]:
    """The minor version and the limits that the server grants.

    Raises RemoteProtocolError with the code VERSION or LIMIT where the offer cannot be met.
    """
    if offer.minor_min > offer.minor_max:
        raise RemoteProtocolError(f"minor versions from {offer.minor_min} to {offer.minor_max}")
    if offer.minor_min > MINOR or offer.minor_max < MINOR_MIN:
        raise version_refused(
            f"the client speaks {offer.major}.{offer.minor_min} to {offer.major}.{offer.minor_max}, "
            f"this server {MAJOR}.{MINOR_MIN} to {MAJOR}.{MINOR}"
        )
    granted = {"minor": min(offer.minor_max, MINOR)}
    for name, lowest in _LOWEST.items():
        offered = getattr(offer, name)
        if offered < lowest:
            raise RemoteProtocolError(f"{name} is {offered}; the least is {lowest}", ErrorCode.LIMIT)
        granted[name] = min(offered, getattr(limits, name))
    return granted


def check_agreed(offer: HelloRequest, reply: HelloReply) -> None:
    """Raises RemoteProtocolError where a server granted what was not offered."""
    if reply.major != offer.major or not offer.minor_min <= reply.minor <= offer.minor_max:
        raise RemoteProtocolError(f"the server answered with version {reply.major}.{reply.minor}")
    for name, lowest in _LOWEST.items():
        if not lowest <= getattr(reply, name) <= getattr(offer, name):
            raise RemoteProtocolError(f"the server granted {getattr(reply, name)} as {name}")
    unknown = set(reply.features) - set(offer.features) - {BODY_CRC}
    if unknown:
        raise RemoteProtocolError(f"the server agreed to features that were not offered: {sorted(unknown)}")
    slots = reply.request_slots + reply.cleanup_slots + reply.lock_slots
    if slots > MAX_SLOTS:
        raise RemoteProtocolError(f"the server granted {slots} slots; the most is {MAX_SLOTS}")
