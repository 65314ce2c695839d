"""Every way to be told no: one line with cause and remedy, and the documented exit code."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fusepipe.wire import ErrorCode, refusal
from tests.cli.conftest import Fails
from tests.support.program import Programs


@pytest.fixture
def src(tmp_path: Path) -> Path:
    path = tmp_path / "src"
    path.mkdir()
    return path


@pytest.fixture
def mnt(tmp_path: Path) -> Path:
    path = tmp_path / "mnt"
    path.mkdir()
    return path


# ---- usage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], ["Missing command", "fusepipe --help"]),
        (["bnid", "a", "b"], ["No such command 'bnid'"]),
        (["bind"], ["bind:", "Missing argument 'SRC'", "fusepipe bind --help"]),
        (["bind", "a"], ["Missing argument 'MNT'"]),
        (["bind", "a", "b", "c"], ["unexpected extra argument", "c"]),
        (["bind", "--reader", "3", "a", "b"], ["No such option", "--reader", "--readers"]),
        (["bind", "--readers", "0", "a", "b"], ["'--readers'", "0 is not in the range 1<=x<=256"]),
        (["bind", "--readers", "257", "a", "b"], ["257 is not in the range 1<=x<=256"]),
        (["bind", "--readers", "many", "a", "b"], ["'many' is not a valid integer"]),
        (["bind", "-o", "readres=3", "a", "b"], ["no option 'readres'", "Did you mean readers"]),
        (["bind", "-o", "ro=yes", "a", "b"], ["takes no value"]),
        (["bind", "--log-level", "loud", "a", "b"], ["'loud'", "'debug'"]),
        (["bind", "--trace", "disk", "a", "b"], ["cannot trace disk", "client, wire, server"]),
        (["bind", "--log-file", "/nonexistent/log", "a", "b"], ["--log-file", "No such file", "name a file"]),
        (["mount", "/srv/data", "b"], ["ADDR/NAME", "'/srv' does not begin with a kind of address", "unix:PATH"]),
        (["mount", "unix:/run/x.sock/", "b"], ["ends with a slash", "what follows the last slash"]),
        (["mount", "unix:socket", "b"], ["the volume's name is missing", "ADDRESS/NAME"]),
        (["mount", "tcp:1.2.3.4:5/v", "b"], ["no kind of address 'tcp'", "vsock:CID:PORT"]),
        (["mount", "vsock:host/v", "b"], ["the port is missing", "vsock:host:5000"]),
        (["mount", "vsock:me:5000/v", "b"], ["the CID 'me' is not a number"]),
        (["mount", f"unix:/{'x' * 120}/v", "b"], ["121 bytes", "at most 107"]),
        (["mount", "--connect-timeout", "-1", "unix:a/v", "b"], ["-1.0 is not in the range"]),
        (["serve", "--volume", "a=/"], ["Missing option '--listen'"]),
        (["serve", "--listen", "unix:s"], ["Missing option '--volume'"]),
        (["serve", "--listen", "unix:s", "--volume", "data"], ["'data' is not a volume", "NAME=DIRECTORY"]),
        (["serve", "--listen", "unix:s", "--volume", "=/srv"], ["has no name"]),
        (["serve", "--listen", "unix:s", "--volume", "a/b=/srv"], ["slash"]),
        (["serve", "--listen", "nowhere", "--volume", "a=/"], ["'nowhere' does not begin with a kind of address"]),
        (["umount"], ["Missing argument 'MNT'"]),
        (["umount", "--timeout", "0", "a"], ["not in the range"]),
        (["doctor", "--format", "xml"], ["'xml'", "'json'"]),
    ],
    ids=lambda value: " ".join(value)[:60] or "nothing" if isinstance(value, list) else None,
)
def test_usage(fails: Fails, arguments: list[str], says: list[str]) -> None:
    fails(2, *arguments, says=says)


@pytest.mark.parametrize("cache", ["no", "ttl", "ttl:", "ttl:-1", "ttl:0", "ttl:x", "ttl:nan", "none:1", "TTL:1"])
def test_cache_mode(fails: Fails, src: Path, mnt: Path, cache: str) -> None:
    fails(2, "bind", "--cache", cache, src, mnt, says=["'--cache'", cache, "none", "ttl:SECONDS"])


def test_shared_locks_on_what_nobody_else_uses(fails: Fails, src: Path, mnt: Path) -> None:
    fails(
        2, "bind", "--locks", "shared", "--cache", "exclusive", src, mnt, says=["--locks shared", "--cache exclusive"]
    )


def test_two_volumes_of_one_name(fails: Fails, src: Path, tmp_path: Path) -> None:
    volumes = ["--volume", f"a={src}", "--volume", f"a={tmp_path}"]
    fails(2, "serve", "--listen", f"unix:{tmp_path}/s", *volumes, says=["two volumes", "name"])


# ---- places ---------------------------------------------------------------------------------------------------------


def test_source_is_missing(fails: Fails, tmp_path: Path, mnt: Path) -> None:
    fails(4, "bind", tmp_path / "no", mnt, says=[str(tmp_path / "no"), "does not exist"])


def test_source_is_a_file(fails: Fails, src: Path, mnt: Path) -> None:
    (src / "file").touch()
    fails(4, "bind", src / "file", mnt, says=["file", "not a directory"])


@pytest.mark.parametrize("with_mount", ["bind", "mount"])
def test_mount_point_is_missing(fails: Fails, src: Path, tmp_path: Path, with_mount: str) -> None:
    other = src if with_mount == "bind" else f"unix:{tmp_path}/s/v"
    fails(3, with_mount, other, tmp_path / "no", says=[str(tmp_path / "no"), "does not exist", "mkdir"])


def test_mount_point_is_a_file(fails: Fails, src: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fails(3, "bind", src, tmp_path / "file", says=["not a directory"])


def test_mount_point_is_not_empty(fails: Fails, src: Path, mnt: Path) -> None:
    (mnt / "something").touch()
    fails(3, "bind", src, mnt, says=["not empty", "nonempty"])


@pytest.mark.parametrize("below", ["mnt", "deep/er/mnt"])
def test_mount_point_lies_inside_the_source(fails: Fails, src: Path, below: str) -> None:
    (src / below).mkdir(parents=True)
    fails(3, "bind", src, src / below, says=[f"inside {src}", "outside"])


def test_mount_point_lies_inside_the_source_by_a_symlink(fails: Fails, src: Path, tmp_path: Path) -> None:
    (src / "mnt").mkdir()
    (tmp_path / "other").symlink_to(src)
    fails(3, "bind", src, tmp_path / "other" / "mnt", says=["inside"])


def test_mount_point_hides_python(fails: Fails, src: Path) -> None:
    fails(3, "bind", "--nonempty", src, sys.prefix, says=["would hide", "another mount point"])


def test_umount_of_what_is_not_there(fails: Fails, tmp_path: Path) -> None:
    fails(3, "umount", tmp_path / "no", says=["no"])


def test_umount_of_what_is_not_mounted(fails: Fails, mnt: Path) -> None:
    fails(3, "umount", mnt, says=[str(mnt), "not a mount point"])


def test_umount_of_another_filesystem(fails: Fails) -> None:
    fails(3, "umount", "/proc", says=["/proc", "not of fusepipe", "umount /proc"])


# ---- /dev/fuse ------------------------------------------------------------------------------------------------------


def in_private_namespace(setup: str, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command after changes to the mount table that nobody else sees."""
    if os.geteuid() != 0:
        pytest.skip("making a mount namespace needs root")
    script = f'set -e; mount --make-rprivate /; {setup}; exec "$@"'
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *command],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


