"""The life of the commands that keep running: ready, in the background, stopped, and left alone by the other side."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import world
from tests.support.program import COMMAND, ENVIRONMENT, Program, Programs

pytestmark = pytest.mark.usefixtures("fuse")


@pytest.fixture
def src(tmp_path: Path) -> Path:
    path = tmp_path / "src"
    path.mkdir()
    (path / "file").write_text("hello")
    return path


@pytest.fixture
def mnt(tmp_path: Path) -> Path:
    path = tmp_path / "mnt"
    path.mkdir()
    return path


Running = Callable[[], set[world.Process]]


@pytest.fixture
def running() -> Running:
    """Gives the processes that this test has started, and theirs; other tests keep some running."""
    before = world.processes()
    return lambda: world.processes() - before


def is_mounted(path: Path) -> bool:
    return any(mount.point == str(path) for mount in world.mounts())


def server(program: Programs, tmp_path: Path, *volumes: str) -> tuple[Program, str]:
    """A running server of volumes on a Unix socket, and its address."""
    address = f"unix:{tmp_path}/socket"
    started = program("serve", "--listen", address, *(part for volume in volumes for part in ("--volume", volume)))
    started.ready()
    return started, address


# ---- in the foreground ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_bind_until_a_signal(program: Programs, src: Path, mnt: Path, number: int) -> None:
    bind = program("bind", src, mnt)
    assert bind.ready() == f"fusepipe: {src} is mounted at {mnt}"
    assert (mnt / "file").read_text() == "hello"
    bind.process.send_signal(number)
    assert bind.wait() == 0
    assert not is_mounted(mnt)
    assert bind.stdout.count("\n") == 1
    assert bind.stderr == ""


def test_bind_ends_when_it_is_unmounted(program: Programs, src: Path, mnt: Path) -> None:
    bind = program("bind", src, mnt)
    bind.ready()
    assert program.run("umount", mnt).process.returncode == 0
    assert bind.wait() == 0


def test_serve_and_mount(program: Programs, src: Path, mnt: Path, tmp_path: Path) -> None:
    serve, address = server(program, tmp_path, f"data={src}")
    assert serve.stdout == f"fusepipe: serving data on {address}\n"
    mount = program("mount", f"{address}/data", mnt)
    assert mount.ready() == f"fusepipe: {address}/data is mounted at {mnt}"
    assert (mnt / "file").read_text() == "hello"
    assert mount.stop() == 0
    assert serve.stop() == 0
    assert not (tmp_path / "socket").exists()


def test_several_volumes_on_one_address(program: Programs, src: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "elsewhere").touch()
    _, address = server(program, tmp_path, f"a={src}", f"b={other}")
    for name, entries in (("a", ["file"]), ("b", ["elsewhere"])):
        point = tmp_path / f"mnt-{name}"
        point.mkdir()
        program("mount", f"{address}/{name}", point).ready()
        assert os.listdir(point) == entries


def test_the_mount_may_start_before_the_server(program: Programs, src: Path, mnt: Path, tmp_path: Path) -> None:
    mount = program("mount", f"unix:{tmp_path}/socket/data", mnt)
    time.sleep(0.5)
    server(program, tmp_path, f"data={src}")
    mount.ready()
    assert (mnt / "file").read_text() == "hello"
    assert mount.stop() == 0


def test_no_such_volume(program: Programs, src: Path, mnt: Path, tmp_path: Path) -> None:
    serve, address = server(program, tmp_path, f"data={src}")
    serve.expect_log("refused")
    ended = program.run("mount", f"{address}/date", mnt)
    assert ended.process.returncode == 4
    assert "no volume 'date'" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_relative_address_and_places(
    program: Programs, src: Path, mnt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    program("serve", "--listen", "unix:socket", "--volume", "data=src").ready()
    program("mount", "--daemon", "unix:socket/data", "mnt").ready()
    assert (mnt / "file").read_text() == "hello"
    assert program.run("umount", "mnt").process.returncode == 0
    program("bind", "src", "mnt").ready()
    assert (mnt / "file").read_text() == "hello"


# ---- already mounted ------------------------------------------------------------------------------------------------


def test_busy_mount_point(program: Programs, src: Path, mnt: Path) -> None:
    program("bind", src, mnt).ready()
    ended = program.run("bind", src, mnt)
    assert ended.process.returncode == 3
    assert "is mounted already" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_umount_of_a_mount_in_use(program: Programs, src: Path, mnt: Path) -> None:
    bind = program("bind", src, mnt)
    bind.ready()
    with (mnt / "file").open():
        ended = program.run("umount", mnt)
        assert ended.process.returncode == 3
        assert "is busy" in ended.stderr
        assert program.run("umount", "--lazy", mnt).process.returncode == 0
        assert not is_mounted(mnt)
    assert bind.wait() == 0


def test_source_and_mount_point_are_the_same(program: Programs, src: Path) -> None:
    program("bind", "--nonempty", src, src).ready()
    assert (src / "file").read_text() == "hello"
    (src / "new").write_text("made through the mount")
    assert program.run("umount", src).process.returncode == 0
    assert (src / "new").read_text() == "made through the mount"


def test_source_inside_the_mount_point(program: Programs, src: Path, tmp_path: Path) -> None:
    inner = src / "inner"
    inner.mkdir()
    (inner / "deep").write_text("x")
    program("bind", "--nonempty", inner, src).ready()
    assert os.listdir(src) == ["deep"]
    assert program.run("umount", src).process.returncode == 0
    assert sorted(os.listdir(src)) == ["file", "inner"]


# ---- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", [["--read-only"], ["-o", "ro"]])
def test_read_only(program: Programs, src: Path, mnt: Path, option: list[str]) -> None:
    program("bind", *option, src, mnt).ready()
    with pytest.raises(OSError, match="Read-only file system"):
        (mnt / "new").touch()
    assert not (src / "new").exists()


def test_a_volume_that_its_server_makes_read_only(program: Programs, src: Path, mnt: Path, tmp_path: Path) -> None:
    _, address = server(program, tmp_path, f"data={src}:ro")
    mount = program("mount", f"{address}/data", mnt)
    mount.expect_log("read-only")
    mount.ready()
    with pytest.raises(OSError, match="Read-only file system"):
        (mnt / "new").touch()
    assert (mnt / "file").read_text() == "hello"


def mount_flags(mnt: Path) -> set[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if line.split(" ")[4] == str(mnt):
            return set(line.split(" ")[5].split(","))
    raise AssertionError(f"{mnt} is not mounted")


def test_defaults_of_the_mount(program: Programs, src: Path, mnt: Path) -> None:
    program("bind", src, mnt).ready()
    assert {"rw", "nosuid", "nodev"} <= mount_flags(mnt)
    line = next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {mnt} " in line)
    assert f"fuse.fusepipe {src} " in line


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount with suid and dev")
def test_suid_and_dev(program: Programs, src: Path, mnt: Path) -> None:
    program("bind", "-o", "suid,dev", src, mnt).ready()
    assert not {"nosuid", "nodev"} & mount_flags(mnt)


def test_json_log(program: Programs, src: Path, mnt: Path) -> None:
    bind = program("bind", "--log-level", "info", "--log-format", "json", src, mnt)
    bind.ready()
    assert bind.stop() == 0
    assert bind.stderr
    assert all(line.startswith('{"time": ') for line in bind.stderr.splitlines())


@pytest.mark.parametrize("component", ["client", "wire", "server"])
def test_trace(program: Programs, src: Path, mnt: Path, component: str) -> None:
    bind = program("bind", "--trace", component, src, mnt)
    bind.ready()
    assert (mnt / "file").read_text() == "hello"
    assert bind.stop() == 0
    lines = [line for line in bind.stderr.splitlines() if f" trace   {component}: " in line]
    assert any("lookup" in line.lower() for line in lines)
    assert len(lines) == len(bind.stderr.splitlines())


def test_log_file(program: Programs, src: Path, mnt: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    bind = program("bind", "--log-level", "info", "--log-file", log, src, mnt)
    bind.ready()
    assert bind.stop() == 0
    assert bind.stderr == ""
    assert "mounted" in log.read_text()


# ---- in the background ----------------------------------------------------------------------------------------------


@pytest.fixture
def daemons(running: Running) -> Iterator[None]:
    """Whatever a test left running in the background is ended."""
    yield
    for process in running():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)


@pytest.mark.usefixtures("daemons")
def test_daemon(running: Running, program: Programs, src: Path, mnt: Path) -> None:
    started = program.run("bind", "--daemon", src, mnt)
    assert started.process.returncode == 0
    assert started.stdout == f"fusepipe: {src} is mounted at {mnt}\n"
    assert started.stderr == ""
    assert (mnt / "file").read_text() == "hello"
    assert program.run("umount", mnt).process.returncode == 0
    assert world.wait_until(lambda: not running())


@pytest.mark.usefixtures("daemons")
def test_daemon_lets_go_of_who_started_it(running: Running, src: Path, mnt: Path, program: Programs) -> None:
    """A caller that reads stdout and stderr to their ends is not held up, and the directory can be unmounted."""
    done = subprocess.run(
        [*COMMAND, "bind", "--daemon", str(src), str(mnt)],
        capture_output=True,
        timeout=60,
        cwd=src,
        env=os.environ | ENVIRONMENT,
    )
    assert done.returncode == 0
    for process in running():
        assert os.readlink(f"/proc/{process.pid}/cwd") == "/"
        assert os.getsid(process.pid) != os.getsid(0)
    assert program.run("umount", mnt).process.returncode == 0


@pytest.mark.usefixtures("daemons")
def test_daemon_ends_at_sigterm(running: Running, program: Programs, src: Path, mnt: Path) -> None:
    program.run("bind", "--daemon", src, mnt)
    leaders = [p.pid for p in running() if " bind " in p.command]
    assert len(leaders) == 1
    os.kill(leaders[0], signal.SIGTERM)
    assert world.wait_until(lambda: not is_mounted(mnt) and not running(), 20)


def test_daemon_that_does_not_become_ready(program: Programs, src: Path, mnt: Path) -> None:
    (mnt / "something").touch()
    ended = program.run("bind", "--daemon", src, mnt)
    assert ended.process.returncode == 3
    assert "is not empty" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == ""


def test_daemon_with_wrong_options(program: Programs, src: Path, mnt: Path) -> None:
    ended = program.run("bind", "--daemon", "--cache", "much", src, mnt)
    assert ended.process.returncode == 2
    assert "'--cache'" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.usefixtures("daemons")
def test_daemon_log_file(running: Running, program: Programs, src: Path, mnt: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    program.run("bind", "--daemon", "--log-level", "info", "--log-file", log, src, mnt)
    assert program.run("umount", mnt).process.returncode == 0
    assert world.wait_until(lambda: not running())
    assert "mounted" in log.read_text()


# ---- the service manager --------------------------------------------------------------------------------------------


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """A socket that hears what sd_notify(3) says."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(30)
        yield sock


