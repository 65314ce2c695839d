"""Birth times (statx(2))."""

import pytest

from ..harness import checks
from ..harness.caller import Caller
from ..harness.cases import cases
from ..harness.scene import Make
from ..harness.status import NOT_SYMLINKS
from ..harness.times import pass_after
from ..harness.users import OWNER


@cases("statx/birth-time", kind=NOT_SYMLINKS)
def test_birth_time(kind: str, root: Caller, owner: Caller, behind: Caller, make: Make) -> None:
    make("regular", "earlier")
    earlier = root.lstat("earlier")
    pass_after(earlier)
    make(kind, "file", OWNER)
    if behind.birth_time("file") is None:
        pytest.skip("the filesystem behind keeps no birth times")
    born = owner.birth_time("file")
    checks.equal(born, behind.birth_time("file"), "birth time")
    checks.check(born is not None and born > earlier.mtime, "the birth time is before the birth")
    owner.chmod("file", 0o700)
    owner.utimensat("file", ((1, 0), (1, 0)))
    root.rename("file", "renamed")
    checks.equal(owner.birth_time("renamed"), born, "birth time after changes")
