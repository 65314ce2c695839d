"""What is missing is said: the filter, the device, the right to do something; and what is traced."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from fusepipe import log
from fusepipe.client import MountOptions, PermissionDeniedError, missing, permissions, user_may_allow_other
from fusepipe.client.errors import CallError
from fusepipe.client.permissions import check
from fusepipe.client.tracing import TracedLink
from fusepipe.wire import messages as m
from tests.client.servers import linked
from tests.client.volumes import MemoryVolume

REPOSITORY = Path(__file__).parents[2]


def said_by(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_filter_can_be_used_here() -> None:
    assert said_by("import fusepipe.device; print(fusepipe.device.unavailable())") == ""


def test_the_filter_must_come_before_pyfuse3() -> None:
    said = said_by("import pyfuse3, fusepipe.device; print(fusepipe.device.unavailable())")
    assert said == "pyfuse3 was loaded before it: import fusepipe.device first"


def test_the_client_brings_the_filter_in_time() -> None:
    assert said_by("import fusepipe.client, fusepipe.device; print(fusepipe.device.unavailable())") == ""


def test_a_filter_that_cannot_be_loaded_says_why() -> None:
    said = said_by(
        "import sys; sys.modules['fusepipe.device._device'] = None\n"
        "import fusepipe.client, fusepipe.device as device\n"
        "try: device.Filter(print, print, print, print)\n"
        "except device.FilterUnavailableError as error: print(error)"
    )
    assert said.startswith("its compiled part cannot be loaded: ")


def test_a_session_that_another_library_made_is_noticed() -> None:
    said = said_by(
        "from fusepipe.device import *\n"
        "made = Filter(print, print, print, print)\n"
        "try: made.attach(Wishes(InitFlag(0), InitFlag(0), 0, 0, 0, 0))\n"
        "except FilterUnavailableError as error: print(error)\n"
        "print(made.agreed(), made.take_forgets(), made.take_handles())"
    )
    assert said.splitlines() == [
        "pyfuse3 made its session without asking it: another library has that function",
        "None [] []",
    ]


# ---- permissions ----------------------------------------------------------------------------------------------------


def test_a_machine_without_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(permissions, "DEVICE", str(tmp_path / "fuse"))
    (found,) = missing()
    assert found.what.startswith("there is no ") and "modprobe fuse" in found.remedy
    with pytest.raises(PermissionDeniedError, match="there is no"):
        check(MountOptions("/mnt"))
    (tmp_path / "fuse").mkdir()
    (found,) = missing()
    assert "cannot be opened: Is a directory" in found.what


def test_what_a_user_may_not_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "fuse").touch()
    conf = tmp_path / "fuse.conf"
    monkeypatch.setattr(permissions, "DEVICE", str(tmp_path / "fuse"))
    monkeypatch.setattr(permissions, "FUSE_CONF", str(conf))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    check(MountOptions("/mnt"))
    with pytest.raises(PermissionDeniedError, match="only root may mount with suid"):
        check(MountOptions("/mnt", suid=True))
    with pytest.raises(PermissionDeniedError, match="only root may mount with dev"):
        check(MountOptions("/mnt", dev=True))
    for text in (None, "# user_allow_other\n", "user_allow_others\n"):
        if text is not None:
            conf.write_text(text)
        assert not user_may_allow_other()
        with pytest.raises(PermissionDeniedError, match="add the line user_allow_other"):
            check(MountOptions("/mnt", allow_other=True))
    conf.write_text("mount_max = 5\nuser_allow_other\n")
    check(MountOptions("/mnt", allow_other=True))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(PermissionDeniedError, match="fusermount3 is not installed; install it"):
        check(MountOptions("/mnt"))


# ---- tracing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trace", "expected"),
    [
        ((), []),
        (("client",), ["client: call operation=STATFS", "client: call operation=LOOKUP"]),
        (("wire",), ["wire: request operation=STATFS", "wire: reply operation=STATFS", "wire: request operation=LOOKUP",
                     "wire: reply operation=LOOKUP"]),
    ],
)  # fmt: skip
def test_single_requests_are_traced(
    trace: tuple[str, ...], expected: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    async def main() -> None:
        async with linked(MemoryVolume()) as (link, _server):
            assert isinstance(link, TracedLink) == bool(trace)
            await link.call(m.StatfsRequest(1))
            with pytest.raises(CallError):
                await link.call(m.LookupRequest(1, b"secret"))

    log.configure("warning", "text", trace)
    try:
        trio.run(main)
    finally:
        log.configure("warning")
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == len(expected)
    for line, start in zip(lines, expected, strict=True):
        assert start in line and "secret" not in line
    if "client" in trace:
        assert "errno=0" in lines[0] and "ms=" in lines[0]
        assert 'request="parent:1 name:6 bytes"' in lines[1] and "errno=2" in lines[1]
