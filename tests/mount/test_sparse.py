"""Holes: found by SEEK_DATA and SEEK_HOLE, and kept by the programs that copy sparse files."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from tests.mount.conftest import Place
from tests.mount.expect import fails

BLOCK = 1 << 16
DATA = (1, 2, 40, 99)
BLOCKS = 160
"""10 MiB with 256 KiB of data."""


def make_sparse(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        file.truncate(BLOCKS * BLOCK)
        for number in DATA:
            os.pwrite(file.fileno(), bytes([number]) * BLOCK, number * BLOCK)


def extents(path: Path) -> list[tuple[int, int]]:
    """Where data begins and ends, in bytes."""
    found: list[tuple[int, int]] = []
    with path.open("rb") as file:
        at = 0
        while True:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError as error:
                assert error.errno == errno.ENXIO
                return found
            end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            found.append((at, end))
            at = end


EXTENTS = [(BLOCK, 3 * BLOCK), (40 * BLOCK, 41 * BLOCK), (99 * BLOCK, 100 * BLOCK)]


def test_holes_are_those_of_the_host(place: Place) -> None:
    make_sparse(place.src / "file")
    assert extents(place.mnt / "file") == extents(place.src / "file") == EXTENTS
    make_sparse(place.mnt / "new")
    assert extents(place.mnt / "new") == extents(place.src / "new") == EXTENTS


def test_seeking_moves_the_position(place: Place) -> None:
    make_sparse(place.mnt / "file")
    with (place.mnt / "file").open("rb", buffering=0) as file:
        assert os.lseek(file.fileno(), 3 * BLOCK, os.SEEK_DATA) == 40 * BLOCK
        assert file.tell() == 40 * BLOCK
        assert file.read(1) == bytes([40])
        for offset, whence in ((BLOCKS * BLOCK, os.SEEK_HOLE), (100 * BLOCK, os.SEEK_DATA), (-1, os.SEEK_DATA)):
            with fails(errno.ENXIO):
                os.lseek(file.fileno(), offset, whence)
        assert file.tell() == 40 * BLOCK + 1


@pytest.mark.parametrize(
    "command",
    [
        "cp --sparse=auto file copy",
        "cp --sparse=never file full && cp --sparse=always full copy",
        "tar -Scf archive.tar file && mkdir out && tar -xSf archive.tar -C out && mv out/file copy",
        "rsync -S file copy",
    ],
    ids=["cp-auto", "cp-always", "tar", "rsync"],
)
def test_copies_stay_sparse(place: Place, command: str) -> None:
    make_sparse(place.src / "file")
    subprocess.run(["sh", "-ec", command], cwd=place.mnt, check=True, timeout=60)
    assert (place.src / "copy").read_bytes() == (place.src / "file").read_bytes()
    assert os.stat(place.src / "copy").st_blocks * 512 < 16 * BLOCK
    assert os.stat(place.mnt / "copy").st_blocks == os.stat(place.src / "copy").st_blocks
    assert extents(place.mnt / "copy") == extents(place.src / "copy")
