"""A request that was running when its process died: run again, answered, or EIO, as what is there proves."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fusepipe import log
from fusepipe.server.dispatcher import dispatcher
from fusepipe.server.handlers import HANDLERS
from fusepipe.server.settling import AGAIN, MOST_DEATHS, in_slot, settling
from fusepipe.server.tables import create_memfd
from fusepipe.wire import Op, SlotState, decode_reply
from fusepipe.wire import messages as m
from fusepipe.wire.messages import ROWS
from fusepipe.wire.server_session import Arrived
from tests.server.volume import ROOT, SLOTS, Volume

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="opening by file handle needs CAP_DAC_READ_SEARCH"),
    pytest.mark.usefixtures("lines"),
]

SLOT, SEQ = 3, 5
WHO = (0, 0, 0, ())


class Session:
    """Processes that serve one directory, one after another, with one request that is never answered."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.memfd = create_memfd(SLOTS)
        self.now = Volume(path, memfd=self.memfd)

    def arrived(self, op: Op, *fields: Any, payload: bytes = b"") -> Arrived:
        return Arrived(SLOT, SEQ, op, ROWS[op].request(*fields), memoryview(payload), 0, 0)

    def die(self, event: Arrived, *, when: str, between: Callable[[], object] = lambda: None) -> None:
        """The process dies: with the request not begun ("early"), or done and not answered ("late")."""
        tables = self.now.tables
        tables.slots.run(SLOT, SEQ, event.op)
        if when == "late":
            in_slot(tables, dispatcher(tables, HANDLERS, log.get_logger("server")))(event)
        between()
        self.now.close()
        self.now = Volume(self.path, memfd=self.memfd)
        assert self.now.tables.slots.load(SLOT) == (SEQ, SlotState.BROKEN, event.op)

    def settle(self, event: Arrived) -> tuple[int, Any]:
        """The request comes again: its errno and its reply."""
        tables, logger = self.now.tables, log.get_logger("server")
        tables.slots.run(SLOT, SEQ, event.op)
        dispatch = dispatcher(tables, HANDLERS, logger)
        header, _payload = in_slot(tables, settling(tables, dispatch, logger))(event)
        slot, seq, code, reply = decode_reply(event.op, bytes(header))
        assert (slot, seq) == (SLOT, SEQ)
        return code, reply

    def close(self) -> None:
        self.now.close()
        os.close(self.memfd)


@pytest.fixture
def session(directory: Path) -> Iterator[Session]:
    made = Session(directory)
    yield made
    made.close()


@pytest.mark.parametrize("when", ["early", "late"])
@pytest.mark.parametrize("op", [Op.UNLINK, Op.RMDIR])
def test_removing(session: Session, op: Op, when: str) -> None:
    (session.path / "x").touch() if op is Op.UNLINK else (session.path / "x").mkdir()
    event = session.arrived(op, ROOT, b"x")
    session.die(event, when=when)
    assert os.path.lexists(session.path / "x") == (when == "early")
    assert session.settle(event)[0] == 0
    assert not os.path.lexists(session.path / "x")


@pytest.mark.parametrize("op", [Op.UNLINK, Op.RMDIR])
def test_removing_what_somebody_has_made_again(session: Session, op: Op, lines: Any) -> None:
    """It may be another one's: it stays."""
    make = (session.path / "x").touch if op is Op.UNLINK else (session.path / "x").mkdir
    make()
    event = session.arrived(op, ROOT, b"x")
    session.die(event, when="late", between=make)
    assert session.settle(event)[0] == errno.EIO
    assert os.path.lexists(session.path / "x")
    assert "what became of a request is not known" in lines()


@pytest.mark.parametrize("when", ["early", "late"])
@pytest.mark.parametrize("over", [False, True])
@pytest.mark.parametrize("flags", [0, 2], ids=["plain", "exchange"])
def test_renaming(session: Session, when: str, over: bool, flags: int) -> None:
    path = session.path
    (path / "a").write_text("a")
    if over:
        (path / "b").write_text("b")
    event = session.arrived(Op.RENAME, ROOT, b"a", ROOT, b"b", flags)
    session.die(event, when=when)
    code = session.settle(event)[0]
    if flags and not over:
        assert code == (errno.ENOENT if when == "early" else code)
        assert (path / "a").read_text() == "a"
        return
    assert code == 0
    assert (path / "b").read_text() == "a"
    assert (path / "a").read_text() == "b" if flags else not (path / "a").exists()


def test_renaming_one_inode_to_its_other_name_does_nothing(session: Session) -> None:
    (session.path / "a").touch()
    os.link(session.path / "a", session.path / "b")
    event = session.arrived(Op.RENAME, ROOT, b"a", ROOT, b"b", 0)
    session.die(event, when="late")
    assert session.settle(event)[0] == 0
    assert sorted(os.listdir(session.path)) == ["a", "b"]


