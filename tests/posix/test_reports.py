"""The reports: JUnit XML that others can read, JSON with everything."""

from pathlib import Path
from xml.etree import ElementTree

from tests.posix.conftest import Suite


def test_junit(suite: Suite, tmp_path: Path) -> None:
    suite.add(
        "a/00.t",
        "echo 1..4",
        "echo ok 1 - fine",
        "echo not ok 2 - tried",
        "echo not ok 3 '# TODO x'",
        "echo ok 4 '# SKIP y'",
    )
    suite.add("a/01.t", "echo 1..0 '# SKIP not here'")
    suite.add("b/00.t", "echo 1..1", "echo ok 1", "echo what went wrong", "exit 9")
    assert suite.run("--junit", tmp_path / "report.xml").code == 1
    root = ElementTree.parse(tmp_path / "report.xml").getroot()
    assert root.tag == "testsuites"
    assert {key: root.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "8", "failures": "1", "errors": "1", "skipped": "3",
    }  # fmt: skip
    assert [suite.get("name") for suite in root] == ["a/00.t", "a/01.t", "b/00.t"]
    cases = {case.get("name"): case for case in root[0]}
    assert cases.keys() == {"file", "1 fine", "2 tried", "3", "4"}
    assert cases["2 tried"].find("failure") is not None
    assert all(cases[name].find("skipped") is not None for name in ("3", "4"))
    assert len(cases["1 fine"]) == 0
    [broken] = [case for case in root[2] if case.get("name") == "file"]
    error = broken.find("error")
    assert error is not None
    assert error.get("message") == "exit status 9"
    assert "what went wrong" in (broken.findtext("system-out") or "")


def test_what_xml_cannot_hold(suite: Suite, tmp_path: Path) -> None:
    suite.add("a/00.t", "echo 1..1", r"printf 'not ok 1 - \001 \377 <&> \033[1m]]>\n'")
    ran = suite.run("--junit", tmp_path / "report.xml")
    assert ran.code == 1
    [failure] = ElementTree.parse(tmp_path / "report.xml").getroot().iter("failure")
    assert failure.get("message") == "\ufffd \\xff <&> \ufffd[1m]]>"
    assert ran.file("a/00.t")["assertions"][0]["description"] == "\x01 \\xff <&> \x1b[1m]]>"
    assert r"not ok 1 - \x01 \xff <&> \x1b[1m]]>" in ran.stdout


def test_json(suite: Suite) -> None:
    suite.add(
        "a/00.t", "echo 1..3", "echo ok 1 - fine", "echo not ok 2 - tried", "echo not ok 3 '# TODO x'", "echo more"
    )
    ran = suite.run("--jobs", "2")
    assert ran.report["jobs"] == 2
    assert ran.report["upstream"] == str(suite.upstream)
    assert ran.report["target"] == str(suite.target)
    assert ran.report["seconds"] > 0
    [file] = ran.report["files"]
    assert file["planned"] == 3
    assert file["failures"] == 1
    assert file["assertions"] == [
        {"number": 1, "ok": True, "description": "fine", "todo": None, "skip": None},
        {"number": 2, "ok": False, "description": "tried", "todo": None, "skip": None},
        {"number": 3, "ok": False, "description": "", "todo": "x", "skip": None},
    ]
    assert file["output"].endswith("more\n")