SMALL_DEV = (
    "mkdir {0}/dev && mount -t tmpfs -o mode=755 none {0}/dev && cp -a /dev/null /dev/urandom {0}/dev && "
    "{1} mount --move {0}/dev /dev"
)
"""A /dev with little in it; {0} is a directory of the test's, {1} makes more."""


@pytest.mark.parametrize("with_mount", ["bind", "mount"])
def test_no_fuse_device(src: Path, mnt: Path, tmp_path: Path, with_mount: str) -> None:
    other = str(src) if with_mount == "bind" else f"unix:{tmp_path}/s/v"
    command = [sys.executable, "-m", "fusepipe", with_mount, other, str(mnt)]
    done = in_private_namespace(SMALL_DEV.format(tmp_path, ""), command)
    assert done.returncode == 7, done.stderr
    assert "there is no /dev/fuse" in done.stderr
    assert "modprobe fuse" in done.stderr
    assert done.stderr.count("\n") == 1


def test_fuse_device_not_permitted(src: Path, mnt: Path, tmp_path: Path) -> None:
    fuse = f"mknod -m 000 {tmp_path}/dev/fuse c 10 229 &&"
    powerless = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    command = [*powerless, sys.executable, "-m", "fusepipe", "bind", str(src), str(mnt)]
    done = in_private_namespace(SMALL_DEV.format(tmp_path, fuse), command)
    assert done.returncode == 7, done.stderr
    assert "/dev/fuse" in done.stderr.replace(str(tmp_path), "")
    assert "chmod 666 /dev/fuse" in done.stderr
    assert done.stderr.count("\n") == 1


# ---- servers that are not there or say no ---------------------------------------------------------------------------


def test_nobody_listens(fails: Fails, mnt: Path, tmp_path: Path) -> None:
    target = f"unix:{tmp_path}/s/v"
    fails(5, "mount", "--connect-timeout", "0.1", target, mnt, says=[target, "there is no socket", "start the server"])


