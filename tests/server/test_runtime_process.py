"""A session in a process of its own, over a socket pair and without a mount: every operation, and every end."""

import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from fusepipe.server import ServerOptions, Volume, VolumeError, start_session
from fusepipe.syscalls import facts
from fusepipe.wire import ROWS, Message, Op, op_of, read_page
from fusepipe.wire import messages as m
from tests.server.processes import connected, ended, leased, session, until
from tests.server.sessions import PATIENCE, Client
from tests.support import world

ME = (os.geteuid(), os.getegid(), ())


@pytest.fixture(params=[True, False], ids=["native", "python"])
def native(request: pytest.FixtureRequest) -> bool:
    """How the session answers its requests."""
    return bool(request.param)


# ---- every operation ----


class Recorded:
    """Calls that must succeed, and which operations they were."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.ops: set[Op] = set()

    def __call__(self, request: Message, payload: bytes = b"") -> Any:
        self.ops.add(op_of(request))
        code, reply, data = self.client.call(request, payload)
        assert code == 0, (request, os.strerror(code))
        return data if ROWS[op_of(request)].payload == "reply" and op_of(request) != Op.OPEN else reply


def test_every_operation_does_to_the_directory_what_it_says(tmp_path: Path, native: bool) -> None:
    with session(tmp_path, native=native) as process, connected(process) as client:
        call = Recorded(client)
        (tmp_path / "there").write_bytes(b"0123456789")

        there = call(m.LookupRequest(1, b"there")).entry
        assert there.attr.ino == (tmp_path / "there").stat().st_ino
        assert call(m.GetattrRequest(there.node, 0)).attr == there.attr
        handle = call(m.OpenRequest(there.node, os.O_RDWR, False, 0, 0)).handle
        assert call(m.ReadRequest(handle, 3, 4)) == b"3456"
        assert call(m.WriteRequest(handle, 8, 0), b"xyz").size == 3
        assert (tmp_path / "there").read_bytes() == b"01234567xyz"
        assert call(m.SetattrRequest(there.node, handle, 8, 0, 0, 0, 5, 0, 0, 0, 0)).attr.size == 5
        assert call(m.FlushRequest(handle, 0)) == m.FlushReply()
        assert call(m.FsyncRequest(handle, True)) == m.FsyncReply()
        assert call(m.SetlkRequest(there.node, handle, 7, 1, 0, 9, 123)) == m.SetlkReply()
        assert call(m.SetlkwRequest(there.node, handle, 7, 0, 5, 9, 123)) == m.SetlkwReply()
        assert call(m.GetlkRequest(there.node, handle, 8, 1, 5, 9)) == m.GetlkReply(0, 5, 9, 123)
        assert call(m.FlockRequest(handle, 1)) == m.FlockReply()
        assert call(m.FlockwRequest(handle, 2)) == m.FlockwReply()
        assert (
            call(m.ReleaseRequest(call(m.OpenRequest(there.node, os.O_RDONLY, False, 0, 0)).handle)) == m.ReleaseReply()
        )
        assert call(m.FallocateRequest(handle, 0, 0, 5, False)) == m.FallocateReply()
        assert call(m.LseekRequest(handle, 0, os.SEEK_HOLE)).offset == 5
        assert call(m.CopyFileRangeRequest(handle, 0, handle, 5, 5, False)).length == 5
        assert call(m.StatxRequest(there.node, 0, 0, 0x7FF)).attr.size == 10
        nameless = call(m.TmpfileRequest(1, os.O_RDWR, 0o600, 0, *ME))
        assert len(call(m.IoctlRequest(handle, 0x80086601, b"", 0, 0)).data) == 4
        assert call(m.AccessRequest(there.node, os.R_OK, *ME)) == m.AccessReply()
        assert call(m.StatfsRequest(1)).namemax == os.statvfs(tmp_path).f_namemax

        made = call(m.CreateRequest(1, b"made", os.O_RDWR, 0o640, 0, *ME, False))
        assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o640
        folder = call(m.MkdirRequest(1, b"folder", 0o750, 0, *ME)).entry
        assert (tmp_path / "folder").is_dir()
        fifo = call(m.MknodRequest(1, b"fifo", stat.S_IFIFO | 0o600, 0, 0, *ME)).entry
        assert (tmp_path / "fifo").is_fifo()
        link = call(m.SymlinkRequest(1, b"link", b"to/where", *ME)).entry
        assert call(m.ReadlinkRequest(link.node)).target == b"to/where"
        assert call(m.LinkRequest(there.node, folder.node, b"twin")).entry.attr.nlink == 2
        assert call(m.RenameRequest(1, b"made", folder.node, b"moved", 0)) == m.RenameReply()
        assert (tmp_path / "folder" / "moved").exists()

        assert call(m.SetxattrRequest(there.node, b"user.x", b"value", 0)) == m.SetxattrReply()
        assert call(m.GetxattrRequest(there.node, b"user.x")).value == b"value"
        assert b"user.x" in call(m.ListxattrRequest(there.node)).names
        assert call(m.RemovexattrRequest(there.node, b"user.x")) == m.RemovexattrReply()

        directory = call(m.OpendirRequest(1, 0)).handle
        names = {entry.name for entry in read_page(call(m.ReaddirRequest(directory, 0, 1 << 16)))}
        assert names == {b".", b"..", b"there", b"folder", b"fifo", b"link"}
        assert call(m.FsyncdirRequest(directory, False)) == m.FsyncdirReply()

        assert call(m.UnlinkRequest(1, b"fifo")) == m.UnlinkReply()
        assert call(m.UnlinkRequest(folder.node, b"twin")) == m.UnlinkReply()
        assert call(m.UnlinkRequest(folder.node, b"moved")) == m.UnlinkReply()
        assert call(m.RmdirRequest(1, b"folder")) == m.RmdirReply()
        assert sorted(os.listdir(tmp_path)) == ["link", "there"]
        forgets = (
            fifo.node,
            2,
            folder.node,
            2,
            made.entry.node,
            1,
            nameless.entry.node,
            1,
        )  # READDIR has counted one as well
        assert (
            call(m.CleanupRequest(forgets, (handle, made.handle, nameless.handle, directory), ())) == m.CleanupReply()
        )
        assert client.call(m.GetattrRequest(fifo.node, 0))[0] == errno.ESTALE

        assert call.ops == {op for op, row in ROWS.items() if row.channel != "control"}
        client.bye()
        assert ended(process) == 0


def test_a_read_only_volume_is_one(tmp_path: Path, native: bool) -> None:
    with session(tmp_path, read_only=True, native=native) as process, connected(process) as client:
        assert client.reply is not None and client.reply.read_only
        assert client.call(m.MkdirRequest(1, b"x", 0o755, 0, *ME))[0] == errno.EROFS
        assert os.listdir(tmp_path) == []


def test_every_slot_at_once_on_several_connections(tmp_path: Path, native: bool) -> None:
    with session(tmp_path, native=native) as process, connected(process) as client:
        connected(process, first=client)
        connected(process, first=client)
        for turn in range(4):
            tickets = []
            for number in range(64):
                name = f"{turn}-{number}".encode()
                create = m.CreateRequest(1, name, os.O_RDWR, 0o644, 0, *ME, False)
                tickets.append(client.send(create, via=number % 3))
            handles = [client.wait(ticket).reply.handle for ticket in tickets]  # type: ignore[union-attr]  # CreateReply
            tickets = [
                client.send(m.WriteRequest(handle, 0, 0), str(handle).encode() * 1000, via=handle % 3)
                for handle in handles
            ]
            assert all(client.wait(ticket).errno == 0 for ticket in tickets)
            for handle in handles:
                data = str(handle).encode() * 1000
                assert client.call(m.ReadRequest(handle, 0, len(data)), via=handle % 3) == (0, m.ReadReply(), data)
            assert client.call(m.CleanupRequest((), tuple(handles), ()))[0] == 0
        assert len(os.listdir(tmp_path)) == 256


def test_a_signal_asks_what_the_session_holds(tmp_path: Path, native: bool, lines: Callable[[], str]) -> None:
    """Each time, also where it comes while the process is about to wait again."""
    said = ""
    with session(tmp_path, native=native) as process, connected(process) as client:
        client.call(m.MkdirRequest(1, b"x", 0o755, 0, *ME))
        for asked in range(1, 101):
            os.kill(process.pid, signal.SIGUSR2)
            end = time.monotonic() + PATIENCE
            while said.count("statistics") < asked:
                assert time.monotonic() < end, said
                said += lines()
    assert {"inodes=2", "handles=0"} <= set(said.split())


# ---- the slow ----


def test_an_open_that_waits_for_a_lease_delays_nobody(tmp_path: Path, native: bool) -> None:
    with session(tmp_path, native=native) as process, connected(process) as client:
        with leased(tmp_path / "leased"):
            node = client.call(m.LookupRequest(1, b"leased"))[1].entry.node
            slow = [client.send(m.OpenRequest(node, os.O_RDWR, False, 0, 0)) for _ in range(20)]
            for number in range(100):
                name = str(number).encode()
                assert client.call(m.MkdirRequest(1, name, 0o755, 0, *ME))[0] == 0
            client.ping()
            assert not client.replies
        assert [client.wait(ticket).errno for ticket in slow] == [0] * 20


def test_an_interrupt_ends_the_wait_for_a_lease(tmp_path: Path, native: bool) -> None:
    with session(tmp_path, native=native) as process, connected(process) as client, leased(tmp_path / "leased"):
        node = client.call(m.LookupRequest(1, b"leased"))[1].entry.node
        slow = client.send(m.OpenRequest(node, os.O_RDWR, False, 0, 0))
        client.ping()
        client.interrupt(slow)
        assert client.wait(slow).errno == errno.EINTR


# ---- the end ----


def test_the_end_of_the_last_connection_ends_the_process(tmp_path: Path, native: bool) -> None:
    with session(tmp_path, native=native) as process, connected(process) as client:
        connected(process, first=client)
        client.connections.pop()[0].close()
        assert client.call(m.GetattrRequest(1, 0))[0] == 0
        client.close()
        assert ended(process) == 0


def test_a_client_that_dies_in_the_middle_of_a_frame(tmp_path: Path, native: bool) -> None:
    with session(tmp_path, native=native) as process, connected(process) as client:
        ticket_bytes = client.connections[0][1].ping()
        client.connections[0][0].sendall(b"".join(ticket_bytes)[:7])
        client.close()
        assert ended(process) == 0


def test_a_client_that_is_gone_leaves_nothing_waiting(tmp_path: Path, native: bool) -> None:
    with session(tmp_path, native=native) as process, leased(tmp_path / "leased"):
        with connected(process) as client:
            node = client.call(m.LookupRequest(1, b"leased"))[1].entry.node
            client.send(m.OpenRequest(node, os.O_RDWR, False, 0, 0))
            client.ping()
        begin = time.monotonic()
        assert ended(process) == 0
        assert time.monotonic() - begin < ServerOptions().drain / 2


def test_sigterm_lets_running_calls_end(tmp_path: Path, native: bool) -> None:
    with session(tmp_path, native=native) as process, connected(process) as client:
        with leased(tmp_path / "leased"):
            node = client.call(m.LookupRequest(1, b"leased"))[1].entry.node
            slow = client.send(m.OpenRequest(node, os.O_RDWR, False, 0, 0))
            client.ping()
            process.terminate()
        assert client.wait(slow).errno == 0
        assert ended(process) == 0


def test_sigterm_interrupts_what_does_not_end(tmp_path: Path, native: bool) -> None:
    options = ServerOptions(drain=0.4)
    with (
        session(tmp_path, options, native=native) as process,
        connected(process) as client,
        leased(tmp_path / "leased"),
    ):
        node = client.call(m.LookupRequest(1, b"leased"))[1].entry.node
        slow = client.send(m.OpenRequest(node, os.O_RDWR, False, 0, 0))
        client.ping()
        process.terminate()
        assert client.wait(slow).errno == errno.EINTR
        assert ended(process) == 0


def test_a_terminals_interrupt_does_not_reach_it(tmp_path: Path, native: bool) -> None:
    with session(tmp_path, native=native) as process, connected(process) as client:
        assert os.getsid(process.pid) == process.pid
        os.kill(process.pid, signal.SIGINT)
        assert client.call(m.GetattrRequest(1, 0))[0] == 0


def test_a_killed_process_closes_its_connections_at_once(tmp_path: Path, native: bool) -> None:
    with session(tmp_path, native=native) as process, connected(process) as client, leased(tmp_path / "leased"):
        node = client.call(m.LookupRequest(1, b"leased"))[1].entry.node
        client.send(m.OpenRequest(node, os.O_RDWR, False, 0, 0))
        client.ping()
        os.kill(process.pid, signal.SIGKILL)
        client.pump(lambda: client.lost)
        assert ended(process) == -signal.SIGKILL
        ours, theirs = socket.socketpair()
        with ours, pytest.raises(BrokenPipeError):
            process.give(theirs)
        assert theirs.fileno() == -1


def test_aclose_ends_a_process_that_waits_for_its_first_connection(tmp_path: Path) -> None:
    async def main() -> int | None:
        async with start_session(Volume("v", str(tmp_path))) as process:
            pass
        return process.status

    assert trio.run(main) in (0, -signal.SIGTERM)


def test_aclose_kills_a_process_that_hangs(tmp_path: Path, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusepipe.server.launching.KILL_PATIENCE", 0.2)
    with session(tmp_path, ServerOptions(drain=0.1), native=native) as process, connected(process):
        os.kill(process.pid, signal.SIGSTOP)
        trio.run(process.aclose)
        assert process.status == -signal.SIGKILL
        trio.run(process.aclose)


# ---- what it has and what it needs ----


def test_the_process_holds_nothing_that_it_does_not_need(tmp_path: Path, native: bool) -> None:
    with session(tmp_path, native=native) as process, connected(process):
        held = sorted(os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{process.pid}/fd"))
        kinds = [target.partition(":")[0].partition(" ")[0] for target in held]
        assert kinds.count("/dev/null") == 2
        by_broker = "dac_read_search" in facts().capabilities
        assert kinds.count("socket") == 2 + by_broker  # the control socket, the connection, and that to its broker
        assert kinds.count("anon_inode") <= 1  # of the tables
        log_file = os.readlink(f"/proc/{process.pid}/fd/2")
        assert len({target for target in held if target.startswith("pipe:")} - {log_file}) == 1  # what wakes it
        others = {target for target in held if target not in ("/dev/null", str(tmp_path), log_file)}
        # In a sandbox the volume is "/", and so is its /proc/self/fd, which is mounted nowhere.
        assert {target.partition(":")[0] for target in others} <= {
            "socket",
            "anon_inode",
            "pipe",
            "/memfd",
            f"/proc/{process.pid}/fd",
            "/",
        }
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert "Umask:\t0000" in status
        assert os.readlink(f"/proc/{process.pid}/cwd") == "/"


def test_a_launcher_that_dies_leaves_the_session_as_it_is(tmp_path: Path) -> None:
    before = world.processes()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        program = (
            "import socket, sys; sys.path[:0] = sys.argv[3:]\n"
            "from fusepipe.server import Volume, start_session\n"
            "process = start_session(Volume('v', sys.argv[1]))\n"
            "process.give(socket.socket(fileno=int(sys.argv[2])))\n"
            "import os; os._exit(0)\n"
        )
        command = [sys.executable, "-c", program, str(tmp_path), str(theirs.fileno()), *sys.path]
        subprocess.run(command, check=True, pass_fds=[theirs.fileno()], timeout=PATIENCE)
        theirs.close()
        with Client(ours) as client:
            assert client.call(m.GetattrRequest(1, 0))[0] == 0
    until(lambda: not any("session_process" in process.command for process in world.processes() - before))


def test_a_launcher_that_dies_before_it_gave_a_connection(tmp_path: Path) -> None:
    process = start_session(Volume("v", str(tmp_path)))
    process._control.close()
    assert ended(process) == 0
    process.release()


def test_there_is_nothing_to_serve(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="no directory"):
        start_session(Volume("v", f"{tmp_path}/none"))
