"""New files belong to who made them: ids, supplementary groups, umask, set-gid directories, default ACLs.

Each check does the same in a twin directory on the host and compares what came out.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.mount import children
from tests.mount.conftest import Place

USER, GROUP, EXTRA = 12345, 12346, 12347

MAKE_ALL = """
import socket
os.chdir(sys.argv[1])
def attempt(name, make):
    try:
        make()
    except OSError as error:
        return errno.errorcode[error.errno]
    s = os.lstat(name)
    return [stat.filemode(s.st_mode), s.st_uid, s.st_gid]
def bind():
    with socket.socket(socket.AF_UNIX) as s:
        s.bind("socket")
found = {
    "file": attempt("file", lambda: os.close(os.open("file", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))),
    "executable": attempt("executable", lambda: os.close(os.open("executable", os.O_CREAT | os.O_RDWR, 0o777))),
    "special": attempt("special", lambda: os.close(os.open("special", os.O_CREAT | os.O_WRONLY, 0o6777))),
    "directory": attempt("directory", lambda: os.mkdir("directory", 0o777)),
    "sticky": attempt("sticky", lambda: os.mkdir("sticky", 0o1777)),
    "fifo": attempt("fifo", lambda: os.mkfifo("fifo", 0o666)),
    "node": attempt("node", lambda: os.mknod("node", stat.S_IFREG | 0o666)),
    "socket": attempt("socket", bind),
    "symlink": attempt("symlink", lambda: os.symlink("nowhere", "symlink")),
    "link": attempt("link", lambda: os.link("file", "link")),
    "device": attempt("device", lambda: os.mknod("device", stat.S_IFCHR | 0o600, os.makedev(1, 3))),
}
print(json.dumps(found))
"""


def prepare(directory: Path, *, owner: int = 0, group: int = 0, mode: int = 0o777, acl: str | None = None) -> Path:
    work = directory / "work"
    work.mkdir()
    os.chown(work, owner, group)
    work.chmod(mode)
    if acl is not None:
        subprocess.run(["setfacl", "-m", acl, work], check=True)
    return work


def acls(directory: Path) -> str:
    done = subprocess.run(["getfacl", "-cRnp", "."], cwd=directory, capture_output=True, text=True, check=True)
    return done.stdout


def compare(
    place: Place,
    *,
    user: int = USER,
    group: int = GROUP,
    groups: tuple[int, ...] = (),
    umask: int = 0o022,
    code: str = MAKE_ALL,
    owner: int = 0,
    directory_group: int = 0,
    mode: int = 0o777,
    acl: str | None = None,
) -> dict[str, object]:
    """Run `code` as that user in the mount and in the twin; both outcomes, modes, owners and ACLs must be equal."""
    found = []
    for top, seen in ((place.twin, place.twin), (place.src, place.mnt)):
        prepare(top, owner=owner, group=directory_group, mode=mode, acl=acl)
        found.append(json.loads(children.run(code, seen / "work", user=user, group=group, groups=groups, umask=umask)))
    assert found[1] == found[0]
    assert acls(place.src / "work") == acls(place.twin / "work")
    assert acls(place.mnt / "work") == acls(place.twin / "work")
    return dict(found[1])


def test_owner_and_umask(place: Place) -> None:
    found = compare(place, umask=0o027)
    assert found["file"] == ["-rw-r-----", USER, GROUP]
    assert found["directory"] == ["drwxr-x---", USER, GROUP]
    assert found["device"] == "EPERM"


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o777])
def test_umasks(place: Place, umask: int) -> None:
    compare(place, umask=umask)


def test_root_creates(place: Place) -> None:
    found = compare(place, user=0, group=0)
    assert found["device"] == ["crw-------", 0, 0]


def test_supplementary_group_gives_access(place: Place) -> None:
    """A directory that only its group may write, and the caller is in that group only by his supplementary groups."""
    found = compare(place, groups=(EXTRA,), directory_group=EXTRA, mode=0o770)
    assert found["file"] == ["-rw-r--r--", USER, GROUP]


def test_no_access_without_the_group(place: Place) -> None:
    found = compare(place, directory_group=EXTRA, mode=0o775)
    assert found["file"] == found["directory"] == found["symlink"] == "EACCES"


@pytest.mark.parametrize("groups", [(), (EXTRA,)])
def test_set_gid_directory(place: Place, groups: tuple[int, ...]) -> None:
    """New files get the directory's group, new directories its bit too; set-gid files of strangers lose theirs."""
    found = compare(place, groups=groups, directory_group=EXTRA, mode=0o2777)
    assert found["file"] == ["-rw-r--r--", USER, EXTRA]
    assert found["directory"] == ["drwxr-sr-x", USER, EXTRA]


