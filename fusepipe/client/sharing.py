"""The client's request slots where Python shares them with native threads."""

from fusepipe.device.native import Native
from fusepipe.wire import SlotKind, SlotLayout, Ticket
from fusepipe.wire.slots import ClientSlotStore


class SharedStore:
    """A ClientSlotStore whose request slots, and what counts for all slots, are those of native code.

    Slots for cleanup and lock waits are Python's alone and stay in a store of their own.
    """

    def __init__(self, native: Native, layout: SlotLayout, others: ClientSlotStore) -> None:
        self._native = native
        self._requests = layout.range(SlotKind.REQUEST)
        self._tickets: list[Ticket | None] = [None] * layout.request
        self._others = others

    def __len__(self) -> int:
        return len(self._others)

    @property
    def in_flight(self) -> int:
        return self._native.in_flight

    @property
    def abandoned(self) -> int:
        return self._native.abandoned

    def take(self, slots: range) -> int | None:
        return self._native.take() if slots == self._requests else self._others.take(slots)

    def has_free(self, slots: range) -> bool:
        if slots != self._requests:
            return self._others.has_free(slots)
        slot = self._native.take()
        if slot is not None:
            self._native.clear(slot)
        return slot is not None

    def give_back(self, slot: int) -> None:
        if slot in self._requests:
            self._native.give_back(slot)
        else:
            self._others.give_back(slot)

    def reserve(self, size: int, limit: int) -> bool:
        return self._native.reserve(size)

    def seq(self, slot: int) -> int:
        return self._native.seq(slot) if slot in self._requests else self._others.seq(slot)

    def last_sent(self, slot: int) -> int:
        if slot not in self._requests:
            return self._others.last_sent(slot)
        ticket = self._tickets[slot]
        if ticket is None:
            return self._native.last_sent(slot)
        return ticket.seq if ticket.sent else ticket.seq - 1

    def ticket(self, slot: int) -> Ticket | None:
        return self._tickets[slot] if slot in self._requests else self._others.ticket(slot)

    def put(self, ticket: Ticket) -> None:
        if ticket.slot in self._requests:
            self._native.put(ticket.slot, ticket.seq)
            self._tickets[ticket.slot] = ticket
        else:
            self._others.put(ticket)

    def clear(self, slot: int) -> None:
        ticket = self.ticket(slot)
        assert ticket is not None
        self._native.release(ticket.in_flight)
        if slot in self._requests:
            self._tickets[slot] = None
            self._native.clear(slot)
        else:
            self._others.clear(slot)

    def abandon(self, most: int) -> bool:
        return self._native.abandon_one(most)

    def abandoned_came(self) -> None:
        self._native.abandoned_came()

    def waiting(self, requests: int) -> None:
        self._native.python_waits(requests)
