"""Fixtures of the mount tests: mounts by the real executable, shared ones for quick checks and own ones for the rest.

FUSEPIPE_MOUNT_TARGETS chooses the targets (default `bind,serve,bind-off`; `uncached` is `bind --cache none`).  `plain`
and `bindfs` run the checks on a directory itself and on a passthrough in C: what fails there is wrong with the check.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mount import children, mounttable
from tests.mount.blocking import LEASE, BlockFS, release_all
from tests.mount.harness import TARGETS, HarnessError, Mount, Watchdog
from tests.support import world

SELECTED = os.environ.get("FUSEPIPE_MOUNT_TARGETS", "bind,serve,bind-off").split(",")
assert set(SELECTED) <= set(TARGETS), f"FUSEPIPE_MOUNT_TARGETS: choose from {', '.join(TARGETS)}"
WATCHDOG = 90.0  # seconds; below the time-out of pytest, which cannot end a thread that waits in the kernel


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "once: runs on the first target only, since what it checks is the same on all")
    config.addinivalue_line("markers", "each_way: like once, and once more without native code")
    config.addinivalue_line("markers", "only_on(target): has no meaning on the others")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    missing = "" if Path("/dev/fuse").exists() else "/dev/fuse is missing"
    if os.geteuid() != 0:
        missing = "needs root: it mounts, and acts as several users"
    left_out = []
    for item in items:
        if missing and here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=missing))
        target = (
            item.callspec.params.get("target")
            if isinstance(item, pytest.Function) and hasattr(item, "callspec")
            else None
        )
        if target is not None and not _concerns(item, str(target)):
            left_out.append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _concerns(item: pytest.Item, target: str) -> bool:
    """Whether a test says anything about that target.  `real` are tests of fusepipe's own behaviour."""
    if item.get_closest_marker("once") and target != SELECTED[0]:
        return False
    if item.get_closest_marker("each_way") and target.removesuffix("-off") != SELECTED[0].removesuffix("-off"):
        return False
    if target in ("plain", "bindfs") and "real" in getattr(item, "fixturenames", ()):
        return False
    only = item.get_closest_marker("only_on")
    return only is None or target.removesuffix("-off") in only.args


@pytest.fixture(scope="session", params=SELECTED)
def target(request: pytest.FixtureRequest) -> str:
    """The kind of mount: bind, serve (and to validate the checks: plain, bindfs)."""
    return str(request.param)


@pytest.fixture
def real(target: str) -> str:
    """The kind of the target, for tests of fusepipe's own behaviour: not generated where only checks are validated."""
    return target.removesuffix("-off")


def _scratch(prefix: str, parent: str | None = None) -> Path:
    path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    path.chmod(0o755)
    return path


def _remove(path: Path) -> None:
    left = world.mounts_below(path)
    world.remove(path)
    assert not left, f"still mounted at the end: {left}"


@pytest.fixture
def scratch() -> Iterator[Path]:
    """An empty directory on the host, removed afterwards; mode 0755 so that other users get there."""
    path = _scratch("fusepipe-host-")
    yield path
    _remove(path)


@pytest.fixture
def tmpfs(scratch: Path) -> Iterator[Path]:
    """An empty tmpfs of 64 MiB."""
    path = scratch / "tmpfs"
    path.mkdir()
    mounttable.mount("tmpfs", path, "tmpfs", 0, "size=64m,mode=755")
    yield path
    mounttable.umount(path, mounttable.MNT_DETACH)


def loop_filesystem(scratch: Path, kind: str, mebibytes: int) -> Path:
    """A new filesystem of this kind on a loop device, mounted below `scratch`; skips where that cannot be."""
    image, path = scratch / f"{kind}.img", scratch / kind
    with image.open("wb") as file:
        file.truncate(mebibytes << 20)
    path.mkdir()
    try:
        subprocess.run([f"mkfs.{kind}", "-q", image], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", image, path], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no {kind} on a loop device here: {error}")
    return path


@pytest.fixture
def ext4(scratch: Path) -> Iterator[Path]:
    """An empty ext4 that nobody else uses: it gives the number of a deleted file to the next new one at once."""
    path = loop_filesystem(scratch, "ext4", 32)
    (path / "lost+found").rmdir()
    yield path
    mounttable.umount(path)