def test_renaming_where_somebody_has_taken_the_old_name(session: Session, lines: Any) -> None:
    (session.path / "a").write_text("a")
    event = session.arrived(Op.RENAME, ROOT, b"a", ROOT, b"b", 0)
    session.die(event, when="late", between=(session.path / "a").touch)
    assert session.settle(event)[0] == errno.EIO
    assert (session.path / "b").read_text() == "a"
    assert "what became of a request" in lines()


@pytest.mark.parametrize("when", ["early", "late"])
def test_a_lookup_is_never_too_few(session: Session, when: str) -> None:
    (session.path / "x").touch()
    event = session.arrived(Op.LOOKUP, ROOT, b"x")
    session.die(event, when=when)
    code, reply = session.settle(event)
    assert code == 0
    session.now.forget(reply.entry.node)
    assert session.now.count("overforgotten") == 0


@pytest.mark.parametrize("when", ["early", "late"])
def test_an_open_leaves_one_handle(session: Session, when: str) -> None:
    (session.path / "x").touch()
    node = session.now.lookup(b"x").node
    event = session.arrived(Op.OPEN, node, os.O_RDWR, False, 0, 0)
    session.die(event, when=when)
    code, reply = session.settle(event)
    assert code == 0
    assert session.now.count("handles") == 1
    session.now.release(reply.handle)


@pytest.mark.parametrize("when", ["early", "late"])
def test_a_batch_of_the_end_goes_on(session: Session, when: str, lines: Any) -> None:
    """Handles are released, and no count is given back twice."""
    entries = [session.now.create(name) for name in (b"x", b"y")]
    for name in (b"x", b"y"):
        session.now.lookup(name)
    forgets = tuple(number for entry, _ in entries for number in (entry.node, 1))
    event = session.arrived(Op.CLEANUP, forgets, tuple(handle for _, handle in entries), ())
    session.die(event, when=when)
    assert session.settle(event)[0] == 0
    assert session.now.count("handles") == 0
    assert session.now.count("lookups") == 1 + 2
    assert session.now.count("overforgotten") == 0
    assert "gave back" not in lines()


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_RDWR | os.O_APPEND])
def test_writing(session: Session, flags: int, lines: Any) -> None:
    """At an offset it is written again; what was appended may be there, and stays once."""
    _entry, handle = session.now.create(b"x", flags=flags)
    event = session.arrived(Op.WRITE, handle, 0, 0, payload=b"text")
    session.die(event, when="late")
    assert session.settle(event)[0] == (errno.EIO if flags & os.O_APPEND else 0)
    assert (session.path / "x").read_bytes() == b"text"
    assert ("what became of a request" in lines()) == bool(flags & os.O_APPEND)


@pytest.mark.parametrize("when", ["early", "late"])
def test_making(session: Session, when: str, lines: Any) -> None:
    """What has the name now may be somebody else's."""
    event = session.arrived(Op.MKDIR, ROOT, b"x", 0o755, *WHO)
    session.die(event, when=when)
    assert session.settle(event)[0] == errno.EIO
    assert (session.path / "x").exists() == (when == "late")
    assert "what became of a request" in lines()


@pytest.mark.parametrize("op", [Op.LOOKUP, Op.READLINK])
def test_a_request_that_processes_die_of(session: Session, op: Op, lines: Any) -> None:
    os.symlink("target", session.path / "x")
    node = session.now.lookup(b"x").node
    event = session.arrived(op, ROOT, b"x") if op is Op.LOOKUP else session.arrived(op, node)
    for _ in range(MOST_DEATHS):
        session.die(event, when="early")
    assert session.settle(event)[0] == (errno.EINTR if op is Op.LOOKUP else errno.EIO)
    assert "a request is given up" in lines()


def test_the_next_request_of_the_slot_begins_anew(session: Session) -> None:
    """What one has noted is not another one's."""
    (session.path / "x").touch()
    event = session.arrived(Op.UNLINK, ROOT, b"x")
    for _ in range(MOST_DEATHS - 1):
        session.die(event, when="late")
    assert session.settle(event)[0] == 0
    tables = session.now.tables
    tables.slots.run(SLOT, SEQ + 1, Op.UNLINK)
    tables.tree.slot_enter(SLOT)
    assert tables.tree.slot_deaths() == 0
    assert tables.tree.removal_is_done(ROOT, b"x") is False, "nothing was noted"
    tables.tree.slot_leave()


def test_every_operation_is_decided(session: Session) -> None:
    """Those that are neither run again nor checked are EIO: a list that somebody has to look at who adds one."""
    eio = set(HANDLERS) - AGAIN
    assert eio == {
        *(Op.MKNOD, Op.MKDIR, Op.SYMLINK, Op.LINK, Op.CREATE, Op.TMPFILE, Op.SETATTR, Op.SETXATTR, Op.REMOVEXATTR),
        *(Op.FALLOCATE, Op.COPY_FILE_RANGE, Op.IOCTL),
        *(Op.OPEN, Op.WRITE, Op.UNLINK, Op.RMDIR, Op.RENAME),  # it depends
    }
    assert m.OpenRequest is ROWS[Op.OPEN].request
