"""Programs that run from a file of the filesystem under test."""

from collections.abc import Iterator
from contextlib import contextmanager
from errno import EACCES

import pytest

from .caller import Caller
from .times import pass_after


@contextmanager
def running_program(caller: Caller, path: str) -> Iterator[None]:
    """Copy a program to `path` and let it run meanwhile."""
    with open("/bin/sleep", "rb") as file:
        caller.setup.write_file(path, file.read())
    caller.setup.chmod(path, 0o755)
    number, pid = caller.attempt("spawn", [f"./{path}", "60"])
    if number == EACCES:
        pytest.skip("programs may not run from this filesystem (noexec)")
    assert number == 0, f"cannot run the copy of /bin/sleep: errno {number}"
    try:
        yield
    finally:
        caller.attempt("kill", pid)


@contextmanager
def unchanged_but_read(root: Caller, path: str) -> Iterator[None]:
    """What happens inside changes nothing about that file; a program that starts may read it meanwhile."""
    __tracebackhide__ = True
    before = root.lstat(path)
    pass_after(before)
    yield
    root.same(path, before, "atime")
