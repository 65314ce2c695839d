"""Existing tests, and a load on a real mount, with C modules that the compiler's sanitizers watch.  No report may come.

The codec of wire/native.h is not among them: tests/wire/test_wire_native.py builds it with a sanitizer by itself.
"""

import contextlib
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sanitizers.instrumented import SANITIZERS, Instrumented
from tests.support import world

pytestmark = pytest.mark.timeout(1600)  # modules are built, and run slowly

LOAD = Path(__file__).with_name("load.py")
PROGRAMS = 3
ROUNDS = 3

TESTS = {
    "address": {
        "server": (
            "tests/server/test_native.py",
            "tests/server/test_keeping.py",
            "tests/server/test_syscalls.py",
            "tests/server/test_handlers_attributes.py",
            "tests/server/test_handlers_directories.py",
            "tests/server/test_handlers_files.py",
            "tests/server/test_handlers_flags.py",
            "tests/server/test_handlers_locks.py",
            "tests/server/test_handlers_names.py",
            "tests/server/test_handlers_ranges.py",
            "tests/server/test_handlers_xattrs.py",
            "tests/server/test_tables_budget.py",
            "tests/server/test_tables_memfd.py",
            "tests/server/test_tables_slots.py",
        ),
        "client": ("tests/client/test_native.py", "tests/client/test_device.py", "tests/client/test_taken.py"),
    },
    "thread": {
        "server": (
            "tests/server/test_native.py",
            "tests/server/test_tables_threads.py",
            "tests/server/test_handlers_locks.py",
        ),
        "client": ("tests/client/test_native.py",),
    },
}

PLANTED = """
#include <pthread.h>
#include <stdlib.h>

static int shared;
static void *add(void *unused) { shared++; return unused; }

void race(void)
{
	pthread_t threads[2];
	for (int i = 0; i < 2; i++)
		pthread_create(&threads[i], NULL, add, NULL);
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
}
int behind_the_end(int size)
{
	char *volatile data = malloc(size);
	int found = data[size];
	free(data);
	return found;
}
int overflow(int number) { return number + 2147483647; }
"""


@pytest.fixture(scope="module", params=sorted(SANITIZERS))
def copy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instrumented]:
    folder = tmp_path_factory.mktemp("sanitizers")
    for path in (folder, folder.parent):
        path.chmod(0o755)  # tests run programs as other users
    yield Instrumented(request.param, folder)
    world.remove(folder)


def clean(copy: Instrumented, what: str = "") -> None:
    if found := copy.reports():
        pytest.fail(f"the {copy.name} sanitizer found:\n{found}\n{what}", pytrace=False)


def test_the_modules_are_instrumented(copy: Instrumented) -> None:
    modules = sorted(copy.folder.glob("fusepipe/*/*.so"))
    assert [module.parent.name for module in modules] == ["device", "syscalls"]
    for module in modules:
        for mark in copy.sanitizer.marks:
            assert mark in module.read_bytes()
    where = "import fusepipe.syscalls._syscalls as s, fusepipe.device.library; print(s.__file__)"
    assert copy.run("-c", where, timeout=300).stdout.strip() == str(modules[1])
    clean(copy)


@pytest.mark.parametrize("defect", ["race()", "behind_the_end(8)", "overflow(1)"])
def test_a_planted_defect_is_found(copy: Instrumented, tmp_path: Path, defect: str) -> None:
    """What tells that a run without a report means something."""
    (tmp_path / "planted.c").write_text(PLANTED)
    flags = [*copy.sanitizer.flags.split(), "-g", "-O1", "-shared", "-fPIC"]
    subprocess.run(["cc", *flags, "-o", tmp_path / "planted.so", tmp_path / "planted.c"], check=True)
    copy.run("-c", f"import ctypes; ctypes.CDLL({str(tmp_path / 'planted.so')!r}).{defect}", timeout=300)
    assert bool(copy.reports()) == ((copy.name == "thread") == (defect == "race()"))


@pytest.mark.parametrize("side", ["server", "client"])
def test_tests(copy: Instrumented, fuse: None, side: str) -> None:
    options = ("-p", "no:cacheprovider", "-q", "--timeout", "1200", "-o", "faulthandler_timeout=0")
    done = copy.run("-m", "pytest", *options, *TESTS[copy.name][side], timeout=1500)
    clean(copy, done.stdout[-2000:])
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]


@pytest.mark.parametrize("readers", [3, 64])
def test_a_load_on_a_mount(copy: Instrumented, fuse: None, tmp_path: Path, readers: int) -> None:
    """Programs with threads, signals and locks on `bind`; some of them are killed in between."""
    source, mnt = tmp_path / "source", tmp_path / "mnt"
    source.mkdir()
    mnt.mkdir()
    with mounted(copy, source, mnt, tmp_path, "--readers", str(readers)):
        load = [
            subprocess.Popen([sys.executable, LOAD, str(mnt), f"p{number}", str(ROUNDS)], stderr=subprocess.PIPE)
            for number in range(PROGRAMS)
        ]
        victims = [subprocess.Popen([sys.executable, LOAD, str(mnt), f"v{n}", "1000000"]) for n in range(2)]
        try:
            for number, victim in enumerate(victims):
                begun = functools.partial(any_of, source, f"v{number}-*")
                assert world.wait_until(begun, 120)
                victim.kill()
                victim.wait(120)
            for program in load:
                _, errors = program.communicate(timeout=1200)
                assert program.returncode == 0, errors.decode()
        finally:
            for program in (*load, *victims):
                program.kill()
                program.wait(120)
                if program.stderr:
                    program.stderr.close()
    assert not list(source.glob("p*"))


def any_of(folder: Path, pattern: str) -> bool:
    return any(folder.glob(pattern))


@contextlib.contextmanager
def mounted(copy: Instrumented, source: Path, mnt: Path, folder: Path, *options: str) -> Iterator[None]:
    """`bind` of the copy; it must end well, with a clean log and without a report."""
    out, err = folder / "out", folder / "err"
    with out.open("wb") as to_out, err.open("wb") as to_err:
        program = subprocess.Popen(
            # Within its sandbox a session process could not write what the sanitizer finds.
            copy.command("-m", "fusepipe", "bind", "--sandbox", "none", *options, str(source), str(mnt)),
            cwd=copy.folder,
            env=copy.environment(),
            stdin=subprocess.DEVNULL,
            stdout=to_out,
            stderr=to_err,
        )
    try:
        assert world.wait_until(lambda: b"\n" in out.read_bytes() or program.poll() is not None, 120)
        assert program.poll() is None, err.read_text()
        yield
        program.send_signal(signal.SIGTERM)
        assert program.wait(120) == 0, err.read_text()
    except BaseException as error:
        error.add_note(f"reports: {copy.reports()}\nlog: {err.read_text()}")
        raise
    finally:
        program.kill()
        program.wait(120)
        world.end_mounts_below(folder)
    assert err.read_text() == ""
    clean(copy)
    assert os.listdir(mnt) == []