@pytest.fixture(params=["off", "auto"])
def native(request: pytest.FixtureRequest) -> str:
    """How both sides answer requests."""
    return str(request.param)


MountFactory = Callable[..., Mount]
BlockMaker = Callable[..., BlockFS]


@pytest.fixture
def mounts(target: str, scratch: Path) -> Iterator[MountFactory]:
    """Makes mounts of this test's own: mounts(*options, source=..., ...) as harness.Mount.  All end with the test."""
    made: list[Mount] = []
    guards: list[Watchdog] = []

    def make(*options: str | Path, source: Path | None = None, start: bool = True, **more: object) -> Mount:
        if source is None:
            source = scratch / f"source{len(made)}"
            source.mkdir(exist_ok=True)
        mount = Mount(target, source, options=options, **more)  # type: ignore[arg-type]  # checked by the tests' use
        made.append(mount)
        guards.append(Watchdog(mount, WATCHDOG))
        guards[-1].__enter__()
        return mount.start() if start else mount

    yield make
    release_all()
    children.end_all()
    problems = []
    for mount, guard in zip(reversed(made), reversed(guards), strict=True):
        log = mount.log()
        try:
            mount.stop()
        except HarnessError as error:
            problems.append(f"{error}\n{log}")
        guard.__exit__()
    assert not problems, "\n".join(problems)


@dataclass(frozen=True)
class Place:
    """A fresh directory of a shared mount: `mnt` through the target, `src` the same on the host, `twin` one outside."""

    mount: Mount
    src: Path
    mnt: Path
    twin: Path


class Shared:
    """The mount that the quick tests of one target share."""

    def __init__(self, target: str) -> None:
        self.source = _scratch("fusepipe-shared-")
        self.mount = Mount(target, self.source).start()

    def revive(self) -> None:
        """Start it again if a test broke it."""
        if not self.mount.healthy():
            self.mount.discard()
            self.mount = Mount(self.mount.target, self.source).start()

    def stop(self) -> None:
        try:
            self.mount.stop()
        finally:
            _remove(self.source)


SHARED = pytest.StashKey[dict[str, Shared]]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture of the test, or what is started here would count as left behind by it."""
    for shared in item.config.stash.get(SHARED, {}).values():
        shared.revive()


@pytest.fixture(scope="session")
def _shared(target: str, pytestconfig: pytest.Config) -> Iterator[Shared]:
    shared = Shared(target)
    running = pytestconfig.stash.setdefault(SHARED, {})
    running[target] = shared
    yield shared
    del running[target]
    shared.stop()


@pytest.fixture
def place(_shared: Shared) -> Iterator[Place]:
    """A fresh directory below a mount that the tests of this target share."""
    mount = _shared.mount
    before = len(mount.dirt())
    src = _scratch("t-", str(mount.source))
    twin = _scratch("fusepipe-twin-")
    with Watchdog(mount, WATCHDOG):
        yield Place(mount, src, mount.path / src.name, twin)
        children.end_all()
    dirt = mount.dirt()[before:]
    for path in (src, twin):
        _remove(path)
    assert mount.healthy(), f"the mount did not survive this test\n{mount.log()}"
    assert not dirt, "\n".join(dirt)


@pytest.fixture
def volume(scratch: Path) -> Path:
    """A volume with some ordinary files and room for other filesystems."""
    path = scratch / "volume"
    path.mkdir()
    (path / "block").mkdir()
    for i in range(20):
        (path / f"file{i}").write_text(f"contents {i}")
    return path


@pytest.fixture
def block(volume: Path) -> Iterator[BlockMaker]:
    """block(*options) mounts a BlockFS inside the volume."""
    made: list[BlockFS] = []

    def make(*options: str) -> BlockFS:
        made.append(BlockFS(volume / "block", *options))
        return made[-1]

    yield make
    for filesystem in made:
        filesystem.close()


@pytest.fixture
def leases(volume: Path) -> Iterator[subprocess.Popen[str]]:
    """A host program holds write leases on the files 0 to 2 of the volume: opening them waits until it hears "go"."""
    holder = children.spawn(LEASE, *(volume / f"file{i}" for i in range(3)))
    assert children.read_line(holder) == "ready"
    yield holder
    children.kill(holder)
