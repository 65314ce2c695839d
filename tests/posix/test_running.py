"""Files run as they should, and each is judged for what it did."""

import os
import re
from pathlib import Path

import pytest

from tests.posix.conftest import Suite


def test_a_suite_that_passes(suite: Suite) -> None:
    suite.add("chmod/00.t", 'echo "1..2"', "echo ok 1", "echo ok 2")
    suite.add("open/01.t", "echo 1..1", "echo ok 1")
    ran = suite.run()
    assert ran.code == 0, ran.stderr
    assert ran.stderr == ""
    assert ran.report["totals"] == {
        "files": 2, "passed": 2, "failed": 0, "skipped": 0, "timed_out": 0, "bailed_out": 0, "interrupted": 0,
        "not_run": 0, "assertions": 3, "failures": 0,
    }  # fmt: skip
    assert re.search(r"chmod\W+1\W+0\W+0\W+2\W+0\W", ran.stdout)
    assert re.search(r"all\W+2\W+0\W+0\W+3\W+0\W", ran.stdout)
    assert "2 files, 3 assertions, 0 failures" in ran.stdout


def test_a_suite_that_fails(suite: Suite) -> None:
    suite.add("chmod/00.t", "echo 1..2", "echo ok 1", "echo not ok 2 - tried chmod, expected 0, got EPERM")
    suite.add("open/01.t", "echo 1..1", "echo ok 1")
    ran = suite.run()
    assert ran.code == 1
    assert ran.file("chmod/00.t")["outcome"] == "failed"
    assert ran.file("open/01.t")["outcome"] == "passed"
    assert "not ok 2 - tried chmod, expected 0, got EPERM" in ran.stdout
    assert "2 files, 3 assertions, 1 failure, 1 file failed" in ran.stdout


@pytest.mark.parametrize(
    ("lines", "outcome", "problem"),
    [
        (["echo 1..1", "echo ok 1", "exit 3"], "failed", "exit status 3"),
        (["echo 1..1", "echo ok 1", "kill -SEGV $$"], "failed", "ended by SIGSEGV"),
        (["echo ok 1"], "failed", "no plan (1..N), 1 assertions"),
        ([], "failed", "no plan (1..N), 0 assertions"),
        (["echo 1..2", "echo ok 1"], "failed", "2 assertions planned, 1 made"),
        (["echo 1..1", "echo ok 1", "echo ok 2"], "failed", "1 assertions planned, 2 made"),
        (["echo 1..0 '# SKIP not on Linux'"], "skipped", None),
        (["echo 1..1", "echo not ok 1 '# TODO some day'"], "passed", None),
        (["echo 1..1", "echo ok 1 '# TODO some day'"], "passed", None),
        (["echo 1..1", "echo ok 1 '# SKIP not here'"], "passed", None),
    ],
)
def test_outcomes(suite: Suite, lines: list[str], outcome: str, problem: str | None) -> None:
    suite.add("group/00.t", *lines)
    ran = suite.run()
    file = ran.file("group/00.t")
    assert (file["outcome"], file["problems"]) == (outcome, [problem] if problem else [])
    assert ran.code == (1 if outcome == "failed" else 0)
    assert problem is None or problem in ran.stdout


def test_why_a_file_was_skipped_is_shown(suite: Suite) -> None:
    suite.add("group/00.t", "echo 1..0 '# SKIP not on Linux'")
    assert "group/00.t: skipped (not on Linux)" in suite.run().stdout


def test_an_assertion_that_is_ok_though_marked_is_shown(suite: Suite) -> None:
    suite.add("group/00.t", "echo 1..1", "echo 'ok 1 - locks # TODO some day'")
    assert "group/00.t: ok, though marked TODO: 1 locks" in suite.run().stdout


def test_bail_out_stops_the_run(suite: Suite) -> None:
    suite.add("a/00.t", "echo 1..5", "echo ok 1", "echo 'Bail out! the disk is gone'")
    suite.add("b/00.t", "echo 1..5")
    ran = suite.run("--jobs", "1")
    assert ran.code == 5
    assert ran.file("a/00.t")["outcome"] == "bailed out"
    assert ran.report["not_run"] == ["b/00.t"]
    assert "bailed out: the disk is gone" in ran.stdout
    assert "not run: b/00.t" in ran.stdout


def test_each_file_works_in_a_fresh_directory_of_the_target(suite: Suite) -> None:
    for name in ("a/00.t", "a/01.t"):
        suite.add(
            name,
            "echo 1..4",
            f'case "$PWD" in {suite.target}/*) echo ok 1;; *) echo "not ok 1 - $PWD";; esac',
            '[ -z "$(ls -A)" ] && echo ok 2 || echo not ok 2',
            '[ "$(stat -c "%a %u" .)" = "755 0" ] && echo ok 3 || echo "not ok 3 - $(stat -c "%a %u" .)"',
            "mkdir -p d/e; touch d/e/f; ln -s /nope l; chmod 0 d",
            '[ "$(umask)" = 0022 ] && echo ok 4 || echo not ok 4',
        )
    assert suite.run("--jobs", "1").code == 0


def test_a_file_finds_what_stands_beside_it(suite: Suite) -> None:
    suite.add("misc.sh", 'helper="${dir}/../../pjdfstest"', "answer() { echo 42; }")
    suite.add(
        "a/00.t",
        'dir=`dirname "$0"`',
        '. "${dir}/../misc.sh"',
        "echo 1..2",
        '[ "$(answer)" = 42 ] && echo ok 1',
        '"${helper}" 2>/dev/null; [ $? = 1 ] && echo ok 2',
    )
    assert suite.run().code == 0


