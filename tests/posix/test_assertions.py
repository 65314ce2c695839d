"""What a file says is understood as the Test Anything Protocol has it."""

import pytest

from fusepipe.posix.assertions import read


def test_a_plan_and_its_assertions() -> None:
    said = read("1..3\nok 1 - first\nnot ok 2 second\nok\n")
    assert said.planned == 3
    assert [(one.number, one.ok, one.description) for one in said.assertions] == [
        (1, True, "first"),
        (2, False, "second"),
        (3, True, ""),
    ]
    assert said.problems == []


def test_a_plan_at_the_end() -> None:
    assert read("ok 1\nok 2\n1..2\n").problems == []


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ("ok 1\nok 2\n", "no plan (1..N), 2 assertions"),
        ("", "no plan (1..N), 0 assertions"),
        ("1..3\nok 1\n", "3 assertions planned, 1 made"),
        ("1..1\nok 1\nok 2\n", "1 assertions planned, 2 made"),
        ("1..1\nok 1\n1..1\n", "more than one plan"),
        ("1..2\nok 1\nok 3\n", "out of order: assertion 3 where 2 was to come"),
        ("1..2\nok 2\nok 1\n", "out of order: assertion 2 where 1 was to come"),
    ],
)
def test_contradictions(output: str, problem: str) -> None:
    assert read(output).problems == [problem]


@pytest.mark.parametrize(
    ("line", "failed", "surprising", "todo", "skip", "description"),
    [
        ("not ok 1 - a # TODO no locks yet", False, False, "no locks yet", None, "a"),
        ("not ok 1 # todo", False, False, "", None, ""),
        ("ok 1 - a # TODO no locks yet", False, True, "no locks yet", None, "a"),
        ("ok 1 - a # SKIP not here", False, False, None, "not here", "a"),
        ("ok 1 # skip", False, False, None, "", ""),
        ("not ok 1 - tried 'open a#b 0', got EPERM", True, False, None, None, "tried 'open a # b 0', got EPERM"),
    ],
)
def test_directives(
    line: str, failed: bool, surprising: bool, todo: str | None, skip: str | None, description: str
) -> None:
    [one] = read(f"1..1\n{line}\n").assertions
    assert (one.failed, one.surprising) == (failed, surprising)
    assert (one.todo, one.skip, one.description) == (todo, skip, description)


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("1..0 # SKIP not on Linux\n", "not on Linux"),
        ("1..0 # skip\n", "no reason given"),
        ("1..0\n", "no reason given"),
    ],
)
def test_skipped(output: str, reason: str) -> None:
    said = read(output)
    assert said.skipped == reason
    assert said.problems == []


def test_bail_out_ends_what_counts() -> None:
    said = read("1..3\nok 1\nBail out! no space\nok 2\n")
    assert said.bailed_out == "no space"
    assert len(said.assertions) == 1


def test_other_lines_mean_nothing() -> None:
    said = read(
        "# a comment\nokay\nnot okay\nok, let us go\n 1..7\nsh: 1: nope: not found\n1..1\nok 1\nTAP version 12\n"
    )
    assert said.problems == []
    assert len(said.assertions) == 1


def test_carriage_returns_and_spaces_at_the_end() -> None:
    said = read("1..2\r\nok 1\r\nok 2 \r\n")
    assert said.problems == []
    assert len(said.assertions) == 2
