"""Moving bytes between two ends of the protocol without a socket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from fusepipe.wire import Buffer

Taken = TypeVar("Taken")


def put(parts: list[Buffer], buffer: Callable[[], memoryview], received: Callable[[int], Taken]) -> Iterator[Taken]:
    """Copy `parts` into what `buffer()` gives, piece by piece, and yield what `received` says to each piece."""
    for part in parts:
        left = memoryview(part)
        while left:
            space = buffer()
            count = min(len(space), len(left))
            space[:count] = left[:count]
            yield received(count)
            left = left[count:]
