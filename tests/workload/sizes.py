"""How much each job does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Counts of files unless a unit is named."""

    repository: int
    sources: int
    database_rows: int
    tree: int
    disk_mib: int
    build_on_mount: bool
    """Whether the virtual environment has a pip of its own and packages are built on the mount, not on the host."""
    step_seconds: float
    """The time limit of one command."""


SMALL = Size(repository=600, sources=24, database_rows=60, tree=150, disk_mib=8, build_on_mount=False, step_seconds=400)
FULL = Size(
    repository=6000, sources=120, database_rows=500, tree=3000, disk_mib=128, build_on_mount=True, step_seconds=1800
)
GUEST = Size(repository=260, sources=4, database_rows=20, tree=40, disk_mib=1, build_on_mount=False, step_seconds=900)
"""For an emulated machine, in which programs take fifteen times as long."""
SIZES = {"guest": GUEST, "small": SMALL, "full": FULL}
