"""The sandbox of session processes: what it stops, what it lets pass, and what is said where it cannot be had."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

import tests.server.breakout as breakout
from fusepipe import syscalls
from fusepipe.server import SandboxError, ServerError, ServerOptions, Volume, check_sandbox, launching, try_sandbox
from fusepipe.server import sandbox as sandboxes
from fusepipe.server.broker import Authority, Broker
from fusepipe.server.options import CANNOT_GO_ON
from fusepipe.server.sandbox import KEPT, Missing, Prepared, Report, enter
from fusepipe.server.seccomp import program
from fusepipe.syscalls import handle_of, part_children
from fusepipe.syscalls.process import CAPABILITIES
from fusepipe.wire import messages as m
from tests.server.processes import connected, ended, session
from tests.server.volume import needs_root

WALLS = ("processes", "mounts", "network", "handles", "capabilities", "privileges", "calls")
NAMESPACES = ("mnt", "pid", "net", "ipc")


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A directory with something beside it that nobody inside may see."""
    folder = tmp_path / "volume"
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "inside").write_text("inside")
    (tmp_path / "secret").write_text("secret")
    (folder / "absolute").symlink_to(tmp_path / "secret")
    (folder / "relative").symlink_to("../secret")
    return folder


def status(pid: int) -> dict[str, str]:
    """The lines of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def namespaces(pid: int | str) -> dict[str, str]:
    """Which ones a process is in."""
    return {name: os.readlink(f"/proc/{pid}/ns/{name}") for name in NAMESPACES}


def walls_of(pid: int) -> None:
    """Look at a confined process from outside."""
    own, its = namespaces("self"), namespaces(pid)
    assert not set(own.values()) & set(its.values())
    about = status(pid)
    assert about["NoNewPrivs"] == "1"
    assert about["Seccomp"] == "2"
    kept = sum(1 << number for number, name in CAPABILITIES.items() if name in KEPT)
    held = int(status(os.getpid())["CapEff"], 16)
    assert int(about["CapEff"], 16) == int(about["CapPrm"], 16) == kept & held
    assert int(about["CapInh"], 16) == int(about["CapAmb"], 16) == 0
    assert int(about["CapBnd"], 16) & ~kept == 0
    assert about["NSpid"].split()[-1] == "1"
    mounts = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    assert len(mounts) == 1, "the volume and nothing else"
    flags = set(mounts[0].split()[5].split(","))
    assert {"nosuid", "nodev"} <= flags


@dataclass(frozen=True)
class Tried:
    """What attempts to break out came to, by themselves and by the broker, and the process that tried and is there."""

    found: dict[str, str]
    asked: dict[str, str]
    pid: int


@pytest.fixture
def tried(volume: Path, request: pytest.FixtureRequest) -> Iterator[Tried]:
    """A process inside that tries to get out.  It has two files of the host open, as others have a log file."""
    broker = Broker(Authority())
    with tempfile.TemporaryFile(dir="/dev/shm") as outer, open(volume.parent / "log", "w") as log:
        paths = {"file": volume.parent / "secret", "directory": volume.parent}
        facts: dict[str, Any] = {name: handle(path) for name, path in paths.items()}
        passed = {"broker": broker.theirs.fileno(), "outer": outer.fileno(), "log": log.fileno()}
        about = json.dumps({"secret": str(volume.parent / "secret"), "pid": os.getpid()} | facts | passed)
        yield from try_out(volume, request, about, list(passed.values()), broker)


def handle(path: Path) -> str:
    fd = os.open(path, os.O_PATH)
    id, _mount = handle_of(fd)
    os.close(fd)
    return id.hex()


def try_out(
    volume: Path, request: pytest.FixtureRequest, about: str, fds: list[int], broker: Broker
) -> Iterator[Tried]:
    mode = getattr(request, "param", "rw")
    place = str(Path(breakout.__file__).parents[2])
    command = [sys.executable, "-P", breakout.__file__, str(volume), mode, about]
    started: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        part_children()
        started.append(
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": place},
                pass_fds=fds,
            )
        )

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    [process] = started
    broker.start(process.pid)
    broker.theirs.close()
    with process:
        assert process.stdout is not None
        answer: dict[str, Any] = json.loads(process.stdout.readline() or "{}")
        assert answer.get("missing") == []
        yield Tried(answer["found"], answer["asked"], process.pid)
    broker.close()
    assert process.returncode == 0


@needs_root
def test_every_attempt_to_break_out_fails(tried: Tried) -> None:
    allowed = {
        "write to the volume",
        "read the volume",
        "reach itself by /proc/self/fd",
        "open again by the broker",
        "open again by the broker what was not shown",
    }
    assert len(tried.found) > 50
    assert {name for name, outcome in tried.found.items() if outcome == "done"} == allowed
    walls_of(tried.pid)


@needs_root
def test_the_broker_helps_nobody_out(tried: Tried) -> None:
    assert len(tried.asked) > 20
    assert not {name: outcome for name, outcome in tried.asked.items() if not name.startswith(f"{outcome}: ")}


@needs_root
def test_what_stops_an_attempt_is_what_was_meant_to_stop_it(tried: Tried) -> None:
    found = tried.found
    made_up = {name: outcome for name, outcome in found.items() if name.endswith("by a made-up handle")}
    assert len(made_up) == 2
    assert set(made_up.values()) == {"EPERM"}
    ways = ("open a file", "follow", "reach ")
    nowhere = {name: found[name] for name in found if name.startswith(ways) and name not in made_up}
    assert set(nowhere.values()) <= {"ENOENT", "ENOTDIR", "done"}, nowhere
    assert found["climb from the root"] == found["climb from a directory"] == "EXDEV"
    assert found["open a character device"] == found["open the disk of the volume"] == "EACCES"
    assert found["start a process by clone3"] == "ENOSYS"
    others = {outcome for name, outcome in found.items() if name.startswith(("a ", "an ", "mount", "start a program"))}
    assert others == {"EPERM"}


@needs_root
@pytest.mark.parametrize("tried", ["ro"], indirect=True)
def test_a_read_only_volume_cannot_be_written_to_by_anything(tried: Tried) -> None:
    assert tried.found["write to the volume"] == "EROFS"
    assert tried.found["read the volume"] == "done"


@needs_root
def test_a_session_process_is_in_there(volume: Path) -> None:
    with session(volume, ServerOptions(sandbox="require")) as process, connected(process) as client:
        assert client.call(m.GetattrRequest(1, 0))[0] == 0
        assert process.sandbox == Report(WALLS)
        walls_of(process.pid)
        client.bye()
        assert ended(process) == 0


@needs_root
def test_what_is_mounted_below_the_volume_is_there(volume: Path, tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "none", volume / "a"], check=True)
    try:
        (volume / "a" / "deep").write_text("deep")
        with session(volume, ServerOptions(sandbox="require")) as process, connected(process) as client:
            node = client.call(m.LookupRequest(1, b"a"))[1].entry.node
            assert client.call(m.LookupRequest(node, b"deep"))[0] == 0
            assert len(Path(f"/proc/{process.pid}/mountinfo").read_text().splitlines()) == 2
            client.bye()
            assert ended(process) == 0
    finally:
        subprocess.run(["umount", volume / "a"], check=True)


@pytest.fixture
def own_filesystem(tmp_path: Path) -> Iterator[Path]:
    """A filesystem whose mounts are shared, as everywhere with systemd, with a volume in it."""
    place = tmp_path / "filesystem"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=700", "none", place], check=True)
    try:
        subprocess.run(["mount", "--make-shared", place], check=True)
        (place / "volume" / "a").mkdir(parents=True)
        yield place
    finally:
        subprocess.run(["umount", "--recursive", place], check=True)


def unmount(place: Path) -> bool:
    """Whether the kernel does it."""
    return subprocess.run(["umount", place], capture_output=True).returncode == 0


@needs_root
def test_a_filesystem_is_not_unmounted_while_a_session_uses_it(tmp_path: Path) -> None:
    place = tmp_path / "filesystem"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=700", "none", place], check=True)
    try:
        with session(place, ServerOptions(sandbox="require")) as process, connected(process) as client:
            assert client.call(m.GetattrRequest(1, 0))[0] == 0
            assert not unmount(place)
            client.bye()
            assert ended(process) == 0
    finally:
        assert unmount(place)


@needs_root
def test_what_is_mounted_below_the_volume_later(own_filesystem: Path) -> None:
    volume = own_filesystem / "volume"
    with session(volume, ServerOptions(sandbox="require")) as process, connected(process) as client:
        assert client.call(m.LookupRequest(1, b"a"))[0] == 0
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=700", "none", volume / "a"], check=True)
        (volume / "a" / "deep").write_text("deep")
        node = client.call(m.LookupRequest(1, b"a"))[1].entry.node
        assert client.call(m.LookupRequest(node, b"deep"))[0] == 0
        client.bye()
        assert ended(process) == 0


def test_the_default_depends_on_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert ServerOptions().sandbox == "require"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert ServerOptions().sandbox == "prefer"


def test_none_changes_nothing(volume: Path) -> None:
    with session(volume, ServerOptions(sandbox="none")) as process, connected(process) as client:
        assert client.call(m.GetattrRequest(1, 0))[0] == 0
        assert process.sandbox == Report()
        assert namespaces(process.pid) == namespaces("self")
        assert status(process.pid)["Seccomp"] == status(os.getpid())["Seccomp"]


def test_a_session_that_is_told_to_end_before_it_has_begun_ends(volume: Path) -> None:
    with session(volume, ServerOptions(sandbox="prefer")) as process:
        process.terminate()
        assert ended(process) == 0


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without libseccomp."""

    def missing(*, by_handle: bool = False) -> bytes:
        raise OSError(0, "libseccomp cannot be loaded")

    monkeypatch.setattr(launching, "program", missing)


