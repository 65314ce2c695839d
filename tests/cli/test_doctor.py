"""`fusepipe doctor` and `fusepipe version`: what is said of this machine is so."""

import json
import os
import platform
import re
import resource
import socket
import stat
import sys
from pathlib import Path

import pytest

from fusepipe import __version__
from fusepipe.cli import checks
from fusepipe.cli.checks import Status
from fusepipe.wire import MAJOR, MINOR
from tests.support.program import Programs


def test_text_and_json_agree(program: Programs) -> None:
    text = program.run("doctor")
    as_json = program.run("doctor", "--format", "json")
    found = json.loads(as_json.stdout)
    assert [entry["name"] for entry in found] == re.findall(r"^(?:ok|limited|missing) +(.*?):", text.stdout, re.M)
    for entry in found:
        assert entry["status"] in {"ok", "limited", "missing"}
        assert entry["found"]
        assert (entry["status"] == "ok") == (entry["remedy"] == ""), "what is not right has a remedy"
    missing = [entry for entry in found if entry["status"] == "missing"]
    assert text.process.returncode == as_json.process.returncode == (10 if missing else 0)


@pytest.mark.usefixtures("fuse")
def test_where_tests_can_mount_nothing_is_missing(program: Programs) -> None:
    ended = program.run("doctor", "--format", "json")
    assert ended.process.returncode == 0, ended.stdout
    trial = next(entry for entry in json.loads(ended.stdout) if entry["name"] == "trial mount")
    assert trial["found"] == "works, with the host's inode numbers"


def test_no_fuse_device(tmp_path: Path) -> None:
    finding = checks.fuse_device(str(tmp_path / "fuse"))
    assert finding.status is Status.MISSING
    assert "modprobe fuse" in finding.remedy


def test_a_file_in_place_of_the_fuse_device(tmp_path: Path) -> None:
    (tmp_path / "fuse").touch()
    finding = checks.fuse_device(str(tmp_path / "fuse"))
    assert finding.status is Status.MISSING
    assert "mknod" in finding.remedy


def test_a_fuse_device_that_cannot_be_opened(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "fuse"))
        finding = checks.fuse_device(str(tmp_path / "fuse"))
    assert finding.status is Status.MISSING
    assert "cannot be opened" in finding.found


def test_fusermount3_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checks.fusermount().remedy == "install the package fuse3"


def test_fusermount3_without_the_set_uid_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fusermount3").write_text("#!/bin/sh\n")
    (tmp_path / "fusermount3").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "chmod u+s" in checks.fusermount().remedy
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert checks.fusermount().status is Status.MISSING


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("user_allow_other\n", Status.OK),
        ("# a comment\n  user_allow_other  \n", Status.OK),
        ("#user_allow_other\n", Status.LIMITED),
        ("mount_max = 10\n", Status.LIMITED),
        (None, Status.LIMITED),
    ],
)
def test_user_allow_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, status: Status) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    path = tmp_path / "fuse.conf"
    if text is not None:
        path.write_text(text)
    assert checks.user_allow_other(str(path)).status is status


def test_an_old_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "release", lambda: "4.19.0-27-amd64")
    assert checks.kernel().status is Status.LIMITED
    monkeypatch.setattr(platform, "release", lambda: "6.1.0-44-amd64")
    assert checks.kernel().status is Status.OK


def test_few_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _what: (1024, 4096))
    finding = checks.open_files()
    assert finding.status is Status.LIMITED
    assert "65536" in finding.remedy


def test_privileges_of_root_without_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(checks, "_effective_capabilities", lambda: ~(1 << 2))
    finding = checks.privileges()
    assert finding.status is Status.LIMITED
    assert "CAP_DAC_READ_SEARCH" in finding.found
    monkeypatch.setattr(checks, "_effective_capabilities", lambda: ~(1 << 21))
    assert checks.privileges().status is Status.MISSING


def test_a_trial_mount_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'fusepipe: cannot mount: no reason; try again' >&2\nexit 7\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(python))
    finding = checks.trial_mount()
    assert finding.status is Status.MISSING
    assert finding.found == "cannot mount: no reason; try again"


# ---- version --------------------------------------------------------------------------------------------------------


def test_version(program: Programs) -> None:
    found = json.loads(program.run("version", "--format", "json").stdout)
    assert found["fusepipe"] == __version__
    assert found["protocol"] == f"{MAJOR}.{MINOR}"
    assert found["kernel"] == platform.release()
    assert re.fullmatch(r"3\.\d+\.\d+", found["libfuse"])
    text = program.run("version").stdout
    assert [line.split()[0] for line in text.splitlines()] == list(found)
