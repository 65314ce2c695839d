"""Many programs, many signals, many files: results stay right, and the server forgets what the kernel forgets."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import pytest

from tests.mount import children
from tests.mount.conftest import MountFactory, Place
from tests.mount.harness import Mount

STORM = """
os.chdir(sys.argv[1])
me = sys.argv[2]
count = 0
def handler(*_):
    global count
    count += 1
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
end = time.monotonic() + 4
i = 0
while time.monotonic() < end:
    name = f"{me}-{i}"
    fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
    assert os.write(fd, b"x" * 20_000) == 20_000
    os.fsync(fd)
    assert os.pread(fd, 30_000, 0) == b"x" * 20_000
    os.close(fd)
    os.rename(name, name + "-r")
    os.link(name + "-r", name + "-l")
    os.mkdir(name)
    os.setxattr(name, "user.x", b"1")
    assert name in os.listdir(".")
    os.rmdir(name)
    os.unlink(name + "-r")
    assert os.stat(name + "-l").st_nlink == 1
    os.unlink(name + "-l")
    i += 1
signal.setitimer(signal.ITIMER_REAL, 0)
print(i, count)
"""


def test_a_storm_of_signals_changes_no_result(place: Place) -> None:
    """Each call is interrupted again and again: none is done twice, none is lost, none fails but with EINTR."""
    programs = [children.spawn(STORM, place.mnt, who) for who in "abc"]
    for program in programs:
        rounds, signals = map(int, children.finish(program, 40).split())
        assert rounds > 0
        assert signals > 100
    assert os.listdir(place.src) == []


RACE = """
os.chdir(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
won = []
for i in range(100):
    for kind, call in (
        ("open", lambda: os.close(os.open(f"open{i}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))),
        ("mkdir", lambda: os.mkdir(f"mkdir{i}")),
        ("symlink", lambda: os.symlink("x", f"symlink{i}")),
        ("link", lambda: os.link("file", f"link{i}")),
        ("unlink", lambda: os.unlink(f"unlink{i}")),
        # Each to a name of its own: rename(2) of two names of one inode does nothing, and the guest's kernel, which
        # looks them up one after the other, may take what the host renames in between for that.
        ("rename", lambda: os.rename(f"rename{i}", f"renamed{i}-{os.getpid()}")),
    ):
        try:
            call()
            won.append(f"{kind}{i}")
        except (FileExistsError, FileNotFoundError):
            pass
print(json.dumps(won))
"""


@pytest.mark.parametrize("where", ["guest", "both"])
def test_of_several_who_race_exactly_one_wins(place: Place, where: str) -> None:
    """What programs use as locks: exclusive creation, link, unlink, rename; also against programs on the host."""
    (place.src / "file").touch()
    for i in range(100):
        (place.src / f"unlink{i}").touch()
        (place.src / f"rename{i}").touch()
    tops = [place.mnt] * 4 if where == "guest" else [place.mnt, place.src] * 2
    racers = [children.spawn(RACE, top) for top in tops]
    for racer in racers:
        assert children.read_line(racer) == "ready"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won: list[str] = []
    for racer in racers:
        won += json.loads(children.finish(racer, 60))
    kinds = ("open", "mkdir", "symlink", "link", "unlink", "rename")
    assert sorted(won) == sorted(f"{kind}{i}" for kind in kinds for i in range(100))


def last_words(mount: Mount) -> dict[str, object]:
    """What the session process says at its end, at the level debug and in JSON."""
    mount.drop_dentries()
    time.sleep(0.5)
    programs = [program for program in (mount.client, mount.server) if program is not None]
    mount.unmount()
    lines = [json.loads(line) for program in programs for line in program.errors().splitlines()]
    (found,) = [line for line in lines if "inodes" in line]
    return dict(found)


@pytest.mark.once
def test_what_the_kernel_forgets_the_server_forgets(mounts: MountFactory, real: str) -> None:
    """After listing, opening, creating, replacing and deleting, only the root is left in the tables."""
    mount = mounts("--log-level", "debug", "--log-format", "json", start=False)
    top = mount.source
    for i in range(40):
        (top / f"d{i}").mkdir()
        for j in range(60):
            (top / f"d{i}" / f"f{j}").touch()
    mount.start()
    path = mount.path
    for _ in range(2):
        assert sum(len(files) for _, _, files in os.walk(path)) == 2400
    for i in range(0, 40, 3):
        with os.scandir(path / f"d{i}") as entries:
            next(entries)  # a listing that is given up half-way
        (path / f"d{i}" / "f1").write_text("x")
        (path / f"d{i}" / "f2").unlink()
        (path / f"d{i}" / "f3").rename(path / f"d{i}" / "f4")
        (top / f"d{i}" / "f5").unlink()
        os.link(path / f"d{i}" / "f6", path / f"d{i}" / "again")
        assert not (path / f"d{i}" / "absent").exists()
        with (path / f"d{i}" / "new").open("w") as file:
            (path / f"d{i}" / "new").unlink()
            file.write("x")
    children.run("import subprocess; subprocess.run(['rm', '-rf', sys.argv[1]], check=True)", path / "d1")
    found = last_words(mount)
    assert found["handles"] == 0
    assert found["overforgotten"] == 0
    assert found["inodes"] == 1, found


@pytest.mark.once
@pytest.mark.parametrize("readers", [1, 2, 256])
def test_any_number_of_readers(mounts: MountFactory, real: str, readers: int) -> None:
    """With one request in service at a time everything still ends, with 256 all threads of a program go through."""
    mount = mounts("--readers", str(readers))
    out = children.run(
        """
        import threading
        os.chdir(sys.argv[1])
        wrong = []
        def work(me):
            try:
                for i in range(6):
                    with open(f"{me}-{i}", "w+") as file:
                        file.write(str(me) * 5000)
                        file.flush()
                        os.fsync(file.fileno())
                        file.seek(0)
                        assert file.read() == str(me) * 5000
                    os.rename(f"{me}-{i}", f"{me}-{i}-done")
                    os.listdir(".")
            except BaseException as error:
                wrong.append(repr(error))
        threads = [threading.Thread(target=work, args=(me,)) for me in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong, wrong[:3]
        print(len(os.listdir(".")))
        """,
        mount.path,
        timeout=60,
    )
    assert out == "300\n"


@pytest.mark.once
def test_checksums_on_every_frame(real: str, scratch: Path) -> None:
    """A server at a firecracker: address asks for a checksum on each frame; its clients come to PATH_PORT."""
    source = scratch / "source"
    source.mkdir()
    with Mount("serve", source, firecracker=True) as mount:
        data = random.Random(5).randbytes(3_000_000)
        (mount.path / "file").write_bytes(data)
        assert (source / "file").read_bytes() == data
        mount.drop_dentries()
        assert (mount.path / "file").read_bytes() == data
        for i in range(200):
            (mount.path / f"f{i}").write_text(str(i))
        assert sorted(os.listdir(mount.path)) == sorted(["file", *(f"f{i}" for i in range(200))])