def test_nothing_to_read_and_a_session_of_its_own(suite: Suite) -> None:
    suite.add("a/00.t", "echo 1..2", "cat && echo ok 1", '[ "$(ps -o pgid= $$ | tr -d " ")" = $$ ] && echo ok 2')
    assert suite.run().code == 0


@pytest.mark.parametrize("mode", [0o644, 0o755])
def test_the_interpreter_is_that_of_the_first_line(suite: Suite, mode: int) -> None:
    suite.add("a/00.t", "print('1..1\\nok 1')", interpreter="#!/usr/bin/env python3").chmod(mode)
    suite.add("a/01.t", "echo 1..1; echo ok 1", interpreter="# no interpreter is named").chmod(mode)
    suite.add("a/02.t", "[ $# = 0 ] && echo 1..1 && echo ok 1", interpreter="#! /bin/sh -e").chmod(mode)
    assert suite.run().code == 0


def test_an_interpreter_that_is_missing(suite: Suite) -> None:
    suite.add("a/00.t", interpreter="#!/no/such/shell")
    ran = suite.run()
    assert ran.code == 1
    assert ran.file("a/00.t")["problems"][0] == "exit status 127"
    assert "it said: " in ran.stdout
    assert "/no/such/shell" in ran.stdout


@pytest.mark.parametrize(
    ("filters", "files"),
    [
        (["chmod"], ["chmod/00.t", "chmod/2.t", "chmod/10.t"]),
        (["chmod/"], ["chmod/00.t", "chmod/2.t", "chmod/10.t"]),
        (["chmod/10"], ["chmod/10.t"]),
        (["tests/chmod/10.t", "open"], ["chmod/10.t", "open/00.t"]),
        (["*/00.t"], ["chmod/00.t", "open/00.t"]),
        (["ch*"], ["chmod/00.t", "chmod/2.t", "chmod/10.t"]),
    ],
)
def test_filters(suite: Suite, filters: list[str], files: list[str]) -> None:
    for name in ("chmod/00.t", "chmod/2.t", "chmod/10.t", "open/00.t"):
        suite.add(name, "echo 1..1", "echo ok 1")
    ran = suite.run(*filters)
    assert [file["name"] for file in ran.report["files"]] == files


def test_at_most_so_many_files_run_at_once(suite: Suite, tmp_path: Path) -> None:
    """Each counts those that run beside it; that 3 do at some time is sure, because they wait for each other."""
    met = tmp_path / "met"
    met.mkdir()
    for number in range(9):
        suite.add(
            f"a/{number}.t",
            f"cd {met}",
            f"touch {number}",
            "n=$(ls | wc -l)",
            "echo 1..1",
            '[ "$n" -le 3 ] && echo ok 1 || echo not ok 1',
            "i=0; while [ ! -e all ] && [ $i -lt 300 ]; do",
            '  [ "$(ls | wc -l)" = 3 ] && mkdir ../seen 2>/dev/null',
            "  [ -e ../seen ] && break; sleep 0.1; i=$((i+1))",
            "done",
            f"rm {number}",
        )
    ran = suite.run("--jobs", "3")
    assert ran.code == 0, ran.stdout
    assert (tmp_path / "seen").exists()


@pytest.mark.parametrize("line", ["  mount -t tmpfs none here || true", "# expect ENOSPC"])
def test_what_would_disturb_others_runs_alone(suite: Suite, tmp_path: Path, line: str) -> None:
    alone = tmp_path / "alone"
    for number in range(6):
        suite.add(f"a/{number}.t", "echo 1..1", f"[ -e {alone} ] && echo not ok 1 || echo ok 1", "sleep 0.1")
    suite.add(
        "a/9.t",
        "if false; then :",
        line,
        "fi",
        f"mkdir {alone}; sleep 0.5; rmdir {alone}",
        f"echo 1..1; [ $(ls {suite.target}/* | wc -l) = 1 ] && echo ok 1",
    )
    ran = suite.run("--jobs", "8")
    assert ran.code == 0, ran.stdout


def test_long_files_begin_first(suite: Suite, tmp_path: Path) -> None:
    order = tmp_path / "order"
    for count in (1, 30, 7):
        suite.add(
            f"a/{count}.t",
            f"echo {count} >>{order}",
            f'echo "1..{count}"',
            f"for i in $(seq {count}); do echo ok; done",
        )
    assert suite.run("--jobs", "1").code == 0
    assert order.read_text().split() == ["30", "7", "1"]


def test_85_files_at_once(suite: Suite) -> None:
    for number in range(170):
        suite.add(f"a/{number}.t", "echo 1..2", "echo ok 1", "mkdir d && rmdir d && echo ok 2")
    ran = suite.run("--jobs", "85")
    assert ran.code == 0
    assert ran.report["totals"]["assertions"] == 340


def test_what_was_left_on_another_filesystem_is_said(suite: Suite) -> None:
    suite.add("a/00.t", "mkdir m; mount -t tmpfs none m; echo 1..1; echo ok 1")
    process = suite.start()
    try:
        stdout, _stderr = process.communicate(timeout=60)
    finally:
        for left in suite.target.glob("*/*/m"):
            os.system(f"umount {left}")
        for left in suite.target.iterdir():
            os.system(f"rm -rf --one-file-system {left}")
    assert process.returncode == 1
    assert "cannot remove" in stdout
