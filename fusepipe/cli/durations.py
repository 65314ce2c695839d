"""Lengths of time on the command line: seconds, or a number with a unit."""

import math
import re
from typing import Any, Final

import click

UNITS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(text: str) -> float | None:
    """`30`, `1.5s`, `10m`, `24h` or `7d` in seconds; None where it is none of these."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)([smhd]?)", text)
    return float(found[1]) * UNITS[found[2]] if found else None


class Duration(click.ParamType[float]):
    """A length of time of 0 or more, in seconds, and words that stand for one."""

    name = "duration"

    def __init__(self, **words: float) -> None:
        self._words = words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        known = self._words.get(value, seconds(value))
        if known is None or (math.isinf(known) and value not in self._words):
            words = "".join(f"{word}, " for word in self._words)
            self.fail(
                f"{value!r} is no length of time; use {words}seconds as in 30, or a unit as in 10m or 24h", param, ctx
            )
        return known
