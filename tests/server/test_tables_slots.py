"""The slot store in the memfd."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusepipe.server.tables import SlotStore
from fusepipe.wire import Kept, Op, SlotState
from fusepipe.wire.messages import ROWS
from fusepipe.wire.slots import ListServerStore, ServerSlotStore, Verdict, arrive, finish
from tests.server.volume import SLOTS, Volume


@pytest.fixture
def store(tmp_path: Path, serve: Callable[..., Volume]) -> SlotStore:
    return serve(tmp_path).tables.slots


def test_at_first_there_is_nothing(store: SlotStore) -> None:
    assert len(store) == SLOTS
    assert [store.load(slot) for slot in range(SLOTS)] == [(0, SlotState.FREE, 0)] * SLOTS
    assert store.reply(0) is None


@pytest.mark.parametrize("slot", [-1, SLOTS, 1 << 31])
def test_there_are_only_so_many(store: SlotStore, slot: int) -> None:
    with pytest.raises(IndexError):
        store.load(slot)
    with pytest.raises(IndexError):
        store.run(slot, 1, Op.MKDIR)
    with pytest.raises(IndexError):
        store.done(slot, None)
    with pytest.raises(IndexError):
        store.reply(slot)


@pytest.mark.parametrize("size", [0, 1, 400, 490, 491, 5000])
def test_short_and_long_replies(store: SlotStore, size: int) -> None:
    kept = Kept(b"header", os.urandom(size))
    store.run(1, 1, Op.READDIR)
    assert store.reply(1) is None
    store.done(1, kept)
    assert store.reply(1) == kept
    store.run(1, 2, Op.READDIR)
    assert store.reply(1) is None
    store.done(1, Kept(b"", b""))
    assert store.reply(1) == Kept(b"", b"")


def test_numbers_that_do_not_fit(store: SlotStore) -> None:
    with pytest.raises(OSError, match="out of range"):
        store.run(0, 1 << 54, Op.MKDIR)
    with pytest.raises(OSError, match="out of range"):
        store.run(0, 1, 256)
    store.run(0, (1 << 54) - 1, 255)
    assert store.load(0) == ((1 << 54) - 1, SlotState.RUNNING, 255)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(
            st.integers(0, SLOTS - 1),
            st.sampled_from([Op.MKDIR, Op.READ, Op.READDIR]),
            st.integers(0, 1),
            st.binary(max_size=600),
        ),
        max_size=30,
    )
)
def test_it_does_what_a_list_does(tmp_path: Path, steps: list[tuple[int, Op, int, bytes]]) -> None:
    """Under the rules of slots, both stores come to the same."""
    with Volume(tmp_path) as volume:
        stores: list[ServerSlotStore] = [volume.tables.slots, ListServerStore(SLOTS)]
        for slot, op, new, payload in steps:
            record = stores[1].load(slot)
            seq, op = (record.seq + 1, op) if new or not record.seq else (record.seq, Op(record.op))
            verdicts = [arrive(store, slot, seq, ROWS[op]) for store in stores]
            assert verdicts[0] is verdicts[1]
            if verdicts[0] is Verdict.RUN:
                assert [finish(store, slot, seq, b"h", payload) for store in stores] == [True, True]
            assert stores[0].load(slot) == stores[1].load(slot)
            assert stores[0].reply(slot) == stores[1].reply(slot) or op is Op.READ