def test_set_gid_directory_as_root(place: Place) -> None:
    compare(place, user=0, group=0, directory_group=EXTRA, mode=0o2777)


def test_set_gid_directory_written_by_its_group(place: Place) -> None:
    compare(place, groups=(EXTRA,), directory_group=EXTRA, mode=0o2770, umask=0o002)


@pytest.mark.parametrize("umask", [0o022, 0o077])
@pytest.mark.parametrize(
    "acl",
    [
        "d:u::rwx,d:g::rwx,d:o::r-x,d:m::rwx",
        "d:u::rwx,d:u:12399:rwx,d:g::r-x,d:o::---,d:m::rwx",
        "d:u::rw-,d:g::---,d:o::---",
    ],
)
def test_default_acl_replaces_the_umask(place: Place, acl: str, umask: int) -> None:
    compare(place, acl=acl, umask=umask)


def test_access_acl_gives_access(place: Place) -> None:
    """A user whom only the ACL allows in, and another whom only the ACL keeps out."""
    code = """
    def attempt(call):
        try:
            return call()
        except OSError as error:
            return errno.errorcode[error.errno]
    os.chdir(sys.argv[1])
    print(json.dumps({
        "read": attempt(lambda: open("secret").read()),
        "write": attempt(lambda: open("secret", "a").close()),
        "create": attempt(lambda: open("new", "w").close()),
        "list": attempt(lambda: sorted(os.listdir("."))),
    }))
    """
    found = {}
    for name, acl, user in (("allowed", "u:12345:r", USER), ("kept-out", "u:12345:---", USER), ("other", "u:1:r", 2)):
        seen = []
        for top, shown in ((place.twin, place.twin), (place.src, place.mnt)):
            work = top / name
            work.mkdir(mode=0o755)
            (work / "secret").write_text("secret")
            (work / "secret").chmod(0o644 if name == "kept-out" else 0o640)
            subprocess.run(["setfacl", "-m", acl, work / "secret"], check=True)
            subprocess.run(["setfacl", "-m", "u:12345:rwx" if name == "allowed" else "u:1:rx", work], check=True)
            seen.append(json.loads(children.run(code, shown / name, user=user)))
        assert seen[1] == seen[0], name
        found[name] = seen[1]
    assert found["allowed"]["read"] == "secret"
    assert found["allowed"]["create"] is None
    assert found["kept-out"]["read"] == found["other"]["read"] == "EACCES"


def test_acls_set_through_the_mount(place: Place) -> None:
    for top in (place.twin, place.mnt):
        (top / "directory").mkdir()
        (top / "file").touch(mode=0o640)
        subprocess.run(["setfacl", "-m", "u:12345:rw,g:12346:r", top / "file"], check=True)
        subprocess.run(["setfacl", "-d", "-m", "u:12345:rwx", top / "directory"], check=True)
        (top / "directory" / "child").touch()
        (top / "file").chmod(0o600)
        (top / "removed").touch()
        subprocess.run(["setfacl", "-m", "u:12345:rw", top / "removed"], check=True)
        subprocess.run(["setfacl", "-b", top / "removed"], check=True)
    assert acls(place.mnt) == acls(place.src) == acls(place.twin)


def test_root_acts_as_another_user(place: Place) -> None:
    """As a set-uid program does: only the filesystem ids differ from root's, and the new file has them."""
    place.src.chmod(0o777)
    out = children.run(
        """
        os.setgroups([12347])
        os.setegid(12346)
        os.seteuid(12345)
        os.close(os.open(sys.argv[1] + "/effective", os.O_CREAT | os.O_WRONLY, 0o644))
        os.seteuid(0)
        os.close(os.open(sys.argv[1] + "/root", os.O_CREAT | os.O_WRONLY, 0o644))
        for name in ("effective", "root"):
            s = os.stat(sys.argv[1] + "/" + name)
            print(s.st_uid, s.st_gid)
        """,
        place.mnt,
    )
    assert out.splitlines() == ["12345 12346", "0 12346"]


