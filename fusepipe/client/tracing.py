"""Single requests in the log, for who looks for a fault: operations with their durations, and frames."""

import time

from fusepipe import log
from fusepipe.client.boundary import shape
from fusepipe.client.errors import CallError
from fusepipe.client.link import Link, Waiter
from fusepipe.device import CurrentRequest
from fusepipe.transport import Buffer
from fusepipe.wire import Message, SlotKind, Ticket, op_of
from fusepipe.wire.client_session import Event, Replied


def link_class() -> type[Link]:
    """The link to use: what is not traced costs nothing."""
    return TracedLink if log.tracing("client") or log.tracing("wire") else Link


def _fields(request: Message) -> str:
    names: tuple[str, ...] = getattr(request, "_fields", ())
    return " ".join(f"{name}:{shape(value)}" for name, value in zip(names, request, strict=True))


class TracedLink(Link):
    """A link that logs each call ("client") and each frame of a slot ("wire"), as far as they are traced."""

    _client = log.get_logger("client")
    _wire = log.get_logger("wire")

    async def call(self, request: Message, payload: Buffer = b"", current: CurrentRequest | None = None) -> Replied:
        if not log.tracing("client"):
            return await super().call(request, payload, current)
        current = self.current if current is None else current
        operation, unique, begun, number = op_of(request).name, current.unique, time.monotonic(), 0
        try:
            return await super().call(request, payload, current)
        except CallError as error:
            number = error.errno
            raise
        finally:
            took = round((time.monotonic() - begun) * 1000, 3)
            self._client.trace(
                "call", operation=operation, unique=unique, request=_fields(request), ms=took, errno=number
            )

    def _take(self, kind: SlotKind, request: Message, payload: Buffer, waiter: Waiter) -> Ticket | None:
        ticket = super()._take(kind, request, payload, waiter)
        if ticket is not None and log.tracing("wire"):
            sent = len(ticket.header) + len(payload)
            self._wire.trace("request", operation=ticket.op.name, slot=ticket.slot, seq=ticket.seq, bytes=sent)
        return ticket

    def _handle(self, event: Event) -> None:
        if isinstance(event, Replied) and log.tracing("wire"):
            ticket, came = event.ticket, len(event.payload)
            self._wire.trace(
                "reply",
                operation=ticket.op.name,
                slot=ticket.slot,
                seq=ticket.seq,
                errno=event.errno,
                payload=came,
                abandoned=ticket.abandoned,
            )
        super()._handle(event)
