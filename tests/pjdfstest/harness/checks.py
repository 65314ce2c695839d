"""Counts what is checked, and says clearly what was wrong."""

import errno
from collections import Counter
from typing import Any

counted: Counter[str] = Counter()
"""How often each kind of check was carried out in this run."""


def passed(kind: str) -> None:
    """Note one check that was carried out and held."""
    counted[kind] += 1


def total() -> int:
    return sum(counted.values())


def check(condition: bool, message: str) -> None:
    """One check: `condition` must hold."""
    __tracebackhide__ = True
    counted["conditions"] += 1
    if not condition:
        raise AssertionError(message)


def equal(actual: Any, expected: Any, what: str) -> None:
    """One check: two values are the same."""
    __tracebackhide__ = True
    counted["values"] += 1
    if actual != expected:
        raise AssertionError(f"{what}: {shown(actual)}, expected {shown(expected)}")


def one_of(actual: Any, expected: tuple[Any, ...], what: str) -> None:
    """One check: a value is among those allowed."""
    __tracebackhide__ = True
    counted["values"] += 1
    if actual not in expected:
        raise AssertionError(f"{what}: {shown(actual)}, expected one of {', '.join(map(shown, expected))}")


def shown(value: Any) -> str:
    """A value for a message, long ones shortened."""
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:200]}... ({len(text)} characters)"


def errno_name(number: int) -> str:
    return "success" if number == 0 else errno.errorcode.get(number, str(number))
