"""Guests for the tests: one boot serves many of them, and its serial log is shown with whatever fails."""

from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.vm.machine import Machine
from tests.vm.places import KERNELS
from tests.vm.preparing import payload, prepare

LINES = 60
"""So much of the serial log's end is shown."""

_MACHINE = pytest.StashKey[Machine]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    machines = {value for value in getattr(item, "funcargs", {}).values() if isinstance(value, Machine)}
    for machine in machines if report.failed else ():
        console = "\n".join(machine.console().splitlines()[-LINES:])
        report.sections.append((f"serial log of the guest ({machine.kernel})", console))
        report.sections.append(("programs of the host that make it", machine.logs()))
    return report


@pytest.fixture(scope="session")
def prepared() -> None:
    """What guests are booted from.  The first time it takes some minutes."""
    prepare(KERNELS)


@pytest.fixture(scope="session")
def disk(prepared: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The second disk of the guests, which none of them changes."""
    return payload(tmp_path_factory.mktemp("disk"), {})


@pytest.fixture(scope="session", params=["trixie"])
def guest(request: pytest.FixtureRequest, disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A guest that runs, with one of the kernels, and virtiofs beside vsock."""
    shared = tmp_path_factory.mktemp("shared")
    with Machine(request.param, tmp_path_factory.mktemp("vm"), disk, virtiofs=shared) as machine:
        yield machine


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """The directory of the host that is served, where no other user of the host can come: the server warns else."""
    folder = tmp_path / "volume"
    folder.mkdir()
    return folder


@pytest.fixture
def unmounted(guest: Machine) -> Iterator[Callable[[str], None]]:
    """Takes a mount point of the guest whose mount is ended with the test, whatever happens."""
    points: list[str] = []
    yield points.append
    for point in reversed(points):
        guest.begin(f"! mountpoint -q {point} || umount -l {point}").result(timeout=400)
