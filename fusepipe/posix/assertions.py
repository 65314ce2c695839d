"""From what a file wrote to its verdict: the Test Anything Protocol, version 12 (https://testanything.org)."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from tap.line import Bail, Line, Plan, Result
from tap.parser import Parser

from fusepipe.posix.results import Assertion


@dataclass
class Said:
    """What a file said about itself."""

    planned: int | None = None
    assertions: list[Assertion] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    skipped: str | None = None
    """Why nothing was to be done (`1..0 # SKIP reason`); None: something was."""
    bailed_out: str | None = None
    """Why not only this file but the whole run is to stop; None: it is not."""


def read(output: str) -> Said:
    """What `output` says: the plan, every assertion, and where the two contradict each other."""
    said = Said()
    for line in _lines(output):
        if isinstance(line, Bail):
            said.bailed_out = line.reason.strip() or "no reason given"
            break
        if isinstance(line, Plan):
            _take_plan(said, line)
        elif isinstance(line, Result):
            _take_result(said, line)
    if said.bailed_out is None and said.skipped is None:
        _compare(said)
    return said


def _lines(output: str) -> Iterator[Line]:
    """Each line for itself: what is no TAP (a shell's complaint, say) means nothing and is passed over."""
    parser = Parser()
    for text in output.split("\n"):
        # the library takes every line that begins with "ok" for an assertion, and "1" with any two letters for a plan
        if text.startswith(("ok ", "not ok ", "1..", "Bail out!")) or text.rstrip() in ("ok", "not ok"):
            yield parser.parse_line(text.rstrip())


def _take_plan(said: Said, plan: Plan) -> None:
    if said.planned is not None:
        said.problems.append("more than one plan")
        return
    said.planned = plan.expected_tests
    if plan.expected_tests == 0:
        said.skipped = (plan.directive.reason or "").strip() or "no reason given"


def _take_result(said: Said, result: Result) -> None:
    expected = len(said.assertions) + 1
    if result.number not in (None, expected) and not any("out of order" in problem for problem in said.problems):
        said.problems.append(f"out of order: assertion {result.number} where {expected} was to come")
    reason = (result.directive.reason or "").strip()
    said.assertions.append(
        Assertion(
            expected,
            result.ok,
            _description(result),
            todo=reason if result.todo else None,
            skip=reason if result.skip else None,
        )
    )


def _description(result: Result) -> str:
    """The text behind the number; a `#` in it that begins no directive is part of it."""
    text = result.description.removeprefix("- ")
    directive = result.directive
    return text if result.todo or result.skip or not directive.text else f"{text} # {directive.text}".strip()


def _compare(said: Said) -> None:
    made = len(said.assertions)
    if said.planned is None:
        said.problems.append(f"no plan (1..N), {made} assertions")
    elif made != said.planned:
        said.problems.append(f"{said.planned} assertions planned, {made} made")