def test_permissions_of_others_are_checked(place: Place) -> None:
    """What root made for himself is closed to others, to read, list, enter, change and remove."""
    (place.mnt / "closed").mkdir(mode=0o700)
    (place.mnt / "closed" / "file").write_text("x")
    (place.mnt / "file").write_text("x")
    (place.mnt / "file").chmod(0o600)
    out = children.run(
        """
        os.chdir(sys.argv[1])
        def attempt(call, *args):
            try:
                call(*args)
                return "ok"
            except OSError as error:
                return errno.errorcode[error.errno]
        print(attempt(open, "file"), attempt(os.listdir, "closed"), attempt(os.stat, "closed/file"),
              attempt(os.chmod, "file", 0o777), attempt(os.chown, "file", 12345, -1), attempt(os.unlink, "file"),
              attempt(os.truncate, "file", 0), attempt(os.utime, "file", (1, 1)), attempt(os.mkdir, "new"),
              attempt(os.rename, "file", "other"))
        """,
        place.mnt,
        user=USER,
    )
    assert out.split() == [
        "EACCES",
        "EACCES",
        "EACCES",
        "EPERM",
        "EPERM",
        "EACCES",
        "EACCES",
        "EPERM",
        "EACCES",
        "EACCES",
    ]


def test_sticky_directory(place: Place) -> None:
    (place.mnt / "sticky").mkdir()
    (place.mnt / "sticky").chmod(0o1777)
    (place.mnt / "sticky" / "file").write_text("root's")
    out = children.run(
        """
        os.chdir(sys.argv[1])
        open("own", "w").close()
        for call in (lambda: os.unlink("file"), lambda: os.rename("own", "file"), lambda: os.unlink("own")):
            try:
                call()
                print("ok")
            except OSError as error:
                print(errno.errorcode[error.errno])
        """,
        place.mnt / "sticky",
        user=USER,
    )
    assert out.split() == ["EPERM", "EPERM", "ok"]


SUID = """
path, action = sys.argv[1:]
fd = os.open(path, os.O_WRONLY)
if action == "write":
    os.write(fd, b"more")
elif action == "truncate":
    os.ftruncate(fd, 1)
elif action == "open-truncate":
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
elif action == "truncate-path":
    os.truncate(path, 1)
"""


@pytest.mark.parametrize("action", ["write", "truncate", "open-truncate", "truncate-path"])
@pytest.mark.parametrize("user", [0, USER])
@pytest.mark.parametrize("mode", [0o6777, 0o2777, 0o4766])
def test_set_uid_and_set_gid_are_cleared_as_on_the_host(place: Place, action: str, user: int, mode: int) -> None:
    found = []
    for top, seen in ((place.twin, place.twin), (place.src, place.mnt)):
        (top / "file").write_text("contents")
        (top / "file").chmod(mode)
        children.run(SUID, seen / "file", action, user=user)
        found.append(oct((seen / "file").stat().st_mode))
        assert oct((top / "file").stat().st_mode) == found[-1]
    assert found[1] == found[0]


@pytest.mark.parametrize("action", ["write", "truncate", "open-truncate", "truncate-path"])
def test_set_gid_stays_where_the_group_may_not_execute(place: Place, action: str) -> None:
    """A host clears it for those outside the group; FUSE never says who they are, and asks to keep it for all."""
    (place.src / "file").write_text("contents")
    (place.src / "file").chmod(0o2767)
    children.run(SUID, place.mnt / "file", action, user=USER)
    assert stat.S_IMODE((place.src / "file").stat().st_mode) == 0o2767
    assert stat.S_IMODE((place.mnt / "file").stat().st_mode) == 0o2767


def test_chown_clears_set_uid(place: Place) -> None:
    for top in (place.twin, place.mnt):
        (top / "file").touch()
        (top / "file").chmod(0o6755)
        subprocess.run(["chown", "12345:12346", top / "file"], check=True)
    found = [(top / "file").stat() for top in (place.twin, place.mnt, place.src)]
    assert len({(s.st_mode, s.st_uid, s.st_gid) for s in found}) == 1
