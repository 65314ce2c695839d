"""What programs do, and how many requests of which kind reach the server for it."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest

from tests.mount import children
from tests.mount.conftest import MountFactory
from tests.mount.harness import Mount
from tests.mount.requests import TRACED, requests_of

pytestmark = pytest.mark.once

OLD = 0.05  # seconds after which a timestamp is no longer "just now"
UNCOUNTED = ("cleanup", "getattr")  # sent for others, and asked again when what is known is too old


@pytest.fixture
def traced(mounts: MountFactory, real: str) -> Callable[..., Mount]:
    """A mount that notes its requests.  Names and attributes stay known for as long as a test takes."""

    def make(cache: str = "ttl:600") -> Mount:
        return mounts("--cache", cache, *TRACED)

    return make


def count(mount: Mount, work: Callable[[], object]) -> Counter[str]:
    """The requests that `work` leads to, without those that come for other reasons."""
    found = requests_of(mount, work)
    for name in UNCOUNTED:
        del found[name]
    return found


def test_a_warm_read_is_one_open(traced: Callable[..., Mount]) -> None:
    """No LOOKUP, no READ of kept pages, no FLUSH, no ACCESS."""
    mount = traced()
    (mount.source / "f").write_bytes(b"x" * 10_000)
    time.sleep(OLD)
    path = mount.path / "f"
    assert count(mount, path.read_bytes) == {"lookup": 1, "open": 1, "read": 1}
    for _ in range(5):
        assert count(mount, path.read_bytes) == {"open": 1}
    (mount.source / "f").write_bytes(b"y" * 10_000)
    assert path.read_bytes() == b"y" * 10_000


def test_pages_are_not_kept_longer_than_the_ttl(traced: Callable[..., Mount]) -> None:
    mount = traced("ttl:0.2")
    (mount.source / "f").write_bytes(b"x")
    time.sleep(OLD)
    for _ in range(3):
        assert count(mount, (mount.path / "f").read_bytes)["read"] == 1
        time.sleep(0.25)


def test_none_keeps_nothing(traced: Callable[..., Mount]) -> None:
    mount = traced("none")
    (mount.source / "f").write_bytes(b"x" * 10)
    time.sleep(OLD)
    for _ in range(3):
        found = count(mount, (mount.path / "f").read_bytes)
        assert (found["lookup"], found["open"]) == (1, 1)
        assert found["read"] >= 1
        assert found["flush"] == 0


def test_access_is_answered_by_the_kernel(traced: Callable[..., Mount]) -> None:
    mount = traced()
    (mount.source / "f").touch()
    path = mount.path / "f"
    path.stat()
    for mode in (os.F_OK, os.R_OK, os.W_OK, os.X_OK):
        assert count(mount, partial(os.access, path, mode)) == {}


def test_a_name_that_is_not_there_is_asked_for_once(traced: Callable[..., Mount]) -> None:
    mount = traced()
    path = mount.path / "absent"
    assert count(mount, path.exists) == {"lookup": 1}
    assert count(mount, lambda: [path.exists() for _ in range(10)]) == {}
    path.touch()
    assert path.exists()


def test_writes_ask_for_no_attribute_and_close_for_nothing(traced: Callable[..., Mount]) -> None:
    """The kernel asks for security.capability once for an inode, not before every write (HANDLE_KILLPRIV_V2); of a file
    that it has just created the client knows that there is none.
    """
    mount = traced()
    path = mount.path / "f"

    def write() -> None:
        with path.open("wb", buffering=0) as file:
            for _ in range(10):
                file.write(b"x" * 100)

    assert count(mount, write) == {"lookup": 1, "create": 1, "write": 10}
    again = count(mount, write)
    assert (again["open"], again["write"], again["flush"]) == (1, 10, 0)
    assert again["getxattr"] <= 1


def test_creating_brings_the_attributes(traced: Callable[..., Mount]) -> None:
    mount = traced()
    path = mount.path / "d"
    path.mkdir()
    (path / "f").touch()
    found = requests_of(mount, lambda: [(path / "f").stat() for _ in range(5)])
    assert found["lookup"] == 0
    assert found["getattr"] <= 1


def test_a_listing_brings_the_attributes(traced: Callable[..., Mount]) -> None:
    mount = traced()
    for i in range(50):
        (mount.source / f"f{i}").write_bytes(b"x" * i)
    found = requests_of(mount, lambda: [entry.stat().st_size for entry in os.scandir(mount.path)])
    assert found["lookup"] == 0
    assert found["getattr"] <= 1
    assert found["readdir"] <= 3


def test_large_requests_and_read_ahead(traced: Callable[..., Mount]) -> None:
    mount = traced()
    size = 16 << 20
    data = os.urandom(size)  # memory that was never touched would be sent page by page
    (mount.source / "f").write_bytes(data)
    found = count(mount, lambda: children.run("open(sys.argv[1], 'rb').read()", mount.path / "f"))
    assert found["read"] <= size // (1 << 20) + 8
    found = count(mount, lambda: (mount.path / "g").write_bytes(data))
    assert found["write"] <= size // (1 << 20) + 1


def test_release_and_forget_travel_in_batches(traced: Callable[..., Mount]) -> None:
    mount = traced()
    for i in range(300):
        (mount.source / f"f{i}").touch()

    def open_all() -> None:
        for fd in [os.open(mount.path / f"f{i}", os.O_RDONLY) for i in range(300)]:
            os.close(fd)

    assert requests_of(mount, open_all)["cleanup"] < 150
