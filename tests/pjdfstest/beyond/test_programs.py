"""Whole programs on the filesystem: overlayfs on top of it, SQLite, git."""

import os
import shutil
from collections.abc import Iterator
from errno import EINVAL, ENODEV

import pytest

from ..harness import checks
from ..harness.caller import Caller
from ..harness.cases import cases
from ..harness.process import Identity
from ..harness.scene import Make, Scene
from ..harness.users import ROOT

PRIVATE_ROOT = Identity("root with own mounts", 0, 0, own_mounts=True)


# ---- overlayfs with the directory under test as lower layer ----------------------------------------------------------


@pytest.fixture
def overlay(scene: Scene, root: Caller, make: Make) -> Iterator[Caller]:
    """Root with an overlay at `merged`, above `lower`, its upper layer in memory."""
    for name in ("lower", "lower/dir", "memory", "merged"):
        make("dir", name)
    root.setup.write_file("lower/file", b"from below")
    root.setup.write_file("lower/dir/inner", b"inner from below")
    root.batch([("make_many", ("lower/dir/many-%03d", 0, 200)), ("symlink", ("file", "lower/link"))])
    root.setup.setxattr("lower/file", "trusted.mark", b"1")
    user = scene.another(PRIVATE_ROOT)
    user.setup.mount("posix-suite", "memory", "tmpfs")
    user.batch([("mkdir", ("memory/upper", 0o755)), ("mkdir", ("memory/work", 0o755))])
    number, _ = user.attempt(
        "mount", "posix-suite", "merged", "overlay", 0, "lowerdir=lower,upperdir=memory/upper,workdir=memory/work"
    )
    if number == ENODEV:
        pytest.skip("this kernel has no overlayfs")
    checks.check(number not in (EINVAL,), "overlayfs does not take the directory as lower layer")
    assert number == 0, f"cannot mount an overlay: {os.strerror(number)}"
    yield user  # both mounts vanish with the process


@cases("overlay/reading")
def test_reading_through_an_overlay(overlay: Caller) -> None:
    checks.equal(overlay.contents("merged/file"), b"from below", "contents")
    checks.equal(overlay.readlink("merged/link"), "file", "target")
    checks.equal(overlay.getxattr("merged/file", "trusted.mark"), b"1", "attribute")
    names = overlay.names("merged/dir")
    checks.equal(sorted(names), [b"inner", *(b"many-%03d" % number for number in range(200))], "names")
    for number in range(0, 200, 20):
        overlay.expect(f"merged/dir/many-{number:03d}", kind="regular", size=0)


@cases("overlay/changing")
def test_changing_through_an_overlay(overlay: Caller, root: Caller) -> None:
    """Changes go to the upper layer; what lies below stays as it is."""
    descriptor = overlay.open("merged/file", os.O_WRONLY | os.O_APPEND)
    overlay.write(descriptor, b", changed")
    checks.equal(overlay.contents("merged/file"), b"from below, changed", "contents")
    overlay.chmod("merged/dir", 0o700)
    overlay.unlink("merged/dir/many-007")
    overlay.missing("merged/dir/many-007")
    overlay.rename("merged/dir/many-008", "merged/dir/renamed")
    overlay.write_file("merged/dir/new", b"new")
    overlay.link("merged/dir/inner", "merged/dir/second")
    overlay.expect("merged/dir/second", nlink=2)
    names = overlay.names("merged/dir")
    expected = {b"inner", b"new", b"renamed", b"second", *(b"many-%03d" % n for n in range(200) if n not in (7, 8))}
    checks.equal((set(names), len(names)), (expected, len(expected)), "names")
    checks.equal(root.contents("lower/file"), b"from below", "contents below")
    root.expect("lower/dir", mode=0o755)
    checks.equal(len(root.names("lower/dir")), 201, "number of names below")


# ---- SQLite ----------------------------------------------------------------------------------------------------------


@cases("sqlite/two-writers", journal=["delete", "truncate", "persist", "wal"])
def test_two_writers(journal: str, scene: Scene) -> None:
    """Two processes insert rows, each in a transaction of its own; nothing is lost."""
    users = [scene.another(ROOT), scene.another(ROOT)]
    connections = [user.attempt("database", "data.db")[1] for user in users]
    first = users[0]
    number, rows = first.attempt("query", connections[0], f"PRAGMA journal_mode={journal}")
    checks.equal((number, rows), (0, [(journal,)]), "journal mode")
    first.attempt(
        "query", connections[0], "CREATE TABLE entries (writer INTEGER, number INTEGER, PRIMARY KEY (writer, number))"
    )
    for writer, (user, connection) in enumerate(zip(users, connections, strict=True)):
        user.start(
            "queries",
            connection,
            "INSERT INTO entries VALUES (?, ?)",
            [(writer, number) for number in range(40)],
        )
    for user in users:
        user.finish(100)
    for user, connection in zip(users, connections, strict=True):
        rows = user.attempt("query", connection, "SELECT writer, count(*), sum(number) FROM entries GROUP BY writer")[1]
        checks.equal(rows, [(0, 40, 780), (1, 40, 780)], "rows of each writer")
        checks.equal(user.attempt("query", connection, "PRAGMA integrity_check")[1], [("ok",)], "integrity")


