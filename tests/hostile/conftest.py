"""A server with two guests: one that is hostile, and one that must not notice."""

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from fusepipe.server import ServerOptions, SessionProcess
from fusepipe.wire import ErrorCode
from fusepipe.wire import messages as m
from tests.conftest import ROOT as RUN_ROOT
from tests.hostile.rogue import Rogue
from tests.server.processes import connected, session

SECRET = b"what the host keeps to itself"
ME = (os.geteuid(), os.getegid(), b"")
MODES = pytest.mark.parametrize("native", [False, True], ids=["python", "native"])


class Place:
    """A volume, and beside it what no guest may reach."""

    def __init__(self, path: Path) -> None:
        self.volume = path / "volume"
        self.outside = path / "outside"
        self.volume.mkdir()
        self.outside.mkdir()
        (self.outside / "secret").write_bytes(SECRET)

    def clear(self) -> None:
        """Empty the volume."""
        for entry in list(self.volume.iterdir()):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def untouched(self) -> bool:
        """Nothing outside of the volume was changed or added."""
        return os.listdir(self.outside) == ["secret"] and (self.outside / "secret").read_bytes() == SECRET


class Guests:
    """A session process, with one connection that stays, and those who break the rules on others.

    Connections of one session share its slots: what is refused leaves a slot as it was, what runs takes a `fresh` one.
    """

    UNUSED = 63

    def __init__(self, process: SessionProcess, stack: ExitStack) -> None:
        self.process = process
        self._stack = stack
        self._fresh = 0
        self.first = self.connect()
        assert self.first.hello()[2] == 0

    def connect(self) -> Rogue:
        """A connection on which nothing was said."""
        ours, theirs = socket.socketpair()
        self.process.give(theirs)
        return self._stack.enter_context(Rogue(ours))

    def attached(self) -> Rogue:
        """A further connection of the session."""
        rogue = self.connect()
        rogue.values(None, 1, 2, self.first.session, self.first.secret, [])
        assert rogue.reply()[2] == 0
        return rogue

    def fresh(self) -> int:
        """A slot that nobody has used."""
        self._fresh += 1
        return self._fresh

    def breaks(self, act: Callable[[Rogue, int], object]) -> tuple[ErrorCode, str]:
        """What the server says to somebody who does this on a connection of his own, with a slot that is not used."""
        with self.attached() as rogue:
            act(rogue, self.UNUSED)
            said = rogue.refused()
        assert self.first.call(m.Op.GETATTR, 1, 0)[0] == 0, "the session goes on"
        return said


@contextmanager
def hostile(path: Path, options: ServerOptions) -> Iterator[Guests]:
    """A session in which the test's guest is alone."""
    with session(path, options) as process, ExitStack() as stack:
        yield Guests(process, stack)


@pytest.fixture(scope="module")
def place(pytestconfig: pytest.Config) -> Iterator[Place]:
    path = Path(tempfile.mkdtemp(dir=pytestconfig.stash[RUN_ROOT] / "open"))
    path.chmod(0o755)
    yield Place(path)
    shutil.rmtree(path)


@pytest.fixture(scope="module", params=[False, True], ids=["python", "native"])
def guests(request: pytest.FixtureRequest, place: Place) -> Iterator[Guests]:
    """One session for the tests of a file: frequent requests in Python, or in C."""
    with hostile(place.volume, ServerOptions(native=request.param, drain=2.0)) as guests:
        yield guests


@pytest.fixture
def rogue(guests: Guests, place: Place) -> Iterator[Rogue]:
    """The connection that stays, over an empty volume."""
    place.clear()
    yield guests.first
    assert place.untouched()


@pytest.fixture(scope="module")
def bystander(place: Place) -> Iterator[Callable[[], None]]:
    """A session of somebody else on another volume: calling it works there a little, as always."""
    volume = place.volume.parent / "bystander"
    volume.mkdir()
    (volume / "file").write_bytes(b"fine")
    with session(volume) as process, connected(process) as client:
        node = client.call(m.LookupRequest(1, b"file"))[1].entry.node

        def works() -> None:
            code, opened, _ = client.call(m.OpenRequest(node, os.O_RDONLY, False, 0, 0))
            assert code == 0
            assert client.call(m.ReadRequest(opened.handle, 0, 100))[2] == b"fine"
            assert client.call(m.CleanupRequest((), (opened.handle,), ()))[0] == 0

        yield works
