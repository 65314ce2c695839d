"""Programs run in child processes: as other users, or where a call may wait for long.

A child that gets stuck in a filesystem under test never takes the test run with it: every wait has an end.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable
from pathlib import Path

_started: list[subprocess.Popen[str]] = []

Argument = str | bytes | int | Path

_PRELUDE = "import ctypes, errno, fcntl, json, mmap, os, signal, socket, stat, sys, time\n"


def _command(code: str, arguments: Iterable[Argument], become: str) -> list[str | bytes]:
    line = [a if isinstance(a, bytes) else str(a) for a in arguments]
    return [sys.executable, "-I", "-S", "-c", _PRELUDE + become + textwrap.dedent(code), *line]


def spawn(
    code: str,
    *arguments: Argument,
    user: int | None = None,
    group: int | None = None,
    groups: Iterable[int] | None = None,
    umask: int = -1,
) -> subprocess.Popen[str]:
    """Start Python `code` (arguments in sys.argv[1:], common modules imported) as another user where one is given.

    Without `groups` a child with a `user` has no supplementary groups.  It becomes that user only after its imports:
    he may not be able to read this Python's files.
    """
    become = ""
    if user is not None:
        gid = user if group is None else group
        become = f"os.setgroups({list(groups or [])}); os.setresgid(*[{gid}] * 3); os.setresuid(*[{user}] * 3)\n"
    process = subprocess.Popen(
        _command(code, arguments, become),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="surrogateescape",
        cwd="/",
        umask=umask,
    )
    _started.append(process)
    return process


def end_all() -> None:
    """Kill the children that a failed test left running; at the end of each test."""
    while _started:
        process = _started.pop()
        if process.poll() is None:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2.0)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def finish(process: subprocess.Popen[str], timeout: float = 20.0) -> str:
    """Wait for a child that must succeed and return what it printed; a child that does not end is killed and fails."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill(process)
        raise AssertionError(f"the child did not end within {timeout} s") from None
    assert process.returncode == 0, f"the child ended with {process.returncode}:\n{err}"
    return out


def run(
    code: str,
    *arguments: Argument,
    user: int | None = None,
    group: int | None = None,
    groups: Iterable[int] | None = None,
    umask: int = -1,
    timeout: float = 20.0,
) -> str:
    """spawn() and finish() in one."""
    return finish(spawn(code, *arguments, user=user, group=group, groups=groups, umask=umask), timeout)


def outcome(call: str, *arguments: Argument, user: int | None = None, timeout: float = 20.0) -> str:
    """ "ok", or the name of the errno, of one Python expression in a child of its own."""
    code = f"try:\n    {call}\n    print('ok')\nexcept OSError as error:\n    print(errno.errorcode[error.errno])\n"
    return run(code, *arguments, user=user, timeout=timeout).strip()


def kill(process: subprocess.Popen[str], timeout: float = 5.0) -> bool:
    """SIGKILL and reap; False if the kernel did not let it die in time (it waits in an unanswered request)."""
    process.send_signal(signal.SIGKILL)
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        return False
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
    return True


def read_line(process: subprocess.Popen[str], timeout: float = 10.0) -> str:
    """The next line that a child prints; fails when none comes in time.

    Reads byte by byte below Python's buffer, so that nothing of a later line is swallowed.
    """
    assert process.stdout is not None
    fd = process.stdout.fileno()
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    line = b""
    end = time.monotonic() + timeout
    while not line.endswith(b"\n"):
        left = end - time.monotonic()
        assert left > 0 and poll.poll(left * 1000), f"the child printed no line within {timeout} s, only {line!r}"
        byte = os.read(fd, 1)
        if not byte:
            raise AssertionError(f"the child closed its output after {line!r}:\n{process.communicate(timeout=30)[1]}")
        line += byte
    return os.fsdecode(line[:-1])


def printed(process: subprocess.Popen[str], timeout: float) -> bool:
    """Whether a child has printed something that nobody has read yet, or has ended; waits `timeout` seconds for it."""
    assert process.stdout is not None
    poll = select.poll()
    poll.register(process.stdout.fileno(), select.POLLIN)
    return bool(poll.poll(timeout * 1000))


def descendants(pid: int) -> list[int]:
    """All living descendants of a process, parents before children (zombies are not counted)."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] not in "ZX":
            children.setdefault(int(fields[1]), []).append(int(name))
    found: list[int] = []
    queue = [pid]
    while queue:
        more = children.get(queue.pop(0), [])
        found += more
        queue += more
    return found


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def command_line(pid: int) -> str:
    """The arguments of a process joined by spaces, "" if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def sessions_below(pid: int) -> list[int]:
    """The session processes of a `serve` or `bind`."""
    return [below for below in descendants(pid) if "session_process" in command_line(below)]


def state_of(pid: int) -> str:
    """One letter of proc_pid_stat(5): R, S, D, Z ...; "" if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
