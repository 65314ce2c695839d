"""tar out and back, and rsync: nothing may change on the way."""

from __future__ import annotations

from pathlib import Path

from tests.workload.jobs import Context, check
from tests.workload.trees import describe, difference, make_tree

TAR = ("tar", "--format=posix", "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "--sparse")


def _pack(job: Context, source: Path, archive: Path) -> None:
    job.run(*TAR, "-C", source, "-cf", archive, ".")


def _unpack(job: Context, archive: Path, target: Path) -> None:
    target.mkdir()
    job.run(*TAR, "--same-permissions", "-C", target, "-xf", archive)


def run_tar(job: Context) -> dict[str, object]:
    """A tree goes by tar from the host onto the mount, from the mount into an archive on the mount, and back."""
    original = job.host / "tree"
    make_tree(original, job.size.tree)
    wanted = describe(original)
    _pack(job, original, job.host / "out.tar")
    _unpack(job, job.host / "out.tar", job.work / "tree")
    wrong = difference(wanted, describe(job.work / "tree"))
    check(not wrong, f"unpacked on the mount: {wrong}")
    job.remount()
    wrong = difference(wanted, describe(job.work / "tree"))
    check(not wrong, f"after the remount: {wrong}")
    _pack(job, job.work / "tree", job.work / "back.tar")
    _unpack(job, job.work / "back.tar", job.host / "back")
    wrong = difference(wanted, describe(job.host / "back"))
    check(not wrong, f"back on the host: {wrong}")
    check(job.run(*TAR, "-C", job.work / "tree", "-df", job.work / "back.tar") == "", "tar --diff found differences")
    return {"paths": len(wanted)}


def run_rsync(job: Context) -> dict[str, object]:
    """A tree is copied by rsync onto the mount and back; a second run with checksums finds nothing to do."""
    original, there, back = job.host / "sync", job.work / "sync", job.host / "sync-back"
    make_tree(original, job.size.tree)
    wanted = describe(original, special_times=False)  # rsync sets no times of device nodes
    rsync = ("rsync", "-aHAX", "--checksum", "--numeric-ids")
    job.run(*rsync, f"{original}/", f"{there}/")
    left = job.run(*rsync, "-n", "-i", "--delete", f"{original}/", f"{there}/")
    check(left == "", f"rsync onto the mount has something left to do:\n{left[:500]}")
    left = job.run(*rsync, "-n", "-i", "--delete", f"{there}/", f"{original}/")
    check(left == "", f"rsync from the mount has something left to do:\n{left[:500]}")
    job.run(*rsync, f"{there}/", f"{back}/")
    wrong = difference(wanted, describe(back, special_times=False))
    check(not wrong, f"copied there and back: {wrong}")
    return {"paths": len(wanted)}
