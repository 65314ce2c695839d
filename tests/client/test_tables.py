"""The filter's tables in C, compiled alone and held against plain Python."""

import importlib.util
import random
from pathlib import Path
from typing import Any

import pytest
from cffi import FFI  # type: ignore[import-untyped]  # it ships no types
from hypothesis import given, settings
from hypothesis import strategies as st

import fusepipe.device

SOURCES = Path(fusepipe.device.__file__).parent


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The module of the tables alone."""
    builder = FFI()
    builder.cdef("""
        struct requests { size_t size, used; ...; };
        struct request { uint64_t unique; uint32_t opcode, clone; };
        int requests_add(struct requests *table, struct request request);
        struct request requests_remove(struct requests *table, uint64_t unique);
        void requests_clear(struct requests *table);
        struct collected { size_t count, room; ...; };
        int collected_add(struct collected *list, const uint64_t *values, size_t count);
        size_t collected_take(struct collected *list, uint64_t *values, size_t limit);
        void collected_clear(struct collected *list);
    """)
    builder.set_source(
        "device_tables",
        '#include "requests.h"\n#include "collected.h"\n',
        sources=[str(SOURCES / "requests.c"), str(SOURCES / "collected.c")],
        include_dirs=[str(SOURCES)],
        extra_compile_args=["-Wall", "-Wextra", "-Werror", "-O1"],
    )
    folder = tmp_path_factory.mktemp("tables")
    built = builder.compile(tmpdir=str(folder))
    spec = importlib.util.spec_from_file_location("device_tables", built)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), steps=st.integers(1, 3000), kept=st.floats(0, 1))
def test_no_request_is_lost_however_long_it_waits(tables: Any, seed: int, steps: int, kept: float) -> None:
    """Requests come with rising numbers, as the kernel counts; some stay for ever, the others go in any order."""
    chance = random.Random(seed)
    table = tables.ffi.new("struct requests *")
    model: dict[int, int] = {}
    first = chance.choice([2, 1 << 40, (1 << 64) - 2 * steps])
    going: list[int] = []

    def removed(unique: int) -> tuple[int, int, int]:
        request = tables.lib.requests_remove(table, unique)
        return request.unique, request.opcode, request.clone

    for unique in range(first, first + 2 * steps, 2):
        model[unique] = chance.randrange(1, 60)
        assert tables.lib.requests_add(table, (unique, model[unique], unique % 7)) == 0
        if chance.random() >= kept:
            going.append(unique)
        while going and chance.random() < 0.5:
            gone = going.pop(chance.randrange(len(going)))
            assert removed(gone) == (gone, model.pop(gone), gone % 7)
            assert removed(gone) == (0, 0, 0)
        assert table.used == len(model)
    for unique, opcode in model.items():
        assert removed(unique) == (unique, opcode, unique % 7)
    assert table.used == 0 and table.size & (table.size - 1) == 0
    tables.lib.requests_clear(table)


def test_an_empty_table_knows_nothing(tables: Any) -> None:
    assert tables.lib.requests_remove(tables.ffi.new("struct requests *"), 2).unique == 0


@settings(max_examples=60)
@given(
    moves=st.lists(st.one_of(st.tuples(st.just(0), st.integers(1, 700)), st.tuples(st.just(1), st.integers(0, 2000))))
)
def test_what_is_collected_comes_out_once_and_in_order(tables: Any, moves: list[tuple[int, int]]) -> None:
    listed, out = tables.ffi.new("struct collected *"), tables.ffi.new("uint64_t[2000]")
    model: list[int] = []
    number = 0
    for take, count in moves:
        if take:
            taken = tables.lib.collected_take(listed, out, count)
            assert tables.ffi.unpack(out, taken) == model[:count]
            del model[:count]
        else:
            values = list(range(number, number + count))
            number += count
            assert tables.lib.collected_add(listed, values, count) == 0
            model += values
        assert listed.count == len(model)
    tables.lib.collected_clear(listed)


def test_memory_of_a_large_backlog_is_given_back(tables: Any) -> None:
    listed, out = tables.ffi.new("struct collected *"), tables.ffi.new("uint64_t[1000]")
    for number in range(200):
        tables.lib.collected_add(listed, [number] * 1000, 1000)
    assert listed.room >= 200_000
    while tables.lib.collected_take(listed, out, 1000):
        pass
    assert listed.room == 0
