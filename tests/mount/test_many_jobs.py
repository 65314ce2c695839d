"""Many jobs of the POSIX suite at once on one mount leave behind what they found."""

from __future__ import annotations

import pytest

from tests.pjdfstest import parallel

CASES = ("test_chmod.py", "test_create.py", "beyond/test_handles.py", "beyond/test_append.py")


@pytest.mark.once
@pytest.mark.timeout(900)
def test_many_jobs_on_one_mount(real: str) -> None:
    assert parallel.run(real, jobs=16, repeat=2, arguments=[f"tests/pjdfstest/{name}" for name in CASES]) == []
