"""The boundary between the client and pyfuse3: the only place where a FUSEError is made.

Any other exception that leaves an operation would end the whole mount (pyfuse3's session loop).
"""

import errno
import functools
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3

from fusepipe import log
from fusepipe.client.errors import CallError

logger = log.get_logger("client")

S = TypeVar("S")
P = ParamSpec("P")
R = TypeVar("R")

ERRNO_LIMIT = 512
"""The kernel takes no errno from here on and leaves the program waiting (fs/fuse/dev.c, fuse_dev_do_write)."""


def shape(value: object) -> str:
    """What a log line may say of an argument: numbers, and the length of everything else."""
    if isinstance(value, int):
        return str(value)
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return type(value).__name__


def boundary(
    operation: Callable[Concatenate[S, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """Makes every exception of an operation an errno for the program that asked, and for it alone.

    What is not a CallError was not foreseen: one log line, and EIO; for LOOKUP EINTR, since the kernel answers any
    other error there by detaching what is mounted below (fs/namei.c, d_invalidate).
    """
    name = operation.__name__
    unexpected = errno.EINTR if name == "lookup" else errno.EIO

    async def guarded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await operation(self, *args, **kwargs)
        except CallError as error:
            number = error.errno if 0 < error.errno < ERRNO_LIMIT else unexpected
        except Exception as error:
            shapes = ", ".join(map(shape, args))
            logger.error("an operation failed unexpectedly", operation=name, arguments=shapes, error=error)
            number = unexpected
        raise pyfuse3.FUSEError(number)

    functools.update_wrapper(guarded, operation)
    return guarded
