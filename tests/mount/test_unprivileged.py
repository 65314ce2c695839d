"""Mounted by an ordinary user: what he may do works, what he may not is refused with a reason."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount import children
from tests.mount.conftest import MountFactory
from tests.mount.harness import Mount, Runner, eventually

NOBODY = 65534  # fusermount3 wants a user that has an entry in /etc/passwd
OTHER = 12345
NOT_PERMITTED = 7


def runner() -> Runner:
    """A Python that this user can start, with fusepipe's packages; skips the test where there is none."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = sysconfig.get_path("purelib")
    for python in (sys.executable, f"/usr/bin/{version}"):
        found = Runner(user=NOBODY, python=python, packages=packages)
        try:
            done = subprocess.run(
                [python, "-c", "import pyfuse3, fusepipe.cli.main"],
                env=found.environment(),
                user=NOBODY,
                group=NOBODY,
                extra_groups=[],
                cwd="/",
                capture_output=True,
                timeout=60,
            )
        except OSError:
            continue
        if done.returncode == 0:
            return found
    pytest.skip("no Python that other users can run has fusepipe's packages")


@pytest.fixture
def ordinary(real: str) -> Iterator[Runner]:
    """Runs fusepipe as nobody.  /dev/fuse gets the mode that udev gives it everywhere, where nothing has set it."""
    found = runner()
    if not os.stat("/usr/bin/fusermount3").st_mode & stat.S_ISUID:
        pytest.skip("fusermount3 is not set-uid here")
    before = stat.S_IMODE(os.stat("/dev/fuse").st_mode)
    os.chmod("/dev/fuse", before | 0o666)
    yield found
    os.chmod("/dev/fuse", before)


@pytest.fixture
def mine(ordinary: Runner, mounts: MountFactory, scratch: Path) -> Mount:
    """A directory of that user, mounted by him."""
    source = scratch / "mine"
    source.mkdir()
    os.chown(source, NOBODY, NOBODY)
    mount = mounts(source=source, runner=ordinary)
    assert isinstance(mount, Mount)
    return mount


def test_he_works_in_his_mount(mine: Mount) -> None:
    out = children.run(
        """
        os.chdir(sys.argv[1])
        open("file", "w").write("text")
        assert open("file").read() == "text"
        os.mkdir("directory")
        os.rename("file", "directory/file")
        os.link("directory/file", "hard")
        os.symlink("hard", "link")
        os.chmod("hard", 0o600)
        os.setxattr("hard", "user.x", b"1")
        os.truncate("hard", 2)
        fd = os.open("directory/file", os.O_RDWR)
        os.fchmod(fd, 0)
        os.ftruncate(fd, 1)
        os.unlink("directory/file")
        os.unlink("hard")
        assert os.read(fd, 10) == b"t"
        os.close(fd)
        os.rmdir("directory")
        for name in ("a", "b"):
            open(name, "w").write(name)
        os.utime("a", ns=(1, 2))
        print(json.dumps({name: [os.lstat(name).st_ino, os.lstat(name).st_uid] for name in os.listdir(".")}))
        """,
        mine.path,
        user=NOBODY,
    )
    found = json.loads(out)
    assert set(found) == {"a", "b", "link"}
    assert found == {name: [(mine.source / name).lstat().st_ino, NOBODY] for name in found}
    assert (mine.source / "a").stat().st_mtime_ns == 2


@pytest.mark.once
def test_what_he_may_not_do_is_refused(mine: Mount) -> None:
    (mine.source / "roots").write_text("secret")
    (mine.source / "roots").chmod(0o600)
    (mine.source / "closed").mkdir(mode=0o700)
    out = children.run(
        """
        os.chdir(sys.argv[1])
        open("own", "w").close()
        def attempt(call, *args):
            try:
                call(*args)
                return "ok"
            except OSError as error:
                return errno.errorcode[error.errno]
        print(attempt(open, "roots"), attempt(os.listdir, "closed"), attempt(os.chown, "own", 12345, -1),
              attempt(os.chmod, "roots", 0o666), attempt(os.mknod, "device", stat.S_IFCHR | 0o600, os.makedev(1, 3)),
              attempt(os.unlink, "roots"))
        """,
        mine.path,
        user=NOBODY,
    )
    assert out.split() == ["EACCES", "EACCES", "EPERM", "EPERM", "EPERM", "ok"]


