"""Symbolic links: long, dangling, of any bytes; and they are never followed on the host's side."""

from __future__ import annotations

import errno
import os

import pytest

from tests.mount.conftest import Place
from tests.mount.expect import fails


@pytest.mark.parametrize("length", [1, 60, 255, 4095])
def test_length(place: Place, length: int) -> None:
    target = "t" * length
    (place.mnt / "link").symlink_to(target)
    assert os.readlink(place.mnt / "link") == os.readlink(place.src / "link") == target
    assert (place.mnt / "link").lstat().st_size == length
    (place.src / "from-host").symlink_to(target)
    assert os.readlink(place.mnt / "from-host") == target


def test_too_long(place: Place) -> None:
    with fails(errno.ENAMETOOLONG):
        (place.mnt / "link").symlink_to("t" * 4096)


def test_dangling_loops_and_chains(place: Place) -> None:
    (place.mnt / "dangling").symlink_to("nowhere")
    (place.mnt / "loop").symlink_to("loop")
    (place.mnt / "file").write_text("here")
    (place.mnt / "one").symlink_to("file")
    (place.mnt / "two").symlink_to("one")
    with fails(errno.ENOENT):
        (place.mnt / "dangling").stat()
    with fails(errno.ELOOP):
        (place.mnt / "loop").stat()
    assert (place.mnt / "two").read_text() == "here"
    with fails(errno.ELOOP):
        os.open(place.mnt / "one", os.O_RDONLY | os.O_NOFOLLOW)
    (place.mnt / "dangling").write_text("made through the link")
    assert (place.src / "nowhere").read_text() == "made through the link"


def test_links_are_followed_in_the_guest_not_on_the_host(place: Place) -> None:
    """An absolute link means the guest's path; every attribute call on the link itself leaves its target alone."""
    outside = place.twin / "outside"
    outside.write_text("outside")
    outside.chmod(0o600)
    link = place.mnt / "link"
    link.symlink_to(outside)
    assert link.read_text() == "outside"
    before = outside.lstat()
    os.chown(link, 12345, 12346, follow_symlinks=False)
    os.utime(link, ns=(1, 2), follow_symlinks=False)
    os.setxattr(link, "trusted.test", b"link", follow_symlinks=False)
    assert os.getxattr(place.src / "link", "trusted.test", follow_symlinks=False) == b"link"
    assert os.listxattr(outside) == []
    found = (place.src / "link").lstat()
    assert (found.st_uid, found.st_gid, found.st_mtime_ns) == (12345, 12346, 2)
    after = outside.lstat()
    assert (after.st_uid, after.st_mtime_ns, after.st_mode) == (before.st_uid, before.st_mtime_ns, before.st_mode)
    link.unlink()
    assert outside.exists()


def test_links_of_links(place: Place) -> None:
    """A hard link to a symbolic link is one inode with two names."""
    (place.mnt / "link").symlink_to("nowhere")
    os.link(place.mnt / "link", place.mnt / "again", follow_symlinks=False)
    assert (place.mnt / "again").lstat().st_nlink == 2
    assert (place.mnt / "again").lstat().st_ino == (place.src / "link").lstat().st_ino
