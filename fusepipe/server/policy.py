"""What the host's owner allows the guests of a volume: whose ids stand for whose, and what they may not leave there."""

from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

Extent: TypeAlias = tuple[int, int, int]
"""Guest's first id, host's first id, count."""

NO_ID = 0xFFFFFFFF
"""The number that is no id: chown(2) takes it for "as it is"."""

MAX_EXTENTS = 340
"""As many as a user namespace may have: user_namespaces(7)."""


class PolicyError(ValueError):
    """Identities that cannot be.  The text says what is wrong with them."""


@dataclass(frozen=True)
class Policy:
    """What holds for every session of a volume, whatever its guest mounts.  Raises PolicyError.

    no_setuid    no set-uid and set-gid files, no file capabilities: refused (EPERM), taken away by every write
    no_devices   no device nodes: refused (EPERM)
    map_uid      whose user ids stand for whose; without any, each for itself
    map_gid      the same for groups
    squash_root  the guest's root is nobody (65534) on the host, and what belongs to the host's root is nobody's there
    squash_all   everything is done as this user and group of the host
    """

    no_setuid: bool = False
    no_devices: bool = False
    map_uid: tuple[Extent, ...] = ()
    map_gid: tuple[Extent, ...] = ()
    squash_root: bool = False
    squash_all: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for extents in (self.map_uid, self.map_gid):
            check_extents(extents)
        if self.squash_all is not None and (self.map_uid or self.map_gid or self.squash_root):
            raise PolicyError("squash-all leaves nothing to map and nobody else to squash")

    @property
    def has_identities(self) -> bool:
        """Whether any id is another one's on the host."""
        return bool(self.map_uid or self.map_gid or self.squash_root or self.squash_all)

    def root_on_host(self) -> bool:
        """Whether the guest's root, or anybody there, can be the host's root."""
        if self.squash_all is not None:
            return self.squash_all[0] == 0
        if self.map_uid:
            return any(host == 0 and (guest or not self.squash_root) for guest, host, _ in self.map_uid)
        return not self.squash_root


def check_extents(extents: tuple[Extent, ...]) -> None:
    """Raises PolicyError where extents are empty, leave the range of ids, or overlap on either side."""
    if len(extents) > MAX_EXTENTS:
        raise PolicyError(f"{len(extents)} ranges of ids; at most {MAX_EXTENTS} are possible")
    for guest, host, count in extents:
        if count < 1 or guest < 0 or host < 0 or guest + count > NO_ID or host + count > NO_ID:
            raise PolicyError(f"{guest}:{host}:{count} is not a range of ids from 0 to {NO_ID - 1}")
    for side, name in ((0, "guest"), (1, "host")):
        ordered = sorted(extents, key=lambda extent: extent[side])
        for one, other in pairwise(ordered):
            if one[side] + one[2] > other[side]:
                raise PolicyError(
                    f"{':'.join(map(str, one))} and {':'.join(map(str, other))} overlap on the {name}'s side"
                )


def parse_extent(text: str) -> Extent:
    """Read GUEST:HOST:COUNT.  Raises PolicyError."""
    guest, host, count = _numbers(text, 3, "GUEST:HOST:COUNT, for example 0:100000:65536")
    extent = (guest, host, count)
    check_extents((extent,))
    return extent


def parse_squash(text: str) -> tuple[int, int]:
    """Read UID:GID.  Raises PolicyError."""
    uid, gid = _numbers(text, 2, "UID:GID, for example 1000:1000")
    if uid >= NO_ID or gid >= NO_ID:
        raise PolicyError(f"{text} are not ids from 0 to {NO_ID - 1}")
    return uid, gid


def _numbers(text: str, count: int, form: str) -> list[int]:
    parts = text.split(":")
    if len(parts) != count or not all(part.isascii() and part.isdigit() and len(part) <= 10 for part in parts):
        raise PolicyError(f"{text!r} is not {form}")
    return [int(part) for part in parts]
