"""What the tests of the command line share."""

from collections.abc import Callable

import pytest

from tests.support.program import Program, Programs

Fails = Callable[..., Program]


@pytest.fixture
def fails(program: Programs) -> Fails:
    """fails(code, *arguments, says=[...]): the command ends with that code and one line that says all of that."""

    def run(code: int, *arguments: object, says: list[str], **more: object) -> Program:
        ended = program.run(*map(str, arguments), **more)  # type: ignore[arg-type]  # env and seconds
        assert ended.process.returncode == code, ended.stderr
        assert ended.stdout == ""
        assert ended.stderr.startswith("fusepipe: ")
        assert ended.stderr.endswith("\n")
        assert ended.stderr.count("\n") == 1, f"more than one line:\n{ended.stderr}"
        for words in says:
            assert words in ended.stderr
        return ended

    return run
