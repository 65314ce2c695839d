"""Extended attributes by several programs at once, and those of namespaces that are not everybody's (xattr(7))."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.mount import children
from tests.mount.blocking import ENOUGH
from tests.mount.conftest import Place

USER = 12345
PATIENCE = 60.0  # for what takes a second or two on an idle machine
RACERS, ROUNDS = 4, 50

RACE = """
    path, number, rounds = sys.argv[1], sys.argv[2].encode(), int(sys.argv[3])
    print("ready", flush=True)
    sys.stdin.readline()
    won = []
    for i in range(rounds):
        try:
            os.setxattr(path, f"user.{i}", number, os.XATTR_CREATE)
            won.append(i)
        except FileExistsError:
            pass
    print(json.dumps(won))
"""


def race(paths: list[Path]) -> list[list[int]]:
    """The rounds that each program won, with one program for each path."""
    programs = [children.spawn(RACE, path, number, ROUNDS) for number, path in enumerate(paths)]
    for program in programs:
        assert children.read_line(program, ENOUGH) == "ready"
    for program in programs:
        assert program.stdin is not None
        program.stdin.write("\n")
        program.stdin.flush()
    return [json.loads(children.finish(program, PATIENCE)) for program in programs]


@pytest.mark.parametrize("where", ["guest", "both"])
def test_one_of_many_creates(place: Place, where: str) -> None:
    """XATTR_CREATE is one step, on the host: whoever else creates, in the guest or beside it, exactly one does."""
    (place.src / "file").touch()
    guest, host = place.mnt / "file", place.src / "file"
    won = race([guest, guest, host, host] if where == "both" else [guest] * RACERS)
    assert sorted(i for rounds in won for i in rounds) == list(range(ROUNDS))
    for number, rounds in enumerate(won):
        assert {os.getxattr(host, f"user.{i}") for i in rounds} <= {b"%d" % number}


def test_create_and_replace_go_by_the_host(place: Place) -> None:
    """And not by what the guest saw last."""
    guest, host = place.mnt / "file", place.src / "file"
    guest.touch()
    os.setxattr(guest, "user.x", b"1")
    os.removexattr(host, "user.x")
    with pytest.raises(OSError, match="No data available"):
        os.setxattr(guest, "user.x", b"2", os.XATTR_REPLACE)
    os.setxattr(guest, "user.x", b"3", os.XATTR_CREATE)
    os.removexattr(guest, "user.x")
    os.setxattr(host, "user.x", b"4")
    with pytest.raises(FileExistsError):
        os.setxattr(guest, "user.x", b"5", os.XATTR_CREATE)
    os.setxattr(guest, "user.x", b"6", os.XATTR_REPLACE)
    assert os.getxattr(host, "user.x") == b"6"


PROTECTED = """
    path = sys.argv[1]
    def attempt(call, *arguments):
        try:
            return repr(call(path, *arguments))
        except OSError as error:
            return errno.errorcode[error.errno]
    # Without the capability: capset(2), version 3, with nothing permitted.
    if len(sys.argv) > 2:
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        assert ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)()) == 0
    found = {"names": sorted(os.listxattr(path))}
    for name in ("security.test", "trusted.test"):
        found[name] = [
            attempt(os.getxattr, name),
            attempt(os.setxattr, name, b"new"),
            attempt(os.setxattr, name, b"new", os.XATTR_CREATE),
            attempt(os.removexattr, name),
        ]
    print(json.dumps(found))
"""


@pytest.mark.parametrize("who", ["a user", "the owner", "root without capabilities"])
def test_what_is_for_administrators(place: Place, who: str) -> None:
    """security.* may be read by all, trusted.* is hidden from all but CAP_SYS_ADMIN: as on the host, error by error."""
    found = []
    for top, shown in ((place.twin, place.twin), (place.src, place.mnt)):
        top.chmod(0o755)
        path = top / "file"
        path.touch()
        path.chmod(0o666)
        if who == "the owner":
            os.chown(path, USER, USER)
        for name in ("user.test", "security.test", "trusted.test"):
            os.setxattr(path, name, b"value")
        arguments = ["drop"] if who == "root without capabilities" else []
        user = None if arguments else USER
        found.append(json.loads(children.run(PROTECTED, shown / "file", *arguments, user=user, timeout=PATIENCE)))
        assert os.getxattr(path, "security.test") == os.getxattr(path, "trusted.test") == b"value"
    assert found[1] == found[0]
    assert "trusted.test" not in found[1]["names"] and "user.test" in found[1]["names"]
    assert found[1]["security.test"][0] == "b'value'" and found[1]["trusted.test"][0] == "ENODATA"