@cases("sqlite/killed-writer", journal=["delete", "wal"])
def test_killed_writer(journal: str, scene: Scene) -> None:
    """A writer that dies inside a transaction leaves nothing of it, and its lock is gone."""
    writer, reader = scene.another(ROOT), scene.another(ROOT)
    connection = writer.attempt("database", "data.db")[1]
    for statement in (
        f"PRAGMA journal_mode={journal}",
        "CREATE TABLE entries (number INTEGER)",
        "INSERT INTO entries VALUES (1)",
        "BEGIN IMMEDIATE",
        "INSERT INTO entries VALUES (2)",
    ):
        checks.equal(writer.attempt("query", connection, statement)[0], 0, f"errno of {statement}")
    writer.end()
    connection = reader.attempt("database", "data.db")[1]
    checks.equal(reader.attempt("query", connection, "SELECT number FROM entries")[1], [(1,)], "rows")
    reader.attempt("query", connection, "INSERT INTO entries VALUES (3)")
    checks.equal(reader.attempt("query", connection, "SELECT number FROM entries")[1], [(1,), (3,)], "rows")
    checks.equal(reader.attempt("query", connection, "PRAGMA integrity_check")[1], [("ok",)], "integrity")


# ---- git -------------------------------------------------------------------------------------------------------------


def git(user: Caller, *arguments: str) -> str:
    """Run git in the case's directory; one check: it succeeds."""
    number, result = user.attempt("run", ["git", *arguments], GIT_ENVIRONMENT, 50.0)
    assert number == 0, f"git {arguments[0]}: {os.strerror(number)}"
    status, output = result
    checks.check(status == 0, f"git {' '.join(arguments)}: {output}")
    return str(output)


GIT_ENVIRONMENT = {
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "safe.directory",
    "GIT_CONFIG_VALUE_0": "*",
    "GIT_AUTHOR_NAME": "Suite",
    "GIT_AUTHOR_EMAIL": "suite@example.org",
    "GIT_COMMITTER_NAME": "Suite",
    "GIT_COMMITTER_EMAIL": "suite@example.org",
    "LC_ALL": "C",
}


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
@cases("git/work")
def test_git(scene: Scene, root: Caller, make: Make) -> None:
    root.umask(0o022)
    git(root, "init", "-q", "-b", "main", "repository")
    make("dir", "repository/sub")
    files = {
        f"repository/{'sub/' if number % 2 else ''}file-{number}": b"line %d\n" % number * 20 for number in range(120)
    }
    root.batch([("write_file", (path, data)) for path, data in files.items()])
    root.batch([("chmod", ("repository/file-0", 0o755)), ("symlink", ("file-0", "repository/link"))])
    work = ("-C", "repository")
    git(root, *work, "add", "-A")
    git(root, *work, "commit", "-q", "-m", "first")
    checks.equal(git(root, *work, "status", "--porcelain"), "", "status after the commit")
    git(root, *work, "checkout", "-q", "-b", "branch")
    root.batch([("write_file", ("repository/sub/file-1", b"changed\n")), ("unlink", ("repository/file-2",))])
    checks.equal(
        sorted(git(root, *work, "status", "--porcelain").split("\n")), ["", " D file-2", " M sub/file-1"], "status"
    )
    git(root, *work, "commit", "-q", "-a", "-m", "second")
    git(root, *work, "gc", "-q")
    git(root, *work, "checkout", "-q", "main")
    checks.equal(root.contents("repository/sub/file-1"), files["repository/sub/file-1"], "contents of the old version")
    git(root, "clone", "-q", "repository", "clone")
    for path, data in files.items():
        checks.equal(root.contents(path.replace("repository", "clone", 1)), data, f"contents of {path}")
    root.expect("clone/file-0", mode=root.lstat("repository/file-0").mode)
    for place in ("repository", "clone"):
        git(root, "-C", place, "fsck", "--full", "--strict")
        checks.equal(git(root, "-C", place, "status", "--porcelain"), "", "status")
