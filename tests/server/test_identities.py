"""Whose ids stand for whose: the maps at their edges, and every way on which an id goes in or comes out."""

import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusepipe.server import Policy, PolicyError, ServerOptions, start_session
from fusepipe.server import Volume as Served
from fusepipe.server.policy import check_extents, parse_extent, parse_squash
from fusepipe.syscalls import IdExtent, IdMap
from fusepipe.wire import Op
from fusepipe.wire import messages as m
from tests.server.processes import connected, ended
from tests.server.sessions import Client
from tests.server.volume import ROOT, Volume, fails, needs_root

NOBODY = 65534
LAST = 0xFFFFFFFE
NO_ID = 0xFFFFFFFF


# ---- maps ----


@st.composite
def maps(draw: st.DrawFn) -> tuple[tuple[int, int, int], ...]:
    """Extents that overlap on neither side, some of them at the ends of what there is."""
    count = draw(st.integers(0, 5))
    sides = []
    sizes = draw(st.lists(st.integers(1, 50), min_size=count, max_size=count))
    for _ in range(2):
        order = draw(st.permutations(range(count)))
        at = draw(st.sampled_from([0, 0, 1, 1000]))
        firsts = [0] * count
        for index in order:
            firsts[index] = at
            at += sizes[index] + draw(st.sampled_from([0, 0, 1, 65_000]))
        if count and draw(st.booleans()):
            firsts[order[-1]] = LAST + 1 - sizes[order[-1]]
        sides.append(firsts)
    return tuple(zip(*sides, sizes, strict=True))


def edges(extents: tuple[tuple[int, int, int], ...]) -> set[int]:
    """Every id at which something may change."""
    found = {0, 1, NOBODY - 1, NOBODY, NOBODY + 1, LAST, NO_ID}
    for guest, host, size in extents:
        for first in (guest, host):
            found |= {first - 1, first, first + 1, first + size - 1, first + size}
    return {one for one in found if 0 <= one <= NO_ID}


@given(maps(), st.booleans())
def test_a_map_is_what_its_extents_say(extents: tuple[tuple[int, int, int], ...], squash_root: bool) -> None:
    check_extents(extents)
    ids = IdMap(tuple(IdExtent(*extent) for extent in extents), squash_root)
    forth = {guest + n: host + n for guest, host, size in extents for n in range(size)}
    for one in edges(extents):
        wanted = forth.get(one) if extents else one
        if one == NO_ID:
            assert ids.to_host(one) is None
        elif squash_root and one == 0:
            assert ids.to_host(one) == NOBODY
        else:
            assert ids.to_host(one) == wanted
    back = {host: guest for guest, host in forth.items()}
    for one in edges(extents) - {NO_ID}:
        shown = back.get(one) if extents else one
        assert ids.to_guest(one) == (None if squash_root and shown == 0 else shown)


@given(maps(), st.booleans(), st.integers(0, NO_ID))
def test_nobody_becomes_root_who_is_not_mapped_to_it(
    extents: tuple[tuple[int, int, int], ...], squash_root: bool, guest: int
) -> None:
    ids = IdMap(tuple(IdExtent(*extent) for extent in extents), squash_root)
    policy = Policy(map_uid=extents, squash_root=squash_root)
    for one in edges(extents) | {guest}:
        if ids.to_host(one) == 0:
            assert policy.root_on_host()
            assert any(host == 0 and one == first for first, host, _ in extents) or (not extents and one == 0)
            assert not (squash_root and one == 0)


@given(maps(), st.booleans(), st.integers(0, LAST))
def test_there_and_back(extents: tuple[tuple[int, int, int], ...], squash_root: bool, guest: int) -> None:
    ids = IdMap(tuple(IdExtent(*extent) for extent in extents), squash_root)
    for one in (edges(extents) | {guest}) - {NO_ID}:
        host = ids.to_host(one)
        if host is not None and not (squash_root and one == 0):
            assert ids.to_guest(host) == one


@given(st.integers(0, LAST), st.integers(0, LAST))
def test_squashed_to_one(guest: int, one: int) -> None:
    ids = IdMap(squash_all=one)
    assert {ids.to_host(guest), ids.to_host(0), ids.to_host(LAST)} == {one}
    assert ids.to_host(NO_ID) is None
    assert ids.to_guest(guest) == guest


