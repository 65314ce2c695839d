"""Random sequences of calls do the same in the mount as in a directory of the host, call by call."""

from __future__ import annotations

import errno
import json
import os
import random
import stat
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.mount import children
from tests.mount.conftest import Place
from tests.mount.test_rename import EXCHANGE, NOREPLACE, renameat2
from tests.workload.trees import describe, difference

NAMES = "abcde"
Call = Callable[["World"], object]


class World:
    """One directory and the files that are open in it, by a number of the test's own."""

    def __init__(self, top: Path, stack: ExitStack) -> None:
        self.top = top
        self.stack = stack
        self.open: dict[int, int] = {}

    def result(self, call: Call) -> object:
        """What the call returned, or the name of its errno."""
        try:
            return call(self)
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    def open_file(self, number: int, path: str, flags: int, mode: int) -> None:
        fd = os.open(self.top / path, flags, mode)
        self.stack.callback(os.close, fd)
        self.open[number] = fd


def shown(status: os.stat_result) -> tuple[object, ...]:
    size = None if stat.S_ISDIR(status.st_mode) else status.st_size
    return oct(status.st_mode), status.st_nlink, status.st_uid, status.st_gid, size


def one_call(rng: random.Random, number: int, handles: list[int]) -> tuple[str, Call]:
    """A call to make in both worlds, and its description."""

    def path() -> str:
        return "/".join(rng.choice(NAMES) for _ in range(rng.choice((1, 1, 1, 2, 2, 3))))

    p, q = path(), path()
    data, offset, mode = rng.randbytes(rng.randrange(9000)), rng.randrange(20_000), rng.choice((0o600, 0o644, 0o755))
    kind = rng.randrange(22)
    if handles and kind < 7:
        h = rng.choice(handles)
        calls: list[tuple[str, Call]] = [
            (f"pwrite {h} {len(data)} at {offset}", lambda w: os.pwrite(w.open[h], data, offset)),
            (f"pread {h} at {offset}", lambda w: os.pread(w.open[h], 5000, offset)),
            (f"ftruncate {h} {offset}", lambda w: os.ftruncate(w.open[h], offset)),
            (f"fstat {h}", lambda w: shown(os.fstat(w.open[h]))),
            (f"fchmod {h} {mode:o}", lambda w: os.fchmod(w.open[h], mode)),
            (f"futime {h} {offset}", lambda w: os.utime(w.open[h], ns=(offset, offset + 1))),
            (f"fsetxattr {h}", lambda w: os.setxattr(w.open[h], f"user.{offset % 3}", data[:50])),
        ]
        return calls[kind]
    flags = rng.choice((os.O_RDWR, os.O_RDONLY, os.O_RDWR | os.O_CREAT, os.O_RDWR | os.O_CREAT | os.O_EXCL))
    flags |= rng.choice((0, 0, os.O_TRUNC, os.O_APPEND, os.O_NOFOLLOW))
    rename_flags = rng.choice((0, 0, NOREPLACE, EXCHANGE))
    calls = [
        (f"open {p} {flags:o} as {number}", lambda w: w.open_file(number, p, flags, mode)),
        (f"mkdir {p}", lambda w: os.mkdir(w.top / p, mode)),
        (f"rmdir {p}", lambda w: os.rmdir(w.top / p)),
        (f"unlink {p}", lambda w: os.unlink(w.top / p)),
        (f"rename {p} {q} {rename_flags}", lambda w: renameat2(w.top / p, w.top / q, rename_flags)),
        (f"link {p} {q}", lambda w: os.link(w.top / p, w.top / q, follow_symlinks=False)),
        (f"symlink {q} {p}", lambda w: os.symlink(q, w.top / p)),
        (f"readlink {p}", lambda w: os.readlink(w.top / p)),
        (f"lstat {p}", lambda w: shown(os.lstat(w.top / p))),
        (f"listdir {p}", lambda w: sorted(os.listdir(w.top / p))),
        (f"chmod {p} {mode:o}", lambda w: os.chmod(w.top / p, mode)),
        (f"truncate {p} {offset}", lambda w: os.truncate(w.top / p, offset)),
        (f"read {p}", lambda w: (w.top / p).read_bytes()),
        (f"write {p} {len(data)}", lambda w: (w.top / p).write_bytes(data)),
        (f"mknod {p}", lambda w: os.mknod(w.top / p, stat.S_IFSOCK | mode)),
    ]
    return calls[kind % len(calls)]


def compare(a: object, b: object, history: list[str]) -> None:
    assert a == b, "\n".join([*history[-15:], f"host: {a!r:.300}", f"mount: {b!r:.300}"])


def all_of(h: int, world: World) -> bytes:
    return os.pread(world.open[h], 50_000, 0)


@pytest.mark.parametrize("seed", range(4))
def test_same_calls_same_results(place: Place, seed: int) -> None:
    """1,500 calls on a few names, so that they meet: open files without a name, replaced directories, links."""
    rng = random.Random(seed)
    history: list[str] = []
    with ExitStack() as stack:
        host, guest = World(place.twin, stack), World(place.mnt, stack)
        for number in range(1500):
            handles = [h for h in host.open if h >= number - 200]
            text, call = one_call(rng, number, handles)
            history.append(text)
            compare(host.result(call), guest.result(call), history)
            if rng.random() < 0.02:
                place.mount.drop_dentries()
        for h in host.open:
            call = partial(all_of, h)
            compare(host.result(call), guest.result(call), [f"all of {h} at the end"])
    for top in (place.mnt, place.src):
        wrong = difference(describe(place.twin, times=False), describe(top, times=False))
        assert not wrong, wrong


WORK = """
import random
os.chdir(sys.argv[1])
me = sys.argv[2]
rng = random.Random(me)
expected = {}
for i in range(250):
    name = f"{me}-{rng.randrange(12)}"
    what = rng.randrange(6)
    if what < 3:
        expected[name] = str(i) * rng.randrange(3000)
        with open(name, "w") as file:
            file.write(expected[name])
    elif what == 3 and name in expected:
        os.unlink(name)
        del expected[name]
    elif what == 4 and name in expected:
        other = f"{me}-{rng.randrange(12)}"
        os.rename(name, other)
        expected[other] = expected.pop(name)
    elif name in expected:
        assert open(name).read() == expected[name], name
    if i % 25 == 0:
        found = {n for n in os.listdir(".") if n.startswith(me + "-")}
        assert found == set(expected), (found, set(expected))
for name, text in expected.items():
    assert open(name).read() == text
print(json.dumps({name: len(text) for name, text in expected.items()}))
"""


def test_programs_side_by_side(place: Place) -> None:
    """Five programs, each with its own names in one directory, while the kernel forgets: none disturbs another."""
    programs = [children.spawn(WORK, place.mnt, who) for who in "vwxyz"]
    while any(program.poll() is None for program in programs):
        place.mount.drop_dentries()
        time.sleep(0.03)
    expected: dict[str, int] = {}
    for program in programs:
        expected |= json.loads(children.finish(program))
    assert {path.name: path.stat().st_size for path in place.src.iterdir()} == expected
    assert {path.name: path.stat().st_size for path in place.mnt.iterdir()} == expected
