"""`mount.fusepipe`, as mount(8) calls it: its flags, its exit codes, and what its user sees."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from fusepipe.cli.mount import mount
from fusepipe.cli.mount_options import known_only, split
from tests.support import world
from tests.support.program import ENVIRONMENT, Programs

HELPER = (sys.executable, "-m", "fusepipe.cli.mount_helper")


def helper(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*HELPER, *map(str, arguments)],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd="/",
    )


@pytest.fixture
def spec(program: Programs, open_path: Path) -> Iterator[str]:
    """A server with a volume `data`, as a line of fstab(5) names it."""
    (open_path / "volume").mkdir(mode=0o700)  # nobody else reaches it, so `serve` has nothing to warn of
    (open_path / "volume" / "file").write_text("content")
    server = program("serve", "--listen", f"unix:{open_path}/s", "--volume", f"data={open_path}/volume")
    server.ready()
    server.expect_log("there is no volume 'datax'")
    yield f"unix:{open_path}/s/data"
    assert server.stop() == 0


@pytest.mark.parametrize("verbose", [False, True])
def test_mounts_and_returns(fuse: None, program: Programs, spec: str, open_path: Path, verbose: bool) -> None:
    """The way of mount(8): the spec, the directory, then flags; it says nothing unless it is asked to."""
    point = open_path / "mnt"
    point.mkdir()
    flags = ["-n", "-v"] if verbose else ["-n"]
    ignored = "noauto,nofail,_netdev,x-systemd.automount"
    # That it returns shows, too, that nothing of it keeps the caller's output open, with a log file or without.
    log = [] if verbose else ["-o", f"log-file={open_path}/log"]
    done = helper(spec, point, *flags, *log, "-o", f"ro,nosuid,{ignored},readers=4")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (f"fusepipe: {spec} is mounted at {point}\n" if verbose else "")
    try:
        assert (point / "file").read_text() == "content"
        [line] = [line for line in Path("/proc/mounts").read_text().splitlines() if f" {point} " in line]
        assert line.startswith(f"{spec} {point} fuse.fusepipe ro,nosuid,nodev")
    finally:
        assert program.run("umount", point).process.returncode == 0
    assert world.wait_until(lambda: not any("mount_helper" in one.command for one in world.processes()), 60)


def test_fake_only_checks(spec: str, open_path: Path) -> None:
    (open_path / "mnt").mkdir()
    assert helper("-f", spec, open_path / "mnt", "-o", "ro").returncode == 0
    assert not world.mounts_below(open_path)
    wrong = helper("-f", spec, open_path / "mnt", "-o", "raders=4")
    assert wrong.returncode == 1 and "Did you mean readers" in wrong.stderr


def test_sloppy_passes_over_what_is_unknown(spec: str, open_path: Path) -> None:
    (open_path / "mnt").mkdir()
    assert helper("-s", "-f", spec, open_path / "mnt", "-o", "ro,intr,vers=4.2,readers=4").returncode == 0
    assert helper("-s", "-f", spec, open_path / "mnt", "-o", "ro,intr,readers=x").returncode == 1


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("ro,intr,readers=4", ["ro", "readers=4"]),
        ("allow_other,connect-timeout=3,daemon,hard=1", ["allow_other", "connect-timeout=3", "daemon"]),
        (r"trace=client\,wire,soft", ["trace=client,wire"]),
        ("", []),
    ],
)
def test_known_only(text: str, kept: list[str]) -> None:
    assert split(known_only(text, mount)) == kept
    assert isinstance(mount, click.Command)


def test_errors_reach_the_user_with_the_codes_of_mount(spec: str, open_path: Path) -> None:
    """One line on stderr; 1 for a wrong call, 32 for a mount that failed: mount(8)."""
    (open_path / "mnt").mkdir()
    cases: list[tuple[list[str | Path], int, str]] = [
        ([], 1, "Missing argument"),
        (["data", open_path / "mnt"], 1, "the volume's name is missing"),
        ([spec, open_path / "mnt", "-o", "nonsense"], 1, "there is no option 'nonsense'"),
        ([spec, open_path / "missing"], 32, "missing"),
        ([spec + "x", open_path / "mnt"], 32, "the server has no volume 'datax'"),
        ([f"unix:{open_path}/nobody/data", open_path / "mnt", "-o", "connect-timeout=0.2"], 32, "there is no socket"),
    ]
    for arguments, code, text in cases:
        done = helper(*arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1), done
        assert text in done.stderr
