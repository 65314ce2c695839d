"""A client's session as a snapshot of its machine has it."""

import copy

from fusepipe.wire import ClientSession, ListClientStore


def snapshot(session: ClientSession) -> ClientSession:
    """A copy of a session as it is, with its unanswered requests and without its connections."""
    copied = copy.copy(session)
    store = session._store
    assert isinstance(store, ListClientStore)
    twin = ListClientStore(session._layout)
    twin.in_flight, twin.abandoned = store.in_flight, store.abandoned
    twin._seqs = list(store._seqs)
    twin._tickets = [copy.copy(ticket) for ticket in store._tickets]
    twin._free = {slots: list(free) for slots, free in store._free.items()}
    twin._free_of = {slot: free for slots, free in twin._free.items() for slot in slots}
    copied._store = twin
    copied._opening = None
    copied.lost = True
    return copied
