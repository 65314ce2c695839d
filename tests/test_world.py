"""What watches over the tests sees what it should, and takes it away."""

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.support import world
from tests.support.program import DIRTY


@pytest.fixture
def before(tmp_path: Path) -> world.Before:
    (tmp_path / "temporary").mkdir()
    return world.Before(tmp_path, tmp_path / "temporary")


def gone(before: world.Before, tmp_path: Path) -> bool:
    world.clean_up(before.leaks(grace=0), tmp_path / "temporary")
    return not before.leaks(grace=1)


def test_nothing(before: world.Before) -> None:
    assert not before.leaks(grace=0)


def test_a_descriptor(before: world.Before, tmp_path: Path) -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    assert str(before.leaks(grace=0)) == f"file descriptor {fd} -> /dev/null"
    assert gone(before, tmp_path)


def test_an_orphan(before: world.Before, tmp_path: Path) -> None:
    subprocess.run(["sh", "-c", "setsid sleep 987 & exit 0"], check=True)
    assert world.wait_until(lambda: str(before.leaks(grace=0)).endswith(": sleep 987"))
    assert gone(before, tmp_path)


def test_a_process_that_ends_in_time(before: world.Before) -> None:
    process = subprocess.Popen(["sleep", "0.2"])
    assert not before.leaks()
    process.wait()


def test_a_temporary_file(before: world.Before, tmp_path: Path) -> None:
    (tmp_path / "temporary" / "left").mkdir()
    assert str(before.leaks(grace=0)) == "temporary file left"
    assert gone(before, tmp_path)


def test_temporary_files_go_to_the_run_s_own_folder(pytestconfig: pytest.Config) -> None:
    with tempfile.NamedTemporaryFile() as made:
        assert Path(made.name).parent == Path(os.environ["TMPDIR"])


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_mount(before: world.Before, tmp_path: Path) -> None:
    point = tmp_path / "a mount"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(point)], check=True)
    (point / "file").touch()
    assert str(before.leaks(grace=0)).startswith(f"mount at {point} (tmpfs, ")
    assert gone(before, tmp_path)
    assert list(point.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_removing_never_reaches_through_a_mount(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "removed" / "mount").mkdir(parents=True)
    subprocess.run(["mount", "--bind", str(tmp_path / "kept"), str(tmp_path / "removed" / "mount")], check=True)
    world.remove(tmp_path / "removed")
    assert not (tmp_path / "removed").exists()
    assert (tmp_path / "kept" / "file").exists()


@pytest.mark.parametrize(
    ("line", "dirty"),
    [
        (b"2026-01-01T00:00:00.000Z warning client: the link is slow", True),
        (b"2026-01-01T00:00:00.000Z error   client: the link is lost", True),
        (b'{"time": "2026-01-01T00:00:00.000Z", "level": "error", "component": "client"}', True),
        (b"Traceback (most recent call last):", True),
        (b"Fatal Python error: Segmentation fault", True),
        (b"2026-01-01T00:00:00.000Z info    client: no error", False),
        (b"2026-01-01T00:00:00.000Z trace   wire: read error=0", False),
        (b"fusepipe: cannot mount: a reason; a remedy", False),
    ],
)
def test_which_lines_of_a_log_are_dirty(line: bytes, dirty: bool) -> None:
    assert bool(DIRTY.search(line)) == dirty
