"""Making pyfuse3's session, with what libfuse has to say about it."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pyfuse3

from fusepipe import log
from fusepipe.client.errors import PermissionDeniedError

logger = log.get_logger("client")

STDERR = 2


class _ToOurLog(logging.Handler):
    """What pyfuse3 has to complain about, as lines of our own log."""

    def emit(self, record: logging.LogRecord) -> None:
        logger.error("pyfuse3 complains", text=record.getMessage())


_complaints = logging.getLogger("pyfuse3")
_complaints.addHandler(_ToOurLog())
_complaints.propagate = False


@contextmanager
def _caught(said: list[str]) -> Iterator[None]:
    """What is written to stderr meanwhile, by libfuse or by fusermount3, ends in `said`."""
    kept = os.dup(STDERR)
    caught = os.memfd_create("stderr")
    os.dup2(caught, STDERR)
    try:
        yield
    finally:
        os.dup2(kept, STDERR)
        os.close(kept)
        with open(caught, "rb") as text:
            text.seek(0)
            said += text.read().decode("utf-8", "replace").splitlines()


def make_session(operations: pyfuse3.Operations, mountpoint: str, options: set[str]) -> list[str]:
    """Mounts.  Returns what libfuse said.  Raises PermissionDeniedError with that where it could not."""
    said: list[str] = []
    try:
        with _caught(said):
            pyfuse3.init(operations, mountpoint, options)
    except RuntimeError as error:
        pyfuse3.close(unmount=False)
        raise PermissionDeniedError(
            f"mounting at {mountpoint} failed: {' '.join(said) or error}",
            "run it as root, or as a user who may use /dev/fuse and owns the mount point",
        ) from error
    return said