@pytest.mark.parametrize(
    ("extents", "part"),
    [
        (((0, 0, 0),), "not a range"),
        (((0, 0, NO_ID + 1),), "not a range"),
        (((1, 0, NO_ID),), "not a range"),
        (((0, 1, NO_ID),), "not a range"),
        (((NO_ID, 0, 1),), "not a range"),
        (((0, 10, 5), (4, 20, 1)), "overlap on the guest's side"),
        (((0, 10, 5), (5, 14, 1)), "overlap on the host's side"),
        (((0, 10, 1), (0, 20, 1)), "overlap on the guest's side"),
        (tuple((n, n, 1) for n in range(341)), "at most 340"),
    ],
)
def test_maps_that_cannot_be(extents: tuple[tuple[int, int, int], ...], part: str) -> None:
    with pytest.raises(PolicyError, match=part):
        Policy(map_uid=extents)
    with pytest.raises(PolicyError, match=part):
        Policy(map_gid=extents)


def test_the_widest_map() -> None:
    assert Policy(map_uid=((0, 0, NO_ID),)).root_on_host()
    assert IdMap((IdExtent(0, 0, NO_ID),)).to_host(LAST) == LAST


@pytest.mark.parametrize("text", ["", "0", "0:1", "0:1:2:3", "a:1:1", "0:-1:1", "0:1: 1", "0:1:٣", "0:0:99999999999"])
def test_texts_that_are_no_extent(text: str) -> None:
    with pytest.raises(PolicyError):
        parse_extent(text)


def test_texts() -> None:
    assert parse_extent("0:100000:65536") == (0, 100000, 65536)
    assert parse_squash("1000:100") == (1000, 100)
    for text in ("", "1000", "a:b", f"{NO_ID}:0", "0:1:2"):
        with pytest.raises(PolicyError):
            parse_squash(text)
    with pytest.raises(PolicyError, match="squash-all"):
        Policy(squash_root=True, squash_all=(1, 1))
    with pytest.raises(PolicyError, match="squash-all"):
        Policy(map_uid=((0, 1, 1),), squash_all=(1, 1))


# ---- operations ----

BASE, COUNT = 100_000, 1000
MAPPED = Policy(map_uid=((0, BASE, COUNT),), map_gid=((0, BASE, COUNT),))


@pytest.fixture
def mapped(open_path: Path, serve: Callable[..., Volume]) -> Volume:
    """A volume whose ids 0 to 999 are 100000 to 100999 of the host, and that belongs to its guest's root."""
    os.chown(open_path, BASE, BASE)
    return serve(open_path, policy=MAPPED)


