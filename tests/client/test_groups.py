"""Supplementary groups of who creates: sent by the kernel with the request, or read from /proc where it does not."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fusepipe.client import identity
from fusepipe.device import CurrentRequest, InitFlag
from tests.client.conftest import Mounted

Mounting = Callable[..., Mounted]

SENDS_GROUP = InitFlag.CREATE_SUPP_GROUP

CREATES = """
import os, sys
os.setgroups([5000, 5001, 5002]); os.setgid(4000); os.setuid(4001)
os.chdir(sys.argv[1])
os.close(os.open("new", os.O_RDWR | os.O_CREAT, 0o644))
os.mkdir("directory")
os.mkfifo("fifo")
os.symlink("nowhere", "link")
os.close(os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600))
"""
KINDS = ("CreateRequest", "MkdirRequest", "MknodRequest", "SymlinkRequest", "TmpfileRequest")


def created(mount: Mounted, folder: Path) -> list[tuple[int, int, list[int]]]:
    """Who made a file of each kind, in a directory of group 5001."""
    folder.chmod(0o755)
    folder.parent.chmod(0o755)
    os.chown(mount.path, 0, 5001)
    os.chmod(mount.path, 0o775)
    subprocess.run([sys.executable, "-I", "-S", "-c", CREATES, mount.path], check=True, timeout=60)
    found = []
    for kind in KINDS:
        (request,) = mount("requests", kind)
        found.append((request["uid"], request["gid"], list(request["groups"])))
    return found


def test_every_way_to_create_names_the_group(mounted: Mounting, tmp_path: Path) -> None:
    """That of the directory alone: /proc would have given all three."""
    mount = mounted()
    agreed = mount("stats")["agreed"]
    sent = SENDS_GROUP & InitFlag(agreed["flags"])
    assert sent == SENDS_GROUP & InitFlag(agreed["offered"])
    groups = [5001] if sent else [5000, 5001, 5002]
    assert created(mount, tmp_path) == [(4001, 4000, groups)] * len(KINDS)
    mount.unmount()


def test_an_older_kernel(mounted: Mounting, tmp_path: Path) -> None:
    """It sends none: they are read from /proc, all of them."""
    mount = mounted(unwanted=int(SENDS_GROUP))
    assert not SENDS_GROUP & InitFlag(mount("stats")["agreed"]["flags"])
    assert created(mount, tmp_path) == [(4001, 4000, [5000, 5001, 5002])] * len(KINDS)
    mount.unmount()


def test_nothing_is_looked_up_where_the_kernel_sends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def look(task: int) -> list[tuple[str, str]]:
        asked.append(task)
        return [("Name", "x"), ("Groups", "5000 5001 ")]

    monkeypatch.setattr(identity, "_status", look)
    with_group, without = CurrentRequest(has_group=1, group=5001), CurrentRequest()
    assert identity.groups_of(with_group, 4001, 77, sent_by_kernel=True) == (5001,)
    assert identity.groups_of(without, 4001, 77, sent_by_kernel=True) == ()
    assert not asked
    assert identity.groups_of(without, 0, 77, sent_by_kernel=False) == ()  # root may create anywhere without them
    assert not asked
    assert identity.groups_of(without, 4001, 77, sent_by_kernel=False) == (5000, 5001)
    assert asked == [77]
