"""The errno that a call must fail with."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def fails(*codes: int) -> Iterator[None]:
    """The block must end with an OSError of one of these numbers."""
    wanted = " or ".join(errno.errorcode[code] for code in codes)
    try:
        yield
    except OSError as error:
        assert error.errno in codes, f"{error} instead of {wanted}"
    else:
        raise AssertionError(f"it worked instead of failing with {wanted}")
