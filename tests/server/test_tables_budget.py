"""The budget of descriptors, and inode numbers that are used again."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fusepipe.wire import Op
from tests.server.volume import ROOT, Volume, fails, needs_root


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def tree(path: Path, directories: int, files: int) -> None:
    for d in range(directories):
        (path / f"d{d}").mkdir()
        for f in range(files):
            os.close(os.open(path / f"d{d}" / f"f{f}", os.O_CREAT | os.O_WRONLY))


@needs_root
@pytest.mark.parametrize(("place", "files"), [("memory", 100), ("open_path", 12)])
def test_many_files_with_64_descriptors(
    request: pytest.FixtureRequest, serve: Callable[..., Volume], place: str, files: int
) -> None:
    directory: Path = request.getfixturevalue(place)
    tree(directory, 50, files)
    volume = serve(directory, budget=64)
    before = descriptors()
    nodes: dict[int, int] = {}
    for d in range(50):
        parent = volume.lookup(b"d%d" % d)
        nodes[parent.node] = parent.attr.ino
        for f in range(files):
            entry = volume.lookup(b"f%d" % f, parent.node)
            nodes[entry.node] = entry.attr.ino
    assert len(nodes) == 50 * (files + 1)
    assert volume.count("inodes") == len(nodes) + 1
    assert volume.count("fds") <= 64
    assert descriptors() - before <= 64
    assert volume.count("evictions") >= len(nodes) - 128
    for node, ino in nodes.items():
        assert volume(Op.GETATTR, node, 0).attr.ino == ino
    assert volume.count("fds") <= 64
    assert volume.count("reopened") >= len(nodes) - 128
    volume(Op.CLEANUP, tuple(number for node in nodes for number in (node, 1)), (), ())
    assert volume.is_empty()


@needs_root
def test_directories_go_last(open_path: Path, serve: Callable[..., Volume]) -> None:
    tree(open_path, 10, 30)
    volume = serve(open_path, budget=32)
    parents = [volume.lookup(b"d%d" % d).node for d in range(10)]
    for _ in range(2):
        for f in range(30):
            for parent in parents:
                volume.lookup(b"f%d" % f, parent)
    assert volume.count("evictions") > 500
    before = volume.count("reopened")
    for parent in parents:
        volume(Op.GETATTR, parent, 0)
    assert volume.count("reopened") == before


@needs_root
def test_an_inode_that_the_host_unlinked_is_not_given_up(open_path: Path, serve: Callable[..., Volume]) -> None:
    volume = serve(open_path, budget=16)
    (open_path / "victim").write_bytes(b"data")
    node = volume.lookup(b"victim").node
    (open_path / "victim").unlink()
    for number in range(50):
        (open_path / str(number)).touch()
        volume.lookup(b"%d" % number)
    assert volume.count("evictions") > 30
    assert volume.read(volume.open(node, os.O_RDONLY)) == b"data"
    assert volume.count("pinned") == 1


@needs_root
def test_pins_have_a_limit(open_path: Path, serve: Callable[..., Volume]) -> None:
    """Where nothing else is left to give up, the oldest inode without a name is."""
    volume = serve(open_path, budget=16)
    nodes = []
    for number in range(40):
        name = b"%d" % number
        entry, handle = volume.create(name)
        volume.release(handle)
        volume(Op.UNLINK, ROOT, name)
        nodes.append(entry.node)
    assert volume.count("fds") <= 16
    assert volume.count("pins_given_up") >= 20
    volume(Op.GETATTR, nodes[-1], 0)
    with fails(errno.ESTALE):
        volume(Op.GETATTR, nodes[0], 0)
    for node in nodes:
        volume.forget(node)
    assert volume.is_empty()


@needs_root
def test_without_the_right_to_open_handles_the_budget_is_the_limit(
    open_path: Path, as_user: Callable[[Callable[[], None]], None]
) -> None:
    tree(open_path, 1, 40)

    def check() -> None:
        with Volume(open_path, budget=16, privileged=False) as volume:
            parent = volume.lookup(b"d0").node
            nodes = []
            with fails(errno.ENFILE):
                for f in range(40):
                    nodes.append(volume.lookup(b"f%d" % f, parent).node)
            assert len(nodes) == 14
            page = volume.page(volume(Op.OPENDIR, nodes_parent(volume, parent, nodes), 0).handle, 0, 1 << 16)
            assert len(page) == 42, "no name is left out"
            assert volume.count("evictions") == 0

    def nodes_parent(volume: Volume, parent: int, nodes: list[int]) -> int:
        volume.forget(nodes.pop())  # room for the handle
        return parent

    as_user(check)


def test_a_number_that_is_used_again_is_another_node(open_path: Path, serve: Callable[..., Volume]) -> None:
    """ext4 gives a deleted file's number to the next new file; a late forget of the old one must not hit the new."""
    volume = serve(open_path)
    seen: dict[int, int] = {}
    reused = 0
    for number in range(100):
        name = b"%d" % number
        entry, handle = volume.create(name)
        volume.write(handle, name)
        volume.release(handle)
        assert entry.node not in seen
        reused += entry.attr.ino in seen.values()
        volume(Op.UNLINK, ROOT, name)
        seen[entry.node] = entry.attr.ino
        if number % 3:
            volume.forget(entry.node)
            del seen[entry.node]
    entry, handle = volume.create(b"last")
    volume(Op.CLEANUP, tuple(number for node in seen for number in (node, 1)), (), ())
    assert volume(Op.GETATTR, entry.node, handle).attr.nlink == 1
    with fails(errno.ESTALE):
        volume(Op.GETATTR, next(iter(seen)), 0)


@needs_root
def test_numbers_are_used_again_while_only_the_handle_is_held(open_path: Path, serve: Callable[..., Volume]) -> None:
    volume = serve(open_path)
    old = []
    numbers = set()
    for number in range(20):
        path = open_path / "f"
        path.write_bytes(b"%d" % number)
        numbers.add(path.stat().st_ino)
        handle = volume(Op.OPENDIR, ROOT, 0).handle
        listed = {entry.name: entry.node for entry in volume.page(handle)}
        volume.release(handle)
        old.append(listed[b"f"])
        path.unlink()  # on the host: the server does not see it
    assert len(set(old)) == 20
    for node in old[:-1]:
        with fails(errno.ESTALE):
            volume.open(node, os.O_RDONLY)
    if len(numbers) == 20:
        pytest.skip("this filesystem does not use numbers again at once")


def test_forgetting_too_much_is_clamped_and_logged(volume: Volume, capfd: pytest.CaptureFixture[str]) -> None:
    (volume.path / "f").touch()
    node = volume.lookup(b"f").node
    volume.lookup(b"f")
    volume.forget(node, 3)
    assert volume.is_empty()
    volume(Op.CLEANUP, (node, 1, 999, 1), (12345,), ())
    assert volume.count("overforgotten") == 3
    log = capfd.readouterr().err
    assert log.count("error") == 2
    assert str(node) in log
    assert "12345" in log
