"""Options, users and directories of the POSIX suite.

    pytest tests/pjdfstest                              on the host, and on mounts of fusepipe
    pytest tests/pjdfstest --posix-target DIR           on any directory, of any filesystem
    pytest tests/pjdfstest --posix-target bind          on a `fusepipe bind` that is made for the run
    pytest tests/pjdfstest --posix-target serve@xfs     on a `fusepipe mount` of a `fusepipe serve` of a new xfs

docs/posix.md has more.  Every run works in a new directory of its own below the target, so several may share one.  It
needs root, since it acts as several users.
"""

import itertools
import os
import shlex
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from .harness import checks, times, users
from .harness.caller import Caller
from .harness.filesystems import Unavailable
from .harness.jobs import Jobs
from .harness.process import Patience, Pool
from .harness.scene import AsUser, Make, Scene
from .harness.smallfs import SmallFilesystem, small_filesystem
from .harness.targets import CannotStart, Target, Wanted, default_command, open_target

EVERYWHERE = ("host", "bind", "bind,native=off", "serve,cache=none")
"""Where all of it runs when nobody names a target."""
ELSEWHERE = ("bind@tmpfs", "bind@xfs,native=off", "bind@btrfs")
"""Where the modules BY_FILESYSTEM run as well."""
SHARING = ("bind,locks=shared", "serve,locks=shared,native=off")
"""Where test_locks runs as well."""
BY_FILESYSTEM = frozenset(
    {
        "test_acl",
        "test_chown",
        "test_copy_file_range",
        "test_direct",
        "test_fallocate",
        "test_handles",
        "test_holes",
        "test_limits",
        "test_link",
        "test_renameat2",
        "test_set_id",
        "test_statx",
        "test_tmpfile",
        "test_truncate",
        "test_xattr",
    }
)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("posix", "the POSIX suite")
    group.addoption(
        "--posix-target",
        metavar="DIR|WAY[@FILESYSTEM][,OPTION...]",
        action="append",
        default=[],
        help="where it runs: a directory; or host, bind or serve, with a volume on tmpfs, ext4, xfs or btrfs if named,"
        " and mounted with -o OPTION; may be repeated (default: "
        f"{' '.join(EVERYWHERE)}, and what depends on the filesystem on {' '.join(ELSEWHERE)})",
    )
    group.addoption(
        "--posix-source",
        metavar="DIR",
        help="where volumes are made; with a directory as target: the directory that it shows, seen without it",
    )
    group.addoption(
        "--posix-mount-option",
        metavar="NAME[=VALUE]",
        action="append",
        default=[],
        help="given to fusepipe bind or mount with -o; may be repeated",
    )
    group.addoption(
        "--posix-jobs",
        metavar="N",
        type=int,
        default=1,
        help="run the cases in N processes at once; for a directory as target, else each makes a mount of its own",
    )
    group.addoption(
        "--posix-every",
        metavar="N",
        type=int,
        default=1,
        help="run every Nth case only: a part of everything, where all of it takes too long",
    )
    group.addoption(
        "--posix-patience",
        metavar="SECONDS",
        type=float,
        default=Patience.seconds,
        help="how long a call may take before it counts as hanging (default: %(default)s)",
    )
    group.addoption("--posix-command", metavar="COMMAND", help="the fusepipe command (default: this Python's module)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "locks(kind): not for mounts of fusepipe with other than these --locks")
    Patience.seconds = config.getoption("posix_patience", Patience.seconds)
    if (jobs := config.getoption("posix_jobs", 1)) > 1:
        config.pluginmanager.register(Jobs(jobs))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test that uses the target, and all do, runs once on each."""
    if "posix_target" not in metafunc.fixturenames:
        return
    names = metafunc.config.getoption("posix_target", None)
    if not names:
        module = metafunc.module.__name__.rpartition(".")[2]
        names = [*EVERYWHERE, *(ELSEWHERE if module in BY_FILESYSTEM else SHARING if module == "test_locks" else ())]
    try:
        wanted = [Wanted.parse(name) for name in names]
    except ValueError as reason:
        raise pytest.UsageError(f"--posix-target: {reason}") from None
    metafunc.parametrize("posix_target", wanted, ids=names, indirect=True, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Takes out what does not apply (locks that the host sees need --locks shared, deadlocks are found without), and
    what --posix-every leaves out."""
    chosen = [item for item in items if _has_such_locks(item)]
    if (every := config.getoption("posix_every", 1)) > 1:
        here = [item for item in chosen if item.path.is_relative_to(_HERE)]
        wanted = set(here[::every])
        chosen = [item for item in chosen if item in wanted or not item.path.is_relative_to(_HERE)]
    if len(chosen) < len(items):
        kept = set(chosen)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = chosen


def _has_such_locks(item: pytest.Item) -> bool:
    marker = item.get_closest_marker("locks")
    if marker is None or not isinstance(item, pytest.Function):
        return True
    wanted = item.callspec.params["posix_target"]
    assert isinstance(wanted, Wanted)
    if wanted.way not in ("bind", "serve"):
        return True
    return bool(marker.args[0] == ("shared" if "locks=shared" in wanted.options else "local"))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Sums what the cases counted, also those that ran in other processes."""
    if report.when == "teardown":
        found = dict(report.user_properties)
        if "assertions" in found:
            _totals[str(found["target"])] += int(str(found["assertions"]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for target, total in _totals.items():
        terminalreporter.write_line(f"POSIX suite on {target}: {total:,} assertions")


_HERE = Path(__file__).parent
_totals: Counter[str] = Counter()
_serial = itertools.count()


@pytest.fixture(autouse=True)
def _world_as_before() -> None:
    """In place of the check after every test in the directory above, which thousands of short cases cannot afford.

    A case's processes and files end with its scene; the check at the end of the run holds for all of it.
    """


@pytest.fixture(scope="session")
def posix_target(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> Iterator[Target]:
    if os.geteuid() != 0:
        pytest.skip("needs root: it acts as several users")
    command = pytestconfig.getoption("posix_command", None)
    with ExitStack() as stack:
        try:
            opened = stack.enter_context(
                open_target(
                    request.param,
                    pytestconfig.getoption("posix_source", None),
                    shlex.split(command) if command else default_command(),
                    pytestconfig.getoption("posix_mount_option", []),
                )
            )
        except (CannotStart, Unavailable) as reason:
            pytest.fail(str(reason), pytrace=False)
        yield opened


@pytest.fixture(autouse=True)
def _counted(request: pytest.FixtureRequest, posix_target: Target) -> Iterator[None]:
    """Notes with each case how many assertions it made."""
    before = checks.total()
    yield
    name = request.node.callspec.params["posix_target"].name
    request.node.user_properties.append(("target", f"{name} ({posix_target.filesystem})"))
    request.node.user_properties.append(("assertions", checks.total() - before))


@pytest.fixture(scope="session")
def pool(posix_target: Target) -> Iterator[Pool]:
    """Helper processes that see the directory of this run through the target."""
    base = tempfile.mkdtemp(prefix="posix-", dir=posix_target.path)
    os.chmod(base, 0o755)
    opened = Pool(base)
    try:
        scene = Scene(opened, "measure")
        try:
            times.measure(scene.root)
        finally:
            scene.close()
        yield opened
    finally:
        opened.close()
        os.rmdir(base)


@pytest.fixture(scope="session")
def pool_behind(posix_target: Target, pool: Pool) -> Iterator[Pool]:
    """Helper processes that see the same directory without what is under test."""
    if posix_target.behind is None:
        pytest.skip("the directory behind the target is not known (--posix-source)")
    opened = Pool(os.path.join(posix_target.behind, os.path.relpath(pool.base, posix_target.path)))
    yield opened
    opened.close()


@pytest.fixture
def scene(pool: Pool) -> Iterator[Scene]:
    """A directory of this case's own, in which all callers work."""
    opened = Scene(pool, f"case-{next(_serial)}")
    try:
        yield opened
    finally:
        opened.close()


@pytest.fixture
def make(scene: Scene) -> Make:
    """Prepares a file of any type: `make("fifo", "name", owner=OTHER, mode=0o600)`."""
    return scene.make


@pytest.fixture
def as_user(scene: Scene) -> AsUser:
    """The caller with a given identity."""
    return scene.caller


@pytest.fixture
def root(scene: Scene) -> Caller:
    return scene.root


@pytest.fixture
def owner(scene: Scene) -> Caller:
    return scene.caller(users.OWNER)


@pytest.fixture
def other(scene: Scene) -> Caller:
    return scene.caller(users.OTHER)


@pytest.fixture
def behind(scene: Scene, pool_behind: Pool) -> Iterator[Caller]:
    """Root, in the directory of the case, but not through what is under test."""
    process = pool_behind.get(users.ROOT)
    caller = Caller(process)
    caller.batch([("enter", (scene.name,))])
    yield caller
    if process.busy:
        process.close()  # the pool starts another
    elif process.alive:
        process.call("leave")


@pytest.fixture
def aged(posix_target: Target) -> Callable[[], None]:
    """Waits until whatever the target remembers by default about names and attributes has expired."""

    def wait() -> None:
        if not posix_target.plain:
            time.sleep(1.1)

    return wait


@pytest.fixture(scope="module")
def small_tmpfs(posix_target: Target) -> Iterator[SmallFilesystem]:
    """A tmpfs of 2 MiB, seen as the target sees things."""
    yield from _small(posix_target, "tmpfs", 2048)


@pytest.fixture(scope="module")
def small_ext4(posix_target: Target) -> Iterator[SmallFilesystem]:
    """An ext4 of 32 MiB in a file, seen as the target sees things."""
    yield from _small(posix_target, "ext4", 32768)


def _small(posix_target: Target, kind: str, kib: int) -> Iterator[SmallFilesystem]:
    try:
        opened = small_filesystem(posix_target, kind, kib)
        with opened as filesystem:
            yield filesystem
    except Unavailable as reason:
        pytest.skip(str(reason))
