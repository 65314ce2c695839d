"""Options, as text and as values."""

import pytest

from fusepipe.client import Cache, MountOptions
from fusepipe.client.kernel import mount_options, wishes
from fusepipe.device import InitFlag
from fusepipe.wire import KEEP_ALWAYS


@pytest.mark.parametrize(("text", "seconds"), [("none", 0), ("ttl:1", 1), ("ttl:0.25", 0.25), ("ttl:86400", 86400)])
def test_cache_modes(text: str, seconds: float) -> None:
    cache = Cache.parse(text)
    assert (cache.seconds, cache.keep, cache.write_back) == (seconds, seconds * 1000, False)
    assert str(cache) == text


def test_the_exclusive_cache_keeps_for_good() -> None:
    cache = Cache.parse("exclusive")
    assert cache.seconds >= 86400
    assert cache.keep == KEEP_ALWAYS
    assert str(cache) == "exclusive"


def test_a_long_time_is_not_for_good() -> None:
    assert Cache.parse("ttl:99999999").keep < KEEP_ALWAYS


def test_write_back_is_asked_for_where_nobody_else_writes() -> None:
    for mode, asked in (("none", False), ("ttl:1", False), ("exclusive", True)):
        wish = wishes(MountOptions("/mnt", cache=Cache.parse(mode)), 4096)
        assert (InitFlag.WRITEBACK_CACHE in wish.wanted) is asked
        assert (InitFlag.WRITEBACK_CACHE in wish.refused) is not asked


@pytest.mark.parametrize("text", ["", "ttl", "ttl:", "ttl:0", "ttl:-1", "ttl:nan", "ttl:inf", "auto", "NONE", "ttl:1 "])
def test_unknown_cache_modes(text: str) -> None:
    with pytest.raises(ValueError, match="unknown cache mode"):
        Cache.parse(text)


@pytest.mark.parametrize("readers", [0, 257, -1])
def test_readers_have_bounds(readers: int) -> None:
    with pytest.raises(ValueError, match="1 to 256"):
        MountOptions("/mnt", readers=readers)


def test_options_for_libfuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    plain = {"fsname=fusepipe", "subtype=fusepipe", "default_permissions"}
    assert mount_options(MountOptions("/mnt")) == plain | {"allow_other"}
    assert mount_options(MountOptions("/mnt", allow_other=False)) == plain
    asked = MountOptions("/mnt", allow_other=False, suid=True, dev=True, read_only=True, fsname="a,b\\é")
    assert mount_options(asked) == {"fsname=a\\,b\\\\?", "subtype=fusepipe", "default_permissions", "suid", "dev", "ro"}
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert mount_options(MountOptions("/mnt")) == plain
    assert mount_options(MountOptions("/mnt", allow_other=True)) == plain | {"allow_other"}


@pytest.mark.parametrize(("readers", "background"), [(1, 12), (64, 64), (256, 256)])
def test_requests_that_no_program_waits_for_can_use_every_slot(readers: int, background: int) -> None:
    asked = wishes(MountOptions("/mnt", readers=readers), 4096)
    assert asked.max_background == background
    assert asked.congestion_threshold < background
    assert asked.max_write == 4096
