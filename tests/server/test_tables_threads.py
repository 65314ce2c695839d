"""Many threads at once: afterwards every count is right."""

import errno
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from fusepipe.wire import Op, read_page
from tests.server.volume import ROOT, Volume

SECONDS = 3.0
EXPECTED = {errno.ENOENT, errno.EEXIST, errno.ESTALE}


def together(functions: list[Callable[[], None]]) -> None:
    """Runs functions in threads and raises the first error."""
    errors: list[BaseException] = []

    def run(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def test_lookups_of_one_name_at_once_count_each(volume: Volume) -> None:
    (volume.path / "f").touch()
    counted: list[Counter[int]] = []

    def look() -> None:
        mine: Counter[int] = Counter()
        for _ in range(300):
            mine[volume.lookup(b"f").node] += 1
        counted.append(mine)

    together([look] * 8)
    total: Counter[int] = sum(counted, Counter())
    assert list(total.values()) == [2400]
    assert volume.count("lookups") == 2401
    volume.forget(*total.most_common(1)[0])
    assert volume.is_empty()


@pytest.mark.parametrize("budget", [48, 1000])
def test_everything_at_once(open_path: Path, serve: Callable[..., Volume], budget: int) -> None:
    volume = serve(open_path, budget=budget)
    names = [b"n%d" % number for number in range(60)]
    end = time.monotonic() + SECONDS
    tree = volume.tables.tree
    lock = threading.Lock()
    counted: Counter[int] = Counter()

    def note(node: int) -> None:
        with lock:
            counted[node] += 1

    def quietly(function: Callable[[], None]) -> None:
        try:
            function()
        except OSError as error:
            if error.errno not in EXPECTED:
                raise

    def worker(seed: int) -> Callable[[], None]:
        rng = random.Random(seed)

        def look() -> None:
            note(volume.lookup(rng.choice(names)).node)

        def create() -> None:
            entry, handle = volume.create(rng.choice(names))
            note(entry.node)
            volume.write(handle, b"x")
            volume.release(handle)

        def unlink() -> None:
            volume(Op.UNLINK, ROOT, rng.choice(names))

        def rename() -> None:
            volume(Op.RENAME, ROOT, rng.choice(names), ROOT, rng.choice(names), 0)

        def forget() -> None:
            with lock:
                node = rng.choice(list(counted)) if counted else 0
                count = counted.pop(node, 0)
            if count:
                volume.forget(node, count)

        def use() -> None:
            with lock:
                node = rng.choice(list(counted)) if counted else ROOT
            handle = volume.open(node, os.O_RDWR)
            try:
                volume(Op.GETATTR, node, handle)
                volume.read(handle)
            finally:
                volume.release(handle)

        def link() -> None:
            with lock:
                node = rng.choice(list(counted)) if counted else ROOT
            try:
                linked = volume(Op.LINK, node, ROOT, rng.choice(names)).entry
            except PermissionError:
                return  # the root
            note(linked.node)

        def listing() -> None:
            handle, _ = tree.opendir(ROOT, 0)
            try:
                page, _ = tree.readdir(handle, 0, 1 << 14)
                for entry in read_page(page):
                    if entry.node:
                        note(entry.node)
            finally:
                volume.release(handle)

        def run() -> None:
            while time.monotonic() < end:
                action = rng.choice([look, look, look, create, unlink, rename, forget, forget, use, link, listing])
                try:
                    quietly(action)
                except IsADirectoryError:
                    assert action is use  # the root

        return run

    together([worker(seed) for seed in range(8)])
    for node, count in counted.items():
        volume.forget(node, count)
    assert volume.is_empty()
    assert volume.count("overforgotten") == 0
    assert volume.count("pinned") == 0


def test_evictions_under_load_never_take_what_is_in_use(open_path: Path, serve: Callable[..., Volume]) -> None:
    volume = serve(open_path, budget=24)
    files = {}
    for number in range(200):
        (open_path / str(number)).write_bytes(b"%d" % number)
        files[volume.lookup(b"%d" % number).node] = b"%d" % number
    nodes = list(files)

    def read(seed: int) -> Callable[[], None]:
        rng = random.Random(seed)

        def run() -> None:
            for _ in range(400):
                node = rng.choice(nodes)
                handle = volume.open(node, os.O_RDONLY)
                assert volume.read(handle) == files[node]
                assert volume(Op.GETATTR, node, 0).attr.size == len(files[node])
                volume.release(handle)

        return run

    together([read(seed) for seed in range(6)])
    assert volume.count("fds") <= 24
    for node in nodes:
        volume.forget(node)
    assert volume.is_empty()
