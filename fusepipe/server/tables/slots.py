"""The slots of a session, kept in its memfd."""

from typing import Final

from ...syscalls import Tree
from ...wire import Kept, SlotRecord, SlotState

_STATES: Final = tuple(SlotState)  # indexing is quicker than calling the enumeration


class SlotStore:
    """A wire.ServerSlotStore.  Short replies are kept in the memfd, long ones (READDIR) in this process's own memory.

    The request whose long reply was lost with its process is FREE again: it runs once more when it comes again.
    Every call concerns one slot and is made under that slot's lock.
    """

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._count = tree.slots

    def __len__(self) -> int:
        return self._count

    def load(self, slot: int) -> SlotRecord:
        """The last request of the slot.  Raises IndexError where there is no such slot."""
        word = self._tree.slot_load(self._checked(slot))
        return SlotRecord(word >> 10, _STATES[word & 3], word >> 2 & 255)

    def run(self, slot: int, seq: int, op: int) -> None:
        """The request is about to run; a kept reply is dropped."""
        self._tree.slot_store(self._checked(slot), seq, op, SlotState.RUNNING)

    def done(self, slot: int, kept: Kept | None) -> None:
        """The request has run, and this is its reply; None for an operation that can be repeated."""
        if kept is None:
            record = self.load(slot)
            self._tree.slot_store(slot, record.seq, record.op, SlotState.DONE)
        else:
            self._tree.slot_keep(self._checked(slot), kept.header, kept.payload)

    def undone(self, slot: int) -> None:
        """The request has not run after all: it runs when it comes again."""
        record = self.load(slot)
        self._tree.slot_store(slot, record.seq, record.op, SlotState.FREE)

    def reply(self, slot: int) -> Kept | None:
        """The reply that `done` was given."""
        record = self.load(slot)
        if record.state is not SlotState.DONE:
            return None
        found = self._tree.slot_reply(slot)
        return None if found is None else Kept(*found)

    def _checked(self, slot: int) -> int:
        if not 0 <= slot < self._count:
            raise IndexError(f"slot {slot} of {self._count}")
        return slot