def test_a_stale_socket(fails: Fails, mnt: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
    arguments = ["mount", "--connect-timeout", "0.1", f"unix:{tmp_path}/s/v", mnt]
    fails(5, *arguments, says=["nobody listens on", "start the server"])


def test_the_name_is_forgotten(fails: Fails, mnt: Path, src: Path) -> None:
    fails(5, "mount", f"unix:{src}", mnt, says=["is a directory, not a socket", "the volume's name", "is it missing?"])


Answer = Callable[[socket.socket], None]


class OneAnswer:
    """A server that accepts one connection, does one thing with it, and is gone."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(30)
        self._answer = answer
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with self._listener, self._listener.accept()[0] as sock:
            sock.settimeout(30)
            self._answer(sock)

    def join(self) -> None:
        self._thread.join(60)


Answers = Callable[[Answer], str]


@pytest.fixture
def answers(tmp_path: Path) -> Iterator[Answers]:
    """answers(function) starts a server that does only that, and gives what to mount."""
    started: list[OneAnswer] = []

    def start(answer: Answer) -> str:
        started.append(OneAnswer(tmp_path / "s", answer))
        return f"unix:{tmp_path}/s/data"

    yield start
    for server in started:
        server.join()


@pytest.mark.usefixtures("fuse")
@pytest.mark.parametrize(
    ("code", "text", "detail", "exit_code", "says"),
    [
        (ErrorCode.VERSION, "this server speaks 9", (9, 0, 0), 6, ["speaks 9", "versions"]),
        (ErrorCode.NO_SUCH_VOLUME, "there are: home", (), 4, ["no volume 'data'", "there are: home"]),
        (ErrorCode.REFUSED, "not you", (), 6, ["not you"]),
        (ErrorCode.LIMIT, "too many", (), 6, ["too many"]),
        (ErrorCode.FAILED, "the directory has gone", (), 4, ["the directory has gone"]),
    ],
    ids=lambda value: value.name if isinstance(value, ErrorCode) else None,
)
def test_refusals(
    fails: Fails,
    answers: Answers,
    mnt: Path,
    code: ErrorCode,
    text: str,
    detail: tuple[int, ...],
    exit_code: int,
    says: list[str],
) -> None:
    def refuse(sock: socket.socket) -> None:
        sock.recv(4096)
        sock.sendall(refusal(code, text, *detail))

    fails(exit_code, "mount", answers(refuse), mnt, says=[str(mnt), *says])


@pytest.mark.usefixtures("fuse")
@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["nothing", "another protocol"])
def test_no_server_of_ours(fails: Fails, answers: Answers, mnt: Path, sent: bytes) -> None:
    def answer(sock: socket.socket) -> None:
        sock.recv(4096)
        sock.sendall(sent)

    fails(8, "mount", answers(answer), mnt, says=["connection broke before the server had answered"])


def test_serve_a_missing_directory(fails: Fails, tmp_path: Path) -> None:
    arguments = ["serve", "--listen", f"unix:{tmp_path}/s", "--volume", f"a={tmp_path}/no"]
    fails(4, *arguments, says=[f"{tmp_path}/no", "create it"])
    assert not (tmp_path / "s").exists()


def test_serve_where_no_socket_can_be(fails: Fails, src: Path, tmp_path: Path) -> None:
    fails(5, "serve", "--listen", f"unix:{tmp_path}/no/s", "--volume", f"a={src}", says=[f"unix:{tmp_path}/no/s"])


def test_serve_where_somebody_listens(fails: Fails, src: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
        sock.listen()
        fails(5, "serve", "--listen", f"unix:{tmp_path}/s", "--volume", f"a={src}", says=[f"unix:{tmp_path}/s"])


# ---- what should not happen -----------------------------------------------------------------------------------------


def test_unexpected_errors_are_one_line(fails: Fails, tmp_path: Path) -> None:
    broken = {"PYTHONPATH": str(tmp_path)}
    (tmp_path / "sdnotify.py").write_text("raise RuntimeError('this module\\nis broken')\n")
    says = ["unexpected error", "RuntimeError: this module", "--log-level debug"]
    fails(1, "bind", tmp_path, tmp_path, env=broken, says=says)


def test_at_debug_unexpected_errors_show_where(program: Programs, src: Path, mnt: Path) -> None:
    ended = program.run("bind", "--log-level", "debug", src, mnt / "no")
    ended.expect_log("Traceback")
    assert ended.process.returncode == 3
    assert "Traceback" in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("fusepipe: cannot mount")


@pytest.mark.usefixtures("fuse")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("how", ["--foreground", "--daemon"])
def test_stopped_before_it_is_ready(program: Programs, mnt: Path, tmp_path: Path, number: int, how: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        listener.settimeout(30)
        mounting = program("mount", how, f"unix:{tmp_path}/s/v", mnt)
        with listener.accept()[0]:  # it has sent HELLO, and waits for an answer
            mounting.process.send_signal(number)
            assert mounting.wait() == 128 + number
    assert mounting.stderr == ""
