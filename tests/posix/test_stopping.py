"""Every wait has an end: at the time limit, at a signal, and where a filesystem does not answer."""

import os
import signal
import time
from pathlib import Path

import pytest

from fusepipe.posix import directory, groups
from fusepipe.posix.errors import PosixError
from fusepipe.posix.groups import Stop, run_group
from tests.mount.blocking import BlockFS
from tests.posix.conftest import Suite
from tests.support.world import wait_until


def test_a_file_has_a_time_limit_with_all_that_it_started(suite: Suite, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    suite.add("a/00.t", "echo 1..2", "echo ok 1", f"(sleep 1000; :) & echo $! $$ >{pids}; trap '' TERM; sleep 1000; :")
    suite.add("a/01.t", "echo 1..1", "echo ok 1")
    ran = suite.run("--timeout", "1.5")
    assert ran.code == 1
    slow = ran.file("a/00.t")
    assert slow["outcome"] == "timed out"
    assert slow["problems"][0] == "not done after 1.5 s: ended"
    assert len(slow["assertions"]) == 1
    assert 1.5 <= slow["seconds"] < 30
    assert ran.file("a/01.t")["outcome"] == "passed"
    assert not any(os.path.exists(f"/proc/{pid}/exe") for pid in pids.read_text().split())


def test_what_a_file_leaves_running_is_ended_and_holds_up_nobody(suite: Suite, tmp_path: Path) -> None:
    suite.add("a/00.t", "echo 1..1", "echo ok 1", f"sleep 1000 & echo $! >{tmp_path}/pid")
    ran = suite.run()
    assert ran.code == 0
    assert not os.path.exists(f"/proc/{(tmp_path / 'pid').read_text().strip()}/exe")


def test_endless_output_has_an_end(suite: Suite) -> None:
    suite.add("a/00.t", "echo 1..1", "echo ok 1", "yes")
    ran = suite.run("--timeout", "2")
    assert ran.code == 1
    assert (
        f"wrote more than {groups.MOST_OUTPUT >> 20} MiB, the rest was not looked at" in ran.file("a/00.t")["problems"]
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_run_with_what_it_has(suite: Suite, tmp_path: Path, number: signal.Signals) -> None:
    began = tmp_path / "began"
    suite.add("a/00.t", "echo 1..2", "echo ok 1", "echo ok 2")
    suite.add("b/00.t", "echo 1..2", "echo ok 1", f"touch {began}", "sleep 1000")
    suite.add("c/00.t", "echo 1..1", "echo ok 1")
    junit = tmp_path / "report.xml"
    process = suite.start("--jobs", "1", "--junit", junit)
    assert wait_until(began.exists, 60)
    process.send_signal(number)
    ran = suite.finish(process)
    assert ran.code == 128 + number
    assert ran.stderr == ""
    assert [(file["name"], file["outcome"]) for file in ran.report["files"]] == [
        ("a/00.t", "passed"),
        ("b/00.t", "interrupted"),
    ]
    assert len(ran.file("b/00.t")["assertions"]) == 1
    assert ran.report["not_run"] == ["c/00.t"]
    assert "not run: c/00.t" in ran.stdout
    assert "2 files, 3 assertions, 0 failures, 1 file failed, 1 file not run" in ran.stdout
    assert "not run: the run was stopped before" in junit.read_text()


def test_nobody_reads_the_output(suite: Suite) -> None:
    for number in range(20):
        suite.add(f"a/{number}.t", "echo 1..1", "echo ok 1")
    process = suite.start()
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(60) == 6
    assert process.stderr.read() == ""
    assert wait_until(lambda: not any(suite.target.iterdir()))


@pytest.mark.usefixtures("fuse")
def test_a_target_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "ANSWERS_WITHIN", 1.0)
    monkeypatch.setattr(groups, "KILLED_WITHIN", 1.0)
    filesystem = BlockFS(tmp_path)
    stop = Stop()
    try:
        with (
            pytest.raises(PosixError, match="does not answer within 1 s"),
            directory.run_directory(f"{tmp_path}/lookup-it", stop),
        ):
            raise AssertionError("there is no such directory")
    finally:
        stop.close()
        filesystem.close()


@pytest.mark.usefixtures("fuse")
def test_a_program_that_cannot_be_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "KILLED_WITHIN", 1.0)
    filesystem = BlockFS(tmp_path)
    try:
        began = time.monotonic()
        ended = run_group(["cat", f"{tmp_path}/open-it"], 1.0)
        assert ended.status is None
        assert ended.timed_out
        assert time.monotonic() - began < 30
    finally:
        filesystem.close()
        for process in groups._left:
            process.wait(30)
        groups._left.clear()