@pytest.mark.once
@pytest.mark.parametrize("who", [0, OTHER])
def test_nobody_else_gets_in(mine: Mount, who: int) -> None:
    """Without allow_other not even root: that is the kernel's rule."""
    assert children.outcome("os.listdir(sys.argv[1])", mine.path, user=who) == "EACCES"


@pytest.mark.once
def test_many_files_without_file_handles(mine: Mount) -> None:
    """File handles need a privilege that he has not: descriptors take their place, as many as are allowed."""
    (mine.source / "many").mkdir(mode=0o755)
    for i in range(3000):
        (mine.source / "many" / f"f{i}").write_text(str(i))
    out = children.run(
        """
        os.chdir(sys.argv[1] + "/many")
        assert sum(e.stat().st_size for e in os.scandir(".")) == sum(len(str(i)) for i in range(3000))
        assert all(open(f"f{i}").read() == str(i) for i in range(0, 3000, 11))
        print(len(os.listdir(".")))
        """,
        mine.path,
        user=NOBODY,
        timeout=60,
    )
    assert out == "3000\n"


def test_he_unmounts_it_himself(mine: Mount, ordinary: Runner) -> None:
    done = ordinary.call("umount", mine.path)
    assert done.returncode == 0, done.stderr
    eventually(lambda: not mine.mounted(), 5.0, "the unmount")
    assert mine.client is not None
    assert mine.client.wait() == 0


def test_a_dead_mount_of_his_is_replaced(mine: Mount) -> None:
    assert mine.client is not None
    mine.client.process.kill()
    mine.lost()
    mine.start()
    assert children.run("print(os.listdir(sys.argv[1]))", mine.path, user=NOBODY) == "[]\n"


@pytest.mark.once
@pytest.mark.parametrize("option", ["--allow-other", "--suid", "--dev"])
def test_what_only_root_may_ask_for(ordinary: Runner, scratch: Path, option: str) -> None:
    """Refused with the reason.  --allow-other works where an administrator has allowed it in /etc/fuse.conf."""
    configuration = Path("/etc/fuse.conf")
    if option == "--allow-other" and configuration.exists():
        lines = [line.strip() for line in configuration.read_text().splitlines()]
        if "user_allow_other" in lines:
            pytest.skip("/etc/fuse.conf allows it")
    source, point = scratch / "source", scratch / "point"
    for path in (source, point):
        path.mkdir()
        os.chown(path, NOBODY, NOBODY)
    done = ordinary.call("bind", option, source, point)
    assert done.returncode in (2, NOT_PERMITTED), done.stderr
    word = {"--allow-other": "user_allow_other", "--suid": "root", "--dev": "root"}[option]
    assert word in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.once
def test_a_sandbox_that_he_cannot_have(ordinary: Runner, scratch: Path) -> None:
    for name in ("source", "mnt"):
        (scratch / name).mkdir()
        os.chown(scratch / name, NOBODY, NOBODY)
    ended = ordinary.call("bind", "--sandbox", "require", scratch / "source", scratch / "mnt")
    assert ended.returncode == NOT_PERMITTED, ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert "the sandbox of a session cannot be had, processes: Operation not permitted; run as root" in last
    assert last.endswith("or give --sandbox prefer")
    found = json.loads(ordinary.call("doctor", "--format", "json").stdout)
    [sandbox] = [entry for entry in found if entry["name"] == "sandbox"]
    assert sandbox["status"] == "limited"
    walls = "handles, capabilities, privileges, calls"
    assert sandbox["found"].startswith(f"{walls}; without processes: Operation not permitted;")
