"""The image runs the POSIX suites, and says honestly how they ended; its other commands work too."""

import faulthandler
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.container.conftest import IMAGE, Image

pytestmark = pytest.mark.timeout(2400)  # the first test builds the image, the last runs the whole suite

FEW = ("-k", "test_handles")
"""Some cases of the suite: what is tested is not the suite itself."""

SUITE_SECONDS = 1500.0


@contextmanager
def running(image: Image, *arguments: str | Path) -> Iterator[tuple[str, "subprocess.Popen[str]", str]]:
    """A container that runs on: its name, its process, and the first line that it prints."""
    name = image.podman.new_name()
    process = image.podman.start(*image.options("--name", name, *arguments))
    try:
        assert process.stdout is not None
        yield name, process, process.stdout.readline()
    finally:
        image.podman("rm", "--force", "--ignore", "--volumes", "--time", "1", name)
        process.kill()
        process.communicate()


def test_what_is_no_command(image: Image) -> None:
    ran = image.run("siute")
    assert ran.code == 2
    assert ran.stdout == ""
    assert ran.stderr.startswith("container: there is no command siute\nusage: ")
    assert image.run("--help").stdout.startswith("usage: ")


def test_without_the_device(image: Image) -> None:
    ran = image.run(options=())
    assert ran.code == 7
    assert "there is no /dev/fuse: run it with --privileged, or with --device /dev/fuse" in ran.stderr


def test_version_and_shell(image: Image) -> None:
    assert re.search(r"^fusepipe +0\.", image.run("version", options=()).stdout, re.M)
    assert image.run("shell", "-c", "id -u; pwd", options=()).stdout == "0\n/srv/fusepipe\n"


def test_benchmarks_say_how_they_are_used(image: Image) -> None:
    ran = image.run("bench", "--help", options=())
    assert ran.code == 0, str(ran)
    assert "usage: " in ran.stdout.lower()


def test_what_mounting_needs(image: Image) -> None:
    """The device and one capability, as docs/container.md says."""
    ran = image.run("doctor", options=("--device", "/dev/fuse", "--cap-add", "SYS_ADMIN"))
    assert ran.code == 0, str(ran)
    assert re.search(r"^ok +trial mount: ", ran.stdout, re.M)
    ran = image.run("doctor", options=("--device", "/dev/fuse"))
    assert ran.code == 10, str(ran)


def test_some_of_the_suite_without_privileged(image: Image) -> None:
    needed = ("--device", "/dev/fuse", "--cap-add", "SYS_ADMIN,DAC_READ_SEARCH,MKNOD,LINUX_IMMUTABLE")
    ran = image.run("suite", *FEW, options=needed)
    assert ran.code == 0, str(ran)
    assert "\nthe POSIX suite: passed\nthe upstream suite: not mounted at /upstream\n" in ran.stdout


def test_a_suite_that_fails(image: Image) -> None:
    ran = image.run("suite", *FEW, "--posix-mount-option", "read-only")
    assert ran.code == 1, str(ran)
    assert "the POSIX suite: failed (exit code 1)" in ran.stdout


def test_a_suite_that_cannot_begin(image: Image) -> None:
    ran = image.run("suite", *FEW, options=("--device", "/dev/fuse"))
    assert ran.code == 1, str(ran)
    assert "the sandbox of a session cannot be had, processes: Operation not permitted" in ran.stdout
    assert "the POSIX suite: failed (exit code 1)" in ran.stdout


def test_an_upstream_suite_that_fails(image: Image, upstream: Path) -> None:
    (upstream / "tests/rename/01.t").write_text("#!/bin/sh\necho 1..1\necho not ok 1 - expected 0, got EPERM\n")
    ran = image.run("suite", *FEW, options=("--privileged", "-v", f"{upstream}:/upstream:ro"))
    assert ran.code == 1, str(ran)
    assert "not ok 1 - expected 0, got EPERM" in ran.stdout
    assert "\nthe POSIX suite: passed\nthe upstream suite: failed (exit code 1)\n" in ran.stdout


def test_only_the_upstream_suite(image: Image, upstream: Path) -> None:
    mount = ("--privileged", "-v", f"{upstream}:/upstream:ro")
    ran = image.run("upstream", "--jobs", "2", "mkdir", options=mount)
    assert ran.code == 0, str(ran)
    assert "1 file, 2 assertions, 0 failures" in ran.stdout
    ran = image.run("upstream")
    assert ran.code == 4
    assert "nothing is mounted at /upstream: give -v CHECKOUT:/upstream" in ran.stderr
    (upstream / "pjdfstest").unlink()
    ran = image.run("upstream", options=mount)
    assert ran.code == 4
    assert "it is not built" in ran.stderr