@pytest.mark.parametrize("command", ["bind", "serve", "mount"])
def test_notify(program: Programs, src: Path, mnt: Path, tmp_path: Path, manager: socket.socket, command: str) -> None:
    if command == "mount":
        server(program, tmp_path, f"data={src}")
    choices: dict[str, list[str | Path]] = {
        "bind": ["bind", src, mnt],
        "serve": ["serve", "--listen", f"unix:{tmp_path}/socket", "--volume", f"data={src}"],
        "mount": ["mount", f"unix:{tmp_path}/socket/data", mnt],
    }
    started = program(*choices[command], env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
    assert manager.recv(100) == b"READY=1"
    started.process.send_signal(signal.SIGTERM)
    assert manager.recv(100) == b"STOPPING=1"
    assert started.wait() == 0


# ---- the other side goes away ---------------------------------------------------------------------------------------


def session_processes(running: Running) -> list[int]:
    return [p.pid for p in running() if "session_process" in p.command]


def test_bind_whose_server_dies(running: Running, program: Programs, src: Path, mnt: Path) -> None:
    bind = program("bind", src, mnt)
    bind.expect_log(".")
    bind.ready()
    [pid] = session_processes(running)
    os.kill(pid, signal.SIGKILL)
    assert bind.wait() == 8
    assert f"fusepipe: {mnt}: the connection to the server was lost" in bind.stderr
    with pytest.raises(OSError, match="not connected"):
        (mnt / "file").read_text()
    again = program("bind", src, mnt)
    again.ready()
    assert (mnt / "file").read_text() == "hello"


def test_umount_of_a_dead_mount(program: Programs, src: Path, mnt: Path) -> None:
    bind = program("bind", src, mnt)
    bind.expect_log(".")
    bind.ready()
    bind.process.kill()
    bind.wait()
    assert program.run("umount", mnt).process.returncode == 0
    assert not is_mounted(mnt)


def test_further_signals_while_it_ends_change_nothing(program: Programs, src: Path, mnt: Path) -> None:
    bind = program("bind", src, mnt)
    bind.ready()
    while bind.process.poll() is None:
        bind.process.terminate()
        time.sleep(0.005)
    assert bind.process.returncode == 0
    assert not is_mounted(mnt)
