"""What OPEN and CREATE say beside the handle (SPEC.md, OPEN)."""

from enum import IntFlag
from typing import Final

KEEP_ALWAYS: Final = 0xFFFFFFFF
"""`keep` of OPEN where nobody else changes the volume."""


class OpenedFlag(IntFlag):
    """`flags` of the replies."""

    KEEP = 1
    """What is cached of the file's contents may be kept."""
    NOFLUSH = 2
    """FLUSH of this handle would always succeed."""
    NEW = 4
    """This request has made the file, which so has no `security.capability`."""
