"""Ranges of bytes that one owner has locked."""

from bisect import bisect_left, bisect_right
from typing import NamedTuple

READ, WRITE, UNLOCK = (
    0,
    1,
    2,
)  # F_RDLCK, F_WRLCK and F_UNLCK of fcntl(2), on every architecture that Linux runs on but Alpha


class Range(NamedTuple):
    """A lock from its first to its last byte, both included; `type` is READ or WRITE."""

    start: int
    end: int
    type: int


Ranges = tuple[Range, ...]
"""Ascending, apart from each other, and never two of one type side by side."""


def changed(ranges: Ranges, start: int, end: int, type: int) -> Ranges:
    """What an owner holds after setting or removing a lock: the new one replaces, cuts, splits the old (fcntl(2))."""
    # Only those that it touches, or is beside: an owner may have thousands.
    first = bisect_left(ranges, start - 1, key=lambda old: old.end)
    last = bisect_right(ranges, end + 1, key=lambda old: old.start)
    kept: list[Range] = []
    for old in ranges[first:last]:
        if old.start < start:
            kept.append(old._replace(end=min(old.end, start - 1)))
        if old.end > end:
            kept.append(old._replace(start=max(old.start, end + 1)))
    if type != UNLOCK:
        kept.append(Range(start, end, type))
    kept.sort()
    joined: list[Range] = []
    for one in kept:
        if joined and joined[-1].type == one.type and joined[-1].end + 1 == one.start:
            joined[-1] = joined[-1]._replace(end=one.end)
        else:
            joined.append(one)
    return (*ranges[:first], *joined, *ranges[last:])
