"""The run as JUnit XML, which CI systems show: a suite for each file, a case for each assertion."""

import re
from io import BytesIO
from typing import Final

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from fusepipe.posix.results import Assertion, FileResult, RunResult

_NOT_IN_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, not even escaped (section 2.2, Char)."""


def as_junit(run: RunResult) -> str:
    """The whole document.  What is wrong with a file beside its assertions is an error of a case `file`."""
    document = JUnitXml("fusepipe-posix")
    for file in run.files:
        document.add_testsuite(_suite(file))
    for name in run.not_run:
        document.add_testsuite(_suite_not_run(name))
    document.update_statistics()
    written = BytesIO()
    document.write(written)
    return written.getvalue().decode()


def _suite(file: FileResult) -> TestSuite:
    suite = TestSuite(file.name)
    cases = [_case(file, assertion) for assertion in file.assertions]
    whole = TestCase("file", file.name, round(file.seconds, 3))
    if file.problems:
        whole.result = [Error(_clean("; ".join(file.problems)))]
        whole.system_out = _clean(file.output)
    elif file.reason:
        whole.result = [Skipped(_clean(file.reason))]
    suite.add_testcases([whole, *cases])
    suite.time = round(file.seconds, 3)
    return suite


def _suite_not_run(name: str) -> TestSuite:
    suite = TestSuite(name)
    case = TestCase("file", name, 0.0)
    case.result = [Skipped("not run: the run was stopped before")]
    suite.add_testcase(case)
    return suite


def _case(file: FileResult, assertion: Assertion) -> TestCase:
    case = TestCase(_clean(f"{assertion.number} {assertion.description}".rstrip()), file.name)
    if assertion.failed:
        case.result = [Failure(_clean(assertion.description) or "not ok")]
    elif not assertion.ok:
        case.result = [Skipped(_clean(f"TODO {assertion.todo}".rstrip()))]
    elif assertion.skip is not None:
        case.result = [Skipped(_clean(assertion.skip))]
    return case


def _clean(text: str) -> str:
    return _NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", text)