@pytest.mark.usefixtures("no_library")
def test_what_is_required_and_missing_is_named_with_a_remedy(volume: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SandboxError, match=r".*; or give --sandbox prefer"):
        trio.run(try_sandbox, Volume("v", str(volume)), ServerOptions(sandbox="require"))
    with session(volume, ServerOptions(sandbox="require")) as process:
        assert ended(process) == CANNOT_GO_ON
        assert process.sandbox is not None
        assert process.sandbox.missing
    logged = capfd.readouterr().err
    assert "a session cannot have its sandbox" in logged
    assert "--sandbox prefer" in logged


@pytest.mark.usefixtures("no_library")
def test_what_is_preferred_and_missing_is_done_without(volume: Path) -> None:
    with session(volume, ServerOptions(sandbox="prefer")) as process, connected(process) as client:
        assert client.call(m.GetattrRequest(1, 0))[0] == 0
        assert process.sandbox is not None
        assert "calls" in {missing.wall for missing in process.sandbox.missing}
        assert "privileges" in process.sandbox.held


def test_a_wall_that_fails_is_the_last_that_is_tried_where_all_are_required(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def refuse(*_: object, **__: object) -> int:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(syscalls, "confine_to", refuse)
    for name in ("leave_network", "keep_capabilities", "renounce_privileges", "filter_calls"):
        monkeypatch.setattr(syscalls, name, lambda *_, name=name: built.append(name))
    assert enter(-1, Prepared(b"x"), level="require", read_only=False).report == Report(
        ("processes",), (Missing("mounts", "Operation not permitted", sandboxes.MOUNTS_REMEDY),)
    )
    assert built == []
    for may, held in ((True, ()), (False, ("handles",))):
        capabilities = frozenset({sandboxes.BY_HANDLE} if may else {})
        monkeypatch.setattr(syscalls, "facts", lambda found=capabilities: SimpleNamespace(capabilities=found))
        entered = enter(-1, Prepared(b"x", no_processes="no"), level="prefer", read_only=False)
        assert entered.report.held == ("network", *held, "capabilities", "privileges", "calls")
        assert {missing.wall for missing in entered.report.missing} == {"processes", "mounts", "handles"} - set(held)
        assert entered.handles is not may
        assert len(built) == 4
        built.clear()


def test_a_trial_that_says_nothing(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "_CODE", "raise SystemExit(3)")
    with pytest.raises(ServerError, match="cannot say what sandbox it has"):
        trio.run(try_sandbox, Volume("v", str(volume)), ServerOptions(sandbox="prefer"))


def test_what_is_missing_matters_only_where_it_is_required() -> None:
    report = Report(("mounts",), (Missing("calls", "no library", "install it"),))
    check_sandbox(report, "prefer")
    check_sandbox(Report(WALLS), "require")
    with pytest.raises(SandboxError, match="calls: no library; install it; or give --sandbox prefer"):
        check_sandbox(report, "require")


def test_the_filter_is_a_program() -> None:
    made = program()
    assert made is program()
    assert made != program(by_handle=True)
    assert len(made) % 8 == 0
    assert 50 < len(made) // 8 < 4096


@needs_root
def test_serve_says_what_cannot_be_had_before_it_listens(volume: Path, tmp_path: Path) -> None:
    command = ["setpriv", "--bounding-set", "-sys_admin", sys.executable, "-m", "fusepipe", "serve"]
    command += ["--listen", f"unix:{tmp_path}/socket", "--volume", f"data={volume}"]
    place = str(Path(breakout.__file__).parents[2])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": place}, capture_output=True, text=True, timeout=100)
    assert done.returncode == 7, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("fusepipe: cannot serve: the sandbox of a session cannot be had, processes: Operation not")
    assert last.endswith("or give --sandbox prefer")
    assert done.stdout == ""
    assert not (tmp_path / "socket").exists()
