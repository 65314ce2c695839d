"""What handlers have in common."""

from collections.abc import Callable
from typing import Any, TypeAlias

from ...syscalls import EntryNumbers
from ...wire import Buffer
from ...wire.messages import Attr, Entry
from ..tables import Tables

Reply: TypeAlias = tuple[tuple[Any, ...], Buffer]
"""The message and the payload of a reply."""
Handler: TypeAlias = Callable[[Tables, Any, Buffer], Reply]

NOTHING = b""


def entry(numbers: EntryNumbers) -> Entry:
    """An entry from what the C side gave."""
    return Entry(numbers[0], Attr._make(numbers[1:]))
