"""From a request to its reply: the one place where the exceptions of the server end."""

import errno
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

from fusepipe import log
from fusepipe.wire import Buffer, Message, Op, encode_errno, encode_reply
from fusepipe.wire.server_session import Arrived

Handler = Callable[[Any, Any, memoryview], tuple[Message, Buffer]]
"""Runs one operation: (context, request, payload) -> (reply, payload).  Raises OSError for an errno."""

Dispatch = Callable[[Arrived], tuple[bytes, Buffer]]
"""Runs a request: the header and payload of its reply.  Never raises."""


def dispatcher(context: object, handlers: Mapping[Op, Handler], logger: log.Logger) -> Dispatch:
    """What runs requests, with a trace line for each where the component "server" is traced.

    It may be called from any number of threads at once, as the handlers may.
    """

    def dispatch(event: Arrived) -> tuple[bytes, Buffer]:
        slot, seq, op, request, payload, *_ = event
        try:
            reply, reply_payload = handlers[op](context, request, payload)
            return encode_reply(slot, seq, op, reply), reply_payload
        except OSError as error:
            if error.errno and 0 < error.errno <= 4095:
                return encode_errno(slot, seq, error.errno), b""
            return _unexpected(event, error, logger)
        except Exception as error:
            return _unexpected(event, error, logger)

    return _traced(dispatch, logger) if log.tracing("server") else dispatch


def _unexpected(event: Arrived, error: Exception, logger: log.Logger) -> tuple[bytes, Buffer]:
    """Log what should never happen, once and without the contents of files and names; the client gets an errno.

    It is EIO, but for LOOKUP, where any error that the kernel does not take for a passing one makes it detach what is
    mounted below (fs/fuse/dir.c, fuse_dentry_revalidate).
    """
    logger.error(
        "a request failed unexpectedly", op=event.op.name, arguments=shapes(event.request, event.payload), error=error
    )
    return encode_errno(event.slot, event.seq, errno.EINTR if event.op is Op.LOOKUP else errno.EIO), b""


def shapes(request: Message, payload: Buffer = b"") -> str:
    """Types and lengths of a request's fields, without what they contain."""
    names = getattr(request, "_fields", ())
    parts = [f"{name}={_shape(value)}" for name, value in zip(names, request, strict=True)]
    if len(payload):
        parts.append(f"payload={_shape(payload)}")
    return ", ".join(parts)


def _shape(value: object) -> str:
    if isinstance(value, bytes | bytearray | memoryview | str | tuple | list):
        return f"{type(value).__name__}[{len(value)}]"
    return type(value).__name__


def _traced(dispatch: Dispatch, logger: log.Logger) -> Dispatch:
    def traced(event: Arrived) -> tuple[bytes, Buffer]:
        begin = perf_counter()
        header, payload = dispatch(event)
        logger.trace(
            event.op.name.lower(),
            slot=event.slot,
            seq=event.seq,
            received=event.received_bytes,
            sent=len(header) + len(payload),
            ms=round((perf_counter() - begin) * 1000, 3),
        )
        return header, payload

    return traced
