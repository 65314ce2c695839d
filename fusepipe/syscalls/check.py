"""From a C call's result to a number or an OSError."""

import os
from typing import NoReturn


def fail(result: int) -> NoReturn:
    """Raises the OSError of a result that is -errno."""
    raise OSError(-result, os.strerror(-result))


def check(result: int) -> int:
    """The result of a call where it is >= 0; else raises OSError."""
    if result < 0:
        fail(result)
    return result