SERVE = ("serve", "--listen", "unix:/volume/socket", "--volume", "data=/volume")


def test_a_server_without_the_capability_says_what_it_lacks(image: Image) -> None:
    ran = image.run(*SERVE, options=())
    assert ran.code == 7, str(ran)
    last = ran.stderr.splitlines()[-1]
    assert "the sandbox of a session cannot be had, processes: Operation not permitted; run as root" in last
    assert "--cap-add SYS_ADMIN" in last
    assert last.endswith("or give --sandbox prefer")


def test_a_server_without_the_capability_and_with_what_can_be_had(image: Image) -> None:
    with running(image, IMAGE, *SERVE, "--sandbox", "prefer") as (name, process, line):
        assert "serving data" in line
        image.podman.ok("stop", "--time", "30", name)
        assert process.wait(30) == 0


@pytest.fixture
def served(image: Image, tmp_path: Path) -> Iterator[Path]:
    """A server in a container, with its socket and its volume in a directory."""
    (tmp_path / "volume").mkdir()
    options = ("-v", f"{tmp_path}:/shared", "--cap-add", "SYS_ADMIN,DAC_READ_SEARCH")
    serve = ("serve", "--listen", "unix:/shared/socket", "--volume", "data=/shared/volume")
    with running(image, *options, IMAGE, *serve) as (name, process, line):
        assert "socket" in line
        yield tmp_path
        image.podman.ok("stop", "--time", "30", name)
        assert process.wait(30) == 0


def test_serve_and_mount(image: Image, served: Path) -> None:
    options = ("-v", f"{served}:/shared", "--device", "/dev/fuse", "--cap-add", "SYS_ADMIN")
    mount = ("mount", "unix:/shared/socket/data", "/mnt")
    with running(image, *options, IMAGE, *mount) as (name, process, line):
        assert "is mounted at /mnt" in line
        (served / "volume/from-the-host").write_text("here")
        said = image.podman.ok("exec", name, "sh", "-c", "cat /mnt/from-the-host; echo there >/mnt/from-the-guest")
        assert said == "here"
        assert (served / "volume/from-the-guest").read_text() == "there\n"
        began = time.monotonic()
        image.podman.ok("stop", "--time", "60", name)
        assert time.monotonic() - began < 50, "it did not end by itself"
        assert process.wait(30) == 0


def test_stopping_a_suite(image: Image) -> None:
    with running(image, "--privileged", IMAGE, "suite") as (name, process, line):
        assert line.startswith("....")
        image.podman.ok("stop", "--time", "60", name)
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 143, (stdout, stderr)
        assert "KeyboardInterrupt" in stdout


def test_the_default_command_runs_everything(image: Image, upstream: Path, tmp_path: Path) -> None:
    faulthandler.cancel_dump_traceback_later()  # it takes minutes, and has an end of its own
    reports = tmp_path / "reports"
    reports.mkdir()
    ran = image.run(
        options=("--privileged", "-v", f"{upstream}:/upstream:ro", "-v", f"{reports}:/reports"), seconds=SUITE_SECONDS
    )
    assert ran.code == 0, str(ran)
    [made] = re.findall(r"^POSIX suite on bind .*?: ([\d,]+) assertions", ran.stdout, re.M)
    assert int(made.replace(",", "")) >= 8000
    assert "2 files, 3 assertions, 0 failures" in ran.stdout
    assert ran.stdout.endswith("\nthe POSIX suite: passed\nthe upstream suite: passed\n")
    for name in ("posix.xml", "upstream.xml"):
        suites = ElementTree.parse(reports / name).getroot().iter("testsuite")
        assert sum(int(suite.get("tests", 0)) for suite in suites) >= 3


def test_nothing_is_mounted_any_more(image: Image) -> None:
    listed = subprocess.run(
        ["findmnt", "--noheadings", "--list", "--output", "TARGET"], stdout=subprocess.PIPE, text=True
    )
    assert not [line for line in listed.stdout.splitlines() if line.startswith(str(image.state))]
    assert image.podman.ok("ps", "--all", "--quiet") == ""
    assert image.podman.ok("volume", "ls", "--quiet") == ""