def owner(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_uid, status.st_gid


@needs_root
@pytest.mark.parametrize(("uid", "gid"), [(0, 0), (0, 5), (5, 0), (999, 999)])
def test_what_is_made_belongs_to_the_mapped_caller(mapped: Volume, uid: int, gid: int) -> None:
    mapped.path.chmod(0o777)
    who = (uid, gid, (7, 5000))
    made = [
        mapped(Op.MKDIR, ROOT, b"d", 0o755, 0, *who).entry,
        mapped(Op.SYMLINK, ROOT, b"l", b"target", *who).entry,
        mapped(Op.MKNOD, ROOT, b"n", stat.S_IFIFO | 0o600, 0, 0, *who).entry,
        mapped(Op.CREATE, ROOT, b"f", os.O_RDWR, 0o600, 0, *who, False).entry,
    ]
    for entry, name in zip(made, "dlnf", strict=True):
        assert owner(mapped.path / name) == (BASE + uid, BASE + gid)
        assert (entry.attr.uid, entry.attr.gid) == (uid, gid)
        assert mapped(Op.GETATTR, entry.node, 0).attr[3:5] == (uid, gid)
        assert mapped(Op.STATX, entry.node, 0, 0, 0x7FF).attr[3:5] == (uid, gid)
    handle = mapped(Op.OPENDIR, ROOT, 0).handle
    entries = {entry.name: entry.attr for entry in mapped.page(handle)}
    assert all(attr is None or (attr.uid, attr.gid) == (uid, gid) for name, attr in entries.items() if name in b"dlnf")
    assert mapped(Op.TMPFILE, ROOT, os.O_RDWR, 0o600, 0, *who).entry.attr[3:5] == (uid, gid)


@needs_root
@pytest.mark.parametrize(("uid", "gid"), [(COUNT, 0), (0, COUNT), (NOBODY, NOBODY), (LAST, 0), (BASE, 0)])
def test_who_is_not_mapped_makes_nothing(mapped: Volume, uid: int, gid: int) -> None:
    mapped.path.chmod(0o777)
    with fails(errno.EOVERFLOW):
        mapped(Op.MKDIR, ROOT, b"d", 0o755, 0, uid, gid, ())
    with fails(errno.EOVERFLOW):
        mapped(Op.CREATE, ROOT, b"f", os.O_RDWR, 0o600, 0, uid, gid, (), False)
    with fails(errno.EOVERFLOW):
        mapped(Op.ACCESS, ROOT, 4, uid, gid, ())
    assert os.listdir(mapped.path) == []


@needs_root
def test_the_guest_s_root_is_root_among_its_own(mapped: Volume) -> None:
    """In a directory of another of its users, but without what is the host's root's alone."""
    (mapped.path / "home").mkdir(mode=0o700)
    os.chown(mapped.path / "home", BASE + 5, BASE + 5)
    home = mapped.lookup(b"home").node
    assert mapped(Op.MKDIR, home, b"d", 0o755, 0, 0, 0, ()).entry.attr.uid == 0
    mapped(Op.ACCESS, home, 7, 0, 0, ())
    with fails(errno.EACCES):
        mapped(Op.MKDIR, home, b"e", 0o755, 0, 6, 6, ())
    with fails(errno.EPERM):
        mapped(Op.MKNOD, ROOT, b"null", stat.S_IFCHR | 0o666, os.makedev(1, 3), 0, 0, 0, ())
    assert os.geteuid() == 0
    assert (
        "CapEff:\t" + Path("/proc/self/status").read_text().split("CapPrm:\t")[1].split("\n")[0]
        in Path("/proc/thread-self/status").read_text()
    ), "the thread has all its capabilities again"


@needs_root
def test_chown(mapped: Volume) -> None:
    entry, _ = created(mapped, b"f")
    assert mapped.setattr(entry.node, 2 | 4, uid=5, gid=6)[3:5] == (5, 6)
    assert owner(mapped.path / "f") == (BASE + 5, BASE + 6)
    assert mapped.setattr(entry.node, 2, uid=0)[3:5] == (0, 6)
    for uid in (COUNT, BASE, NOBODY, LAST):
        with fails(errno.EOVERFLOW):
            mapped.setattr(entry.node, 2, uid=uid)
        with fails(errno.EOVERFLOW):
            mapped.setattr(entry.node, 4, gid=uid)
    assert owner(mapped.path / "f") == (BASE, BASE + 6)


def created(volume: Volume, name: bytes, uid: int = 0) -> tuple[Any, int]:
    reply = volume(Op.CREATE, ROOT, name, os.O_RDWR, 0o644, 0, uid, uid, (), False)
    return reply.entry, reply.handle


@needs_root
@pytest.mark.parametrize(("uid", "gid"), [(0, 0), (0, BASE), (BASE, 0), (BASE + COUNT, BASE), (BASE - 1, BASE)])
def test_what_belongs_to_somebody_who_is_not_mapped(mapped: Volume, uid: int, gid: int) -> None:
    for name, mode in (("open", 0o644), ("closed", 0o640)):
        (mapped.path / name).write_bytes(b"the host's")
        (mapped.path / name).chmod(mode)
    for name, mode in (("public", 0o755), ("private", 0o750)):
        (mapped.path / name).mkdir()
        (mapped.path / name / "inner").touch()
        (mapped.path / name).chmod(mode)
    for name in os.listdir(mapped.path):
        os.chown(mapped.path / name, uid, gid)
    file, closed = mapped.lookup(b"open"), mapped.lookup(b"closed")
    public, private = mapped.lookup(b"public").node, mapped.lookup(b"private").node
    assert file.attr.uid == (NOBODY if uid != BASE else 0) and file.attr.gid == (NOBODY if gid != BASE else 0)
    assert mapped.read(mapped.open(file.node, os.O_RDONLY)) == b"the host's"
    refused: list[tuple[int, Callable[[], Any]]] = [
        (errno.EACCES, lambda: mapped.open(file.node, os.O_RDWR)),
        (errno.EACCES, lambda: mapped.open(file.node, os.O_RDONLY | os.O_TRUNC)),
        (errno.EACCES, lambda: mapped.open(closed.node, os.O_RDONLY)),
        (errno.EACCES, lambda: mapped(Op.CREATE, ROOT, b"open", os.O_RDWR, 0o644, 0, 0, 0, (), False)),
        (errno.EACCES, lambda: mapped(Op.OPENDIR, private, 0)),
        (errno.EACCES, lambda: mapped.lookup(b"inner", private)),
        (errno.EACCES, lambda: mapped(Op.MKDIR, public, b"d", 0o755, 0, 0, 0, ())),
        (errno.EACCES, lambda: mapped(Op.TMPFILE, public, os.O_RDWR, 0o600, 0, 0, 0, ())),
        (errno.EACCES, lambda: mapped(Op.UNLINK, public, b"inner")),
        (errno.EACCES, lambda: mapped(Op.RENAME, public, b"inner", ROOT, b"mine", 0)),
        (errno.EACCES, lambda: mapped(Op.LINK, mapped.lookup(b"mine").node, public, b"mine")),
        (errno.EOVERFLOW, lambda: mapped(Op.UNLINK, ROOT, b"open")),
        (errno.EOVERFLOW, lambda: mapped(Op.RMDIR, ROOT, b"public")),
        (errno.EOVERFLOW, lambda: mapped(Op.RENAME, ROOT, b"open", ROOT, b"mine", 0)),
        (errno.EOVERFLOW, lambda: mapped(Op.RENAME, ROOT, b"mine", ROOT, b"open", 0)),
        (errno.EOVERFLOW, lambda: mapped(Op.LINK, file.node, ROOT, b"linked")),
        (errno.EOVERFLOW, lambda: mapped.setattr(file.node, 1, mode=0o777)),
        (errno.EOVERFLOW, lambda: mapped.setattr(file.node, 2 | 4, uid=0, gid=0)),
        (errno.EOVERFLOW, lambda: mapped.setattr(file.node, 8, size=0)),
        (errno.EACCES, lambda: mapped(Op.SETXATTR, file.node, b"user.x", b"1", 0)),
        (errno.EACCES, lambda: mapped(Op.GETXATTR, closed.node, b"user.x")),
        (errno.EACCES, lambda: mapped(Op.ACCESS, file.node, os.W_OK, 0, 0, ())),
    ]  # fmt: skip
    created(mapped, b"mine")
    before = sorted(os.listdir(mapped.path))
    for number, act in refused:
        with fails(number):
            act()
    assert sorted(os.listdir(mapped.path)) == before and (mapped.path / "open").read_bytes() == b"the host's"
    assert mapped.lookup(b"inner", public).attr.size == 0


ACL = struct.Struct("<HHI")


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(ACL.pack(*entry) for entry in entries)


def named(uid: int, gid: int) -> bytes:
    return acl((1, 6, NO_ID), (2, 4, uid), (4, 4, NO_ID), (8, 4, gid), (0x10, 6, NO_ID), (0x20, 0, NO_ID))


@needs_root
def test_acls(mapped: Volume) -> None:
    entry, _ = created(mapped, b"f")
    name = b"system.posix_acl_access"
    mapped(Op.SETXATTR, entry.node, name, named(5, 999), 0)
    assert os.getxattr(mapped.path / "f", name) == named(BASE + 5, BASE + 999)
    assert mapped(Op.GETXATTR, entry.node, name).value == named(5, 999)
    for uid, gid in ((COUNT, 0), (0, COUNT), (NOBODY, 5)):
        with fails(errno.EINVAL):
            mapped(Op.SETXATTR, entry.node, name, named(uid, gid), 0)
    os.setxattr(mapped.path / "f", name, named(0, BASE + COUNT))
    assert mapped(Op.GETXATTR, entry.node, name).value == named(NOBODY, NOBODY)
    for value in (b"x", b"\2\0\0\0x", struct.pack("<I", 3)):
        with fails(errno.EOPNOTSUPP if value[0] == 3 else errno.EINVAL):
            mapped(Op.SETXATTR, entry.node, name, value, 0)


@needs_root
def test_what_only_the_host_s_root_may_leave(mapped: Volume) -> None:
    entry, _ = created(mapped, b"f")
    capability = struct.pack("<IIIII", 0x02000001, 1 << 7, 0, 0, 0)
    for name in (b"security.capability", b"security.other", b"trusted.other"):
        with fails(errno.EPERM):
            mapped(Op.SETXATTR, entry.node, name, capability, 0)
        with fails(errno.EPERM):
            mapped(Op.REMOVEXATTR, entry.node, name)
    with fails(errno.ENODATA):
        mapped(Op.GETXATTR, entry.node, b"trusted.other")


@needs_root
def test_root_is_nobody(open_path: Path, serve: Callable[..., Volume]) -> None:
    open_path.chmod(0o777)
    os.chown(open_path, 1000, 1000)
    (open_path / "root's").write_bytes(b"the host's")
    volume = serve(open_path, policy=Policy(squash_root=True))
    entry, _ = created(volume, b"f")
    assert owner(open_path / "f") == (NOBODY, NOBODY) == (entry.attr.uid, entry.attr.gid)
    entry, _ = created(volume, b"g", uid=1000)
    assert owner(open_path / "g") == (1000, 1000) == (entry.attr.uid, entry.attr.gid)
    theirs = volume.lookup(b"root's")
    assert (theirs.attr.uid, theirs.attr.gid) == (NOBODY, NOBODY)
    with fails(errno.EACCES):
        volume.open(theirs.node, os.O_RDWR)
    with fails(errno.EOVERFLOW):
        volume(Op.UNLINK, ROOT, b"root's")
    assert volume.setattr(entry.node, 2, uid=0).uid == NOBODY
    assert owner(open_path / "g")[0] == NOBODY
    with fails(errno.EPERM):
        volume(Op.MKNOD, ROOT, b"null", stat.S_IFCHR | 0o666, os.makedev(1, 3), 0, 0, 0, ())


# ---- what guests may not leave ----


@needs_root
def test_no_setuid(open_path: Path, serve: Callable[..., Volume]) -> None:
    volume = serve(open_path, policy=Policy(no_setuid=True))
    who = (0, 0, ())
    acts: list[Callable[[int], Any]]
    for mode in (0o4755, 0o2755, 0o6755):
        acts = [
            lambda mode: volume(Op.CREATE, ROOT, b"f", os.O_RDWR, mode, 0, *who, False),
            lambda mode: volume(Op.MKNOD, ROOT, b"f", stat.S_IFREG | mode, 0, 0, *who),
            lambda mode: volume(Op.TMPFILE, ROOT, os.O_RDWR, mode, 0, *who),
        ]
        for act in acts:
            with fails(errno.EPERM):
                act(mode)
    with fails(errno.EPERM):
        volume(Op.MKDIR, ROOT, b"d", 0o4755, 0, *who)
    entry, handle = created(volume, b"f")
    for mode in (0o4755, 0o2755):
        with fails(errno.EPERM):
            volume.setattr(entry.node, 1, mode=mode)
        with fails(errno.EPERM):
            volume.setattr(entry.node, 1, handle, mode=mode)
    with fails(errno.EPERM):
        volume(Op.SETXATTR, entry.node, b"security.capability", struct.pack("<IIIII", 0x02000001, 1, 0, 0, 0), 0)
    shared = volume.mkdir(b"shared").node
    assert volume.setattr(shared, 1, mode=0o2775).mode & stat.S_ISGID, "a directory's gives nobody rights"
    changes: list[Callable[[], Any]] = [
        lambda: volume.write(handle, b"x"),
        lambda: volume.setattr(entry.node, 8, size=0),
        lambda: volume.open(entry.node, os.O_WRONLY | os.O_TRUNC),
        lambda: volume(Op.CREATE, ROOT, b"f", os.O_RDWR | os.O_TRUNC, 0o755, 0, *who, False),
        lambda: volume(Op.FALLOCATE, handle, 0, 0, 10, False),
        lambda: volume(Op.COPY_FILE_RANGE, handle, 0, handle, 5, 5, False),
        lambda: volume.setattr(entry.node, 2, uid=5),
    ]
    for change in changes:
        os.chown(open_path / "f", 0, 0)
        (open_path / "f").chmod(0o6755)
        volume(Op.GETATTR, entry.node, 0)
        change()
        assert (open_path / "f").stat().st_mode & 0o6000 == 0, "what a guest writes is no set-uid program"


@needs_root
def test_no_devices(open_path: Path, serve: Callable[..., Volume]) -> None:
    volume = serve(open_path, policy=Policy(no_devices=True))
    for kind, device in ((stat.S_IFCHR, os.makedev(1, 3)), (stat.S_IFBLK, os.makedev(7, 0)), (stat.S_IFBLK, 0)):
        with fails(errno.EPERM):
            volume(Op.MKNOD, ROOT, b"x", kind | 0o600, device, 0, 0, 0, ())
    volume(Op.MKNOD, ROOT, b"whiteout", stat.S_IFCHR, 0, 0, 0, 0, ())
    volume(Op.MKNOD, ROOT, b"fifo", stat.S_IFIFO | 0o600, 0, 0, 0, 0, ())
    assert sorted(os.listdir(open_path)) == ["fifo", "whiteout"]


# ---- sessions ----


@pytest.fixture(params=[False, True], ids=["python", "native"])
def guest(request: pytest.FixtureRequest, open_path: Path) -> Iterator[Callable[[Policy], Client]]:
    """A client of a real session process."""
    processes, clients = [], []

    def make(policy: Policy) -> Client:
        process = start_session(Served("v", str(open_path), policy=policy), ServerOptions(native=request.param))
        processes.append(process)
        clients.append(connected(process))
        return clients[-1]

    yield make
    for client in clients:
        client.close()
    for process in processes:
        assert ended(process) == 0
        process.release()


@needs_root
def test_a_session_with_a_map(guest: Callable[[Policy], Client], open_path: Path) -> None:
    os.chown(open_path, BASE, BASE)
    (open_path / "theirs").write_bytes(b"the host's")
    client = guest(MAPPED)
    made = client.call(m.CreateRequest(1, b"f", os.O_RDWR, 0o644, 0, 0, 0, (), False))[1]
    assert owner(open_path / "f") == (BASE, BASE) and made.entry.attr[3:5] == (0, 0)
    assert client.call(m.LookupRequest(1, b"f"))[1].entry.attr[3:5] == (0, 0)
    assert client.call(m.GetattrRequest(made.entry.node, 0))[1].attr[3:5] == (0, 0)
    assert client.call(m.SetattrRequest(made.entry.node, 0, 2, 0, 7, 0, 0, 0, 0, 0, 0))[1].attr[3:5] == (7, 0)
    assert client.call(m.SetattrRequest(made.entry.node, 0, 2, 0, 5000, 0, 0, 0, 0, 0, 0))[0] == errno.EOVERFLOW
    assert client.call(m.MkdirRequest(1, b"d", 0o755, 0, 5000, 0, ()))[0] == errno.EOVERFLOW
    theirs = client.call(m.LookupRequest(1, b"theirs"))[1].entry
    assert theirs.attr[3:5] == (NOBODY, NOBODY)
    assert client.call(m.OpenRequest(theirs.node, os.O_RDWR, False, 0, 0))[0] == errno.EACCES
    assert client.call(m.UnlinkRequest(1, b"theirs"))[0] == errno.EOVERFLOW
    assert client.call(m.RenameRequest(1, b"f", 1, b"theirs", 0))[0] == errno.EOVERFLOW
    assert client.call(m.UnlinkRequest(1, b"f"))[0] == 0


@needs_root
def test_a_session_as_one_user(guest: Callable[[Policy], Client], open_path: Path) -> None:
    """The host's kernel itself refuses what this user may not do."""
    os.chown(open_path, 1234, 5678)
    (open_path / "theirs").write_bytes(b"the host's")
    (open_path / "theirs").chmod(0o600)
    client = guest(Policy(squash_all=(1234, 5678)))
    for number, (uid, gid) in enumerate([(0, 0), (1000, 1000), (1234, 5678)]):
        name = b"f%d" % number
        made = client.call(m.CreateRequest(1, name, os.O_RDWR, 0o644, 0, uid, gid, (), False))[1].entry
        assert owner(open_path / name.decode()) == (1234, 5678) == made.attr[3:5]
        assert client.call(m.SetattrRequest(made.node, 0, 2 | 4, 0, uid, gid, 0, 0, 0, 0, 0))[0] == 0
    theirs = client.call(m.LookupRequest(1, b"theirs"))[1].entry.node
    assert client.call(m.OpenRequest(theirs, os.O_RDONLY, False, 0, 0))[0] == errno.EACCES
    assert client.call(m.SetattrRequest(theirs, 0, 1, 0o666, 0, 0, 0, 0, 0, 0, 0))[0] == errno.EPERM
    assert client.call(m.MknodRequest(1, b"n", stat.S_IFCHR, os.makedev(1, 3), 0, 0, 0, ()))[0] == errno.EPERM
    (open_path / "closed").mkdir(mode=0o700)
    closed = client.call(m.LookupRequest(1, b"closed"))[1].entry.node
    assert client.call(m.LookupRequest(closed, b"x"))[0] == errno.EACCES
    assert client.call(m.MkdirRequest(closed, b"x", 0o755, 0, 0, 0, ()))[0] == errno.EACCES
