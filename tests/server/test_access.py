"""Who may connect, whose the socket is, what is warned of, and that no secret is ever logged."""

import base64
import os
import stat
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fusepipe.cli.serve import serve as command
from fusepipe.server import Access, Policy, ServerError, ServerOptions, Volume, VolumeError
from fusepipe.server import listener as module
from fusepipe.server.exposure import exposed
from fusepipe.transport import Peer, SocketFile
from fusepipe.wire import ClientConnection, ErrorCode, encode_request, opening
from fusepipe.wire import messages as m
from fusepipe.wire.frames import FrameSender
from tests.hostile.rogue import Rogue
from tests.server.processes import client, dial, serving, until
from tests.server.volume import needs_root
from tests.support.program import Programs

pytestmark = pytest.mark.usefixtures("lines")

ME = os.geteuid()
SOMEBODY = 54321


def refused(path: Path, name: bytes = b"v") -> tuple[ErrorCode, str]:
    with client(path, name) as asking:
        assert asking.refused is not None
        return asking.refused.code, asking.refused.text


# ---- the socket's file ----


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o777, 0o000])
def test_socket_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "s"
    with serving([f"unix:{path}"], [Volume("v", str(tmp_path))], socket_file=SocketFile(mode)):
        assert stat.S_IMODE(path.lstat().st_mode) == mode
    assert not path.exists()


@needs_root
@pytest.mark.parametrize(("uid", "gid"), [(SOMEBODY, None), (None, SOMEBODY), (SOMEBODY, SOMEBODY + 1)])
def test_socket_owner(tmp_path: Path, uid: int | None, gid: int | None) -> None:
    addresses = [f"unix:{tmp_path}/s", f"firecracker:{tmp_path}/v:52"]
    with serving(addresses, [Volume("v", str(tmp_path))], socket_file=SocketFile(0o660, uid, gid)):
        for name in ("s", "v_52"):
            status = (tmp_path / name).lstat()
            assert (status.st_uid, status.st_gid) == (uid or ME, gid or os.getegid())
            assert stat.S_IMODE(status.st_mode) == 0o660


def test_options_of_serve(program: Programs, tmp_path: Path) -> None:
    listening = ("--listen", f"unix:{tmp_path}/s", "--volume", f"data={tmp_path}")
    for options, part in [
        (("--socket-mode", "9"), "not a mode in octal"),
        (("--socket-mode", "7777"), "not a mode in octal"),
        (("--socket-owner", "nobody-of-that-name"), "there is no user"),
        (("--socket-owner", "root:nobody-of-that-name"), "there is no group"),
        (("--socket-owner", ":"), "neither USER nor"),
        (("--allow-uid", "nobody-of-that-name"), "there is no user"),
        (("--map-uid", "0:0"), "GUEST:HOST:COUNT"),
        (("--map-uid", "0:0:5", "--map-uid", "3:9:1"), "overlap"),
        (("--squash-all", "1000"), "UID:GID"),
        (("--squash-all", "1000:1000", "--squash-root"), "leaves nothing"),
    ]:
        ended = CliRunner().invoke(command, [*listening, *options])
        assert ended.exit_code == 2 and part in " ".join(ended.output.split()), (options, ended.output)
    group = "root" if ME == 0 else str(os.getegid())
    owner = f"{'root' if ME == 0 else ME}:{group}"
    serve = program("serve", *listening, "--socket-mode", "0640", "--socket-owner", owner, "--allow-uid", str(ME))
    serve.ready()
    assert stat.S_IMODE((tmp_path / "s").lstat().st_mode) == 0o640
    with client(tmp_path / "s", b"data") as mine:
        assert mine.call(m.GetattrRequest(1, 0))[0] == 0
    assert serve.stop() == 0


# ---- lists ----


