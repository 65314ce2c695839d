"""A repository is cloned, stays clean over a remount, and passes git's own check."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

from tests.workload.jobs import Context, check

ENVIRONMENT = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "HOME": "/nonexistent"}


def _commit(number: int, files: list[tuple[str, str, bytes]]) -> bytes:
    """One commit in the language of git-fast-import(1)."""
    message = f"Commit {number}".encode()
    lines = [
        b"commit refs/heads/main\n",
        b"committer Workload <workload@localhost> %d +0000\n" % (1_600_000_000 + 60 * number),
        b"data %d\n%s\n" % (len(message), message),
    ]
    for mode, path, data in files:
        lines.append(b"M %s inline %s\ndata %d\n" % (mode.encode(), path.encode(), len(data)))
        lines.append(data + b"\n")
    return b"".join(lines)


def make_repository(path: Path, count: int) -> None:
    """A bare repository whose last commit has `count` files; always the same for the same count."""
    rng = random.Random(count)
    words = [f"word{i}" for i in range(500)]
    files = []
    for i in range(count):
        directory = f"src/part{i % 37}/deep{i % 5}/" if i % 3 else f"lib{i % 11}/"
        if i % 50 == 0:
            files.append(("120000", f"{directory}link{i}", f"../some/where{i}".encode()))
        elif i % 17 == 0:
            files.append(("100755", f"{directory}script{i}.sh", f"#!/bin/sh\necho {i}\n".encode()))
        elif i % 23 == 0:
            files.append(("100644", f"{directory}data{i}.bin", rng.randbytes(rng.randrange(20_000))))
        else:
            text = "\n".join(" ".join(rng.choices(words, k=8)) for _ in range(rng.randrange(1, 80)))
            files.append(("100644", f"{directory}file{i}.txt", text.encode()))
    stream = b""
    for number, start in enumerate(range(0, count, 250)):
        stream += _commit(number, files[start : start + 250])
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(path)], check=True, env=ENVIRONMENT | _path())
    subprocess.run(
        ["git", "fast-import", "--quiet"], cwd=path, input=stream, check=True, timeout=300, env=ENVIRONMENT | _path()
    )


def _path() -> dict[str, str]:
    return {"PATH": "/usr/local/bin:/usr/bin:/bin"}


def run(job: Context) -> dict[str, object]:
    """git clone, status, fsck; then the same after a remount."""
    origin, clone = job.host / "origin.git", job.work / "clone"
    make_repository(origin, job.size.repository)

    def git(*arguments: str | Path, cwd: Path = clone) -> str:
        return job.run("git", *arguments, cwd=cwd, env=ENVIRONMENT)

    def clean(when: str) -> None:
        # Plumbing first: unlike `status` it does not refresh the index, so a changed inode number or time is seen.
        changed = git("diff-files", "--name-only").splitlines()
        check(not changed, f"{when}: git sees other attributes in {len(changed)} files, such as {changed[:3]}")
        check(git("status", "--porcelain") == "", f"{when}: git status is not clean")

    git("clone", "--no-hardlinks", origin, clone, cwd=job.work)
    files = git("ls-files").splitlines()
    check(len(files) == job.size.repository, f"{len(files)} files in the clone instead of {job.size.repository}")
    git("status", "--porcelain")  # racy entries of the same second as the index are settled here
    clean("after the clone")
    git("fsck", "--full", "--strict")
    remounted = job.remount()
    clean("after the remount")
    git("checkout", "-q", "-b", "work", "HEAD~1")
    git("checkout", "-q", "main")
    git("-c", "user.name=w", "-c", "user.email=w@localhost", "commit", "-q", "--allow-empty", "-m", "More")
    git("gc", "--quiet")
    clean("after branches and gc")
    git("fsck", "--full", "--strict")
    return {"files": len(files), "remounted": remounted}