def test_users_of_the_server(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with serving([f"unix:{path}"], [Volume("v", str(tmp_path))], ServerOptions(allowed_uids=(SOMEBODY,))):
        code, text = refused(path)
        assert code is ErrorCode.REFUSED and str(ME) in text
    with (
        serving([f"unix:{path}"], [Volume("v", str(tmp_path))], ServerOptions(allowed_uids=(SOMEBODY, ME))),
        client(path) as mine,
    ):
        assert mine.call(m.GetattrRequest(1, 0))[0] == 0


def test_users_of_a_volume(tmp_path: Path) -> None:
    path = tmp_path / "s"
    volumes = [
        Volume("mine", str(tmp_path), access=Access(uids=(ME,))),
        Volume("theirs", str(tmp_path), access=Access(uids=(SOMEBODY,))),
        Volume("machine", str(tmp_path), access=Access(cids=(3,))),
        Volume("all", str(tmp_path)),
    ]
    with serving([f"unix:{path}"], volumes):
        for name in (b"theirs", b"machine"):
            code, text = refused(path, name)
            assert code is ErrorCode.REFUSED and "may not use the volume" in text
        for name in (b"mine", b"all"):
            with client(path, name) as admitted:
                assert admitted.call(m.GetattrRequest(1, 0))[0] == 0
                admitted.attach(dial(path))
                assert admitted.call(m.GetattrRequest(1, 0), via=1)[0] == 0


def test_another_s_secret_is_no_admission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Further connections are asked as the first one was."""
    path = tmp_path / "s"
    volume = Volume("v", str(tmp_path), access=Access(uids=(ME,)))
    with serving([f"unix:{path}"], [volume]), client(path) as mine:
        assert mine.reply is not None
        with monkeypatch.context() as patched:
            patched.setattr(Access, "admits", lambda *_: False)
            with Rogue(dial(path)) as thief:
                thief.values(None, 1, 2, mine.reply.session, bytes(mine.reply.secret), [])
                assert thief.refused()[0] is ErrorCode.REFUSED
        assert mine.call(m.GetattrRequest(1, 0))[0] == 0


def test_lists() -> None:
    user, machine, nothing = Peer(uid=5, gid=6, pid=7), Peer(cid=3, port=9), Peer()
    assert all(Access().admits(peer) for peer in (user, machine, nothing))
    assert Access(uids=(5,)).admits(user) and not Access(uids=(6,)).admits(user)
    assert Access(cids=(3,)).admits(machine) and not Access(cids=(4,)).admits(machine)
    assert not Access(uids=(5,)).admits(machine) and not Access(cids=(3,)).admits(user)
    assert Access((5,), (3,)).admits(user) and Access((5,), (3,)).admits(machine)
    assert not any(access.admits(nothing) for access in (Access((5,)), Access(None, (3,)), Access((), ())))


# ---- crowds ----


def test_one_peer_does_not_take_all_sessions(tmp_path: Path) -> None:
    path, other = tmp_path / "s", tmp_path / "o"
    options = ServerOptions(max_sessions_per_peer=2)
    with (
        serving([f"unix:{path}", f"unix:{other}"], [Volume("v", str(tmp_path))], options),
        client(path) as one,
        client(path),
    ):
        code, text = refused(path)
        assert code is ErrorCode.LIMIT and "2 sessions already" in text
        with client(other) as elsewhere:
            assert elsewhere.call(m.GetattrRequest(1, 0))[0] == 0
        one.bye()

        def admitted() -> bool:
            with client(path) as again:
                return again.refused is None

        until(admitted)


def test_a_crowd_takes_nobody_else_s_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    path, other = tmp_path / "s", tmp_path / "o"
    with serving([f"unix:{path}", f"unix:{other}"], [Volume("v", str(tmp_path))]), ExitStack() as stack:
        lonely = stack.enter_context(dial(other))
        crowd = [stack.enter_context(dial(path)) for _ in range(8)]
        for sock in crowd[:4]:
            assert sock.recv(1) == b""
        hello = encode_request(None, 1, m.HelloRequest(b"fusepipe", 9, 0, 0, (), b"v", 1, 1, 1, 1, 1, 1, 1, 1, ""))
        lonely.sendall(b"".join(FrameSender().frame(hello)))
        assert lonely.recv(1000), "it was still there"


# ---- what is warned of ----


@needs_root
def test_what_guests_could_leave(open_path: Path, tmp_path: Path, lines: Any) -> None:
    def left(**changed: Any) -> list[str]:
        return exposed(Volume("v", str(open_path), **changed), privileged=True)

    assert left() == ["set-uid programs", "device nodes"]
    assert left(read_only=True) == left(policy=Policy(no_setuid=True, no_devices=True)) == []
    assert left(policy=Policy(no_setuid=True)) == ["device nodes"]
    for policy in (
        Policy(no_devices=True),
        Policy(squash_root=True),
        Policy(map_uid=((0, 100000, 10),)),
        Policy(squash_all=(5, 5)),
    ):
        assert left(policy=policy) == ["set-uid programs"]
    assert left(policy=Policy(map_uid=((5, 0, 1),))) == ["set-uid programs", "device nodes"]
    open_path.chmod(0o700)
    assert left() == []
    os.chown(open_path, SOMEBODY, 0)
    assert left() == ["set-uid programs", "device nodes"], "its owner can reach it"
    os.chown(open_path, 0, SOMEBODY)
    open_path.chmod(0o710)
    assert left() == ["set-uid programs", "device nodes"], "its group can"
    open_path.chmod(0o755)
    for policy, warned in ((Policy(), True), (Policy(no_setuid=True, no_devices=True), False)):
        with serving([f"unix:{tmp_path}/s"], [Volume("v", str(open_path), policy=policy)]):
            assert ("guests can leave there" in lines()) is warned


def test_being_somebody_else_needs_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    volume = Volume("v", str(tmp_path), policy=Policy(squash_all=(5, 5)))
    with pytest.raises(ServerError, match="by another user"), serving([f"unix:{tmp_path}/s"], [volume]):
        pass


# ---- volumes as they are written ----


@pytest.mark.parametrize(
    ("text", "volume"),
    [
        ("v=/a:no-setuid,no-devices", Volume("v", "/a", policy=Policy(True, True))),
        ("v=/a:ro,allow-cid=3+4,allow-uid=0", Volume("v", "/a", True, access=Access((0,), (3, 4)))),
        ("v=/a:map-uid=0:100:5+7:7:1", Volume("v", "/a", policy=Policy(map_uid=((0, 100, 5), (7, 7, 1))))),
        ("v=/a:map-gid=0:1:1,map-gid=2:2:1", Volume("v", "/a", policy=Policy(map_gid=((0, 1, 1), (2, 2, 1))))),
        ("v=/a:squash-root", Volume("v", "/a", policy=Policy(squash_root=True))),
        ("v=/a:squash-all=5:6,ro", Volume("v", "/a", True, Policy(squash_all=(5, 6)))),
        ("v=/with,comma:and:colon", Volume("v", "/with,comma:and:colon")),
        ("v=/with,comma:ro:ro", Volume("v", "/with,comma:ro", True)),
        ("v=/odd:no-setuid/", Volume("v", "/odd:no-setuid/")),
        ("v=/odd:rom", Volume("v", "/odd:rom")),
    ],
)
def test_options_of_a_volume(text: str, volume: Volume) -> None:
    assert Volume.parse(text) == volume
    assert Volume.parse(str(volume)) == volume


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("v=/a:ro,nosetuid", "did you mean no-setuid"),
        ("v=/a:ro,", "there is no option ''"),
        ("v=/a:ro=1", "takes no value"),
        ("v=/a:ro,allow-cid", "takes a value"),
        ("v=/a:allow-cid=", "is not a number"),
        ("v=/a:allow-cid=3+x", "is not a number"),
        ("v=/a:allow-uid=-1", "is not a number"),
        ("v=/a:map-uid=0:1", "GUEST:HOST:COUNT"),
        ("v=/a:map-uid=0:0:9+5:50:1", "overlap"),
        ("v=/a:squash-all=1:1,squash-root", "leaves nothing"),
        ("v=/a:squash-all=1:1+2:2", "one user only"),
    ],
)
def test_options_that_cannot_be(text: str, part: str) -> None:
    with pytest.raises(VolumeError, match=part):
        Volume.parse(text)


def test_what_holds_for_all_volumes() -> None:
    general = Policy(no_setuid=True, map_uid=((0, 100, 5),))
    assert Volume("v", "/a").under(general).policy == general
    own = Volume("v", "/a", policy=Policy(no_devices=True, squash_all=(1, 1))).under(general)
    assert own.policy == Policy(no_setuid=True, no_devices=True, squash_all=(1, 1))


# ---- secrets ----


def secret_of(frame: bytes) -> bytes:
    """The secret in the ATTACH that a client would send now."""
    opened = opening(frame)
    assert isinstance(opened, m.AttachRequest)
    return bytes(opened.secret)


def test_no_secret_is_logged(program: Programs, tmp_path: Path) -> None:
    """At the lowest level, with every request traced, with refusals and a resumption."""
    path = tmp_path / "s"
    arguments = ("serve", "--listen", f"unix:{path}", "--volume", f"v={tmp_path}")
    serve = program(*arguments, "--log-level", "debug", "--trace", "server,wire,client")
    serve.expect_log("client")
    serve.ready()
    secrets = set()
    with client(path) as mine:
        assert mine.reply is not None
        secrets.add(bytes(mine.reply.secret))
        mine.attach(dial(path))
        mine.call(m.GetattrRequest(1, 0))
        wrong = os.urandom(32)
        secrets.add(wrong)
        for op, fields in ((2, (wrong, [])), (3, (wrong, bytes(8 * 132), []))):
            with Rogue(dial(path)) as thief:
                thief.values(None, 1, op, mine.reply.session, *fields)
                thief.refused()
        mine.come_back(dial(path))
        request = mine.session.connection()
        assert isinstance(request, ClientConnection)
        secrets.add(secret_of(b"".join(bytes(piece) for piece in request.start())))
        mine.call(m.GetattrRequest(1, 0))
        mine.bye()
    assert serve.stop() == 0
    assert len(secrets) == 3
    assert serve.stderr.count("\n") > 5
    for secret in secrets:
        shown = [secret.hex(), repr(secret)[2:-1], base64.b64encode(secret).decode(), str(list(secret))]
        for text in (*shown, secret[:8].hex(), repr(secret[:8])[2:-1]):
            assert text not in serve.stderr
