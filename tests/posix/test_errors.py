"""What cannot be run: one line that says what is wrong and what to do, and an exit code of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fusepipe.posix.errors import MEANING, ExitCode
from tests.posix.conftest import COMMAND, Suite
from tests.support.program import ENVIRONMENT


def run(*arguments: str | Path, command: tuple[str, ...] = COMMAND) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=60, env={**os.environ, **ENVIRONMENT}
    )


def fails(code: ExitCode, says: str, *arguments: str | Path) -> None:
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("fusepipe-posix: ")
    assert done.stderr.count("\n") == 1, f"more than one line:\n{done.stderr}"
    assert says in done.stderr


@pytest.fixture
def complete(suite: Suite) -> Suite:
    """A suite that could be run."""
    suite.add("chmod/00.t", "echo 1..1", "echo ok 1")
    return suite


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Missing option '--upstream'"),
        (["--upstream", "/"], "Missing option '--target'"),
        (["--upstream", "/", "--target", "/", "--jobs", "0"], "'--jobs'"),
        (["--upstream", "/", "--target", "/", "--jobs", "many"], "'--jobs'"),
        (["--upstream", "/", "--target", "/", "--timeout", "0"], "'--timeout'"),
        (["--upstream", "/", "--target", "/", "--speed", "9"], "--speed"),
    ],
)
def test_wrong_options(arguments: list[str], says: str) -> None:
    fails(ExitCode.USAGE, says, *arguments)


@pytest.mark.parametrize("option", ["--junit", "--json"])
def test_a_report_that_cannot_be_written(complete: Suite, option: str) -> None:
    arguments = ("--upstream", complete.upstream, "--target", complete.target, option)
    fails(ExitCode.USAGE, "No such file or directory; name a file", *arguments, "/no/such/directory/report")
    fails(ExitCode.USAGE, "Is a directory", *arguments, "/")


def test_a_report_that_does_not_fit(complete: Suite) -> None:
    done = run("--upstream", complete.upstream, "--target", complete.target, "--json", "/dev/full")
    assert done.returncode == ExitCode.USAGE
    assert "1 file, 1 assertion, 0 failures" in done.stdout
    assert done.stderr.startswith(
        "fusepipe-posix: cannot write --json /dev/full: the report is not whole: No space left"
    )


def test_no_checkout(complete: Suite, tmp_path: Path) -> None:
    fails(ExitCode.UPSTREAM, "there is no such directory", "--upstream", tmp_path / "x", "--target", complete.target)
    fails(ExitCode.UPSTREAM, "there is no such directory", "--upstream", "/etc/passwd", "--target", complete.target)
    fails(ExitCode.UPSTREAM, "it has no directory tests/", "--upstream", tmp_path, "--target", complete.target)


def test_no_files(suite: Suite) -> None:
    fails(ExitCode.UPSTREAM, "there are no .t files below", "--upstream", suite.upstream, "--target", suite.target)


def test_a_filter_that_names_nothing(complete: Suite) -> None:
    arguments = ("--upstream", complete.upstream, "--target", complete.target)
    fails(ExitCode.UPSTREAM, "no .t file is called chwon; give a group (chmod)", *arguments, "chmod", "chwon")


def test_not_built(complete: Suite) -> None:
    arguments = ("--upstream", complete.upstream, "--target", complete.target)
    complete.helper.chmod(0o644)
    fails(ExitCode.UPSTREAM, "cannot be executed: Permission denied; build the checkout", *arguments)
    complete.helper.chmod(0o755)
    complete.helper.write_bytes(b"\x7fELF of another machine")
    fails(ExitCode.UPSTREAM, "cannot be executed: Exec format error; build the checkout", *arguments)
    complete.helper.write_text("#!/bin/sh\necho error while loading shared libraries >&2\nexit 127\n")
    fails(ExitCode.UPSTREAM, "cannot be executed: error while loading shared libraries", *arguments)
    complete.helper.unlink()
    fails(ExitCode.UPSTREAM, "it is not built: there is no program", *arguments)


def test_targets_that_cannot_be_used(complete: Suite, tmp_path: Path) -> None:
    upstream = ("--upstream", complete.upstream, "--target")
    fails(ExitCode.TARGET, "No such file or directory", *upstream, tmp_path / "nowhere")
    fails(ExitCode.TARGET, "Not a directory", *upstream, complete.helper)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", complete.target], check=True)
    try:
        fails(
            ExitCode.TARGET, "Read-only file system; name a directory that root may write", *upstream, complete.target
        )
    finally:
        subprocess.run(["umount", complete.target], check=True)


def test_not_root(complete: Suite) -> None:
    imports = "import os, sys, fusepipe.posix.command; from fusepipe.posix.main import main"  # root may read them
    code = f"{imports}; os.setuid(65534); sys.exit(main(sys.argv[1:]))"
    done = run("--upstream", complete.upstream, "--target", complete.target, command=(sys.executable, "-c", code))
    assert done.returncode == ExitCode.NOT_PERMITTED
    assert done.stderr == "fusepipe-posix: cannot run the suite: it acts as several users; run it as root\n"


@pytest.mark.parametrize("package", ["rich", "tap", "junitparser"])
def test_without_the_packages_of_the_extra(package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from fusepipe.posix.main import main; sys.exit(main([]))"
    done = run(command=(sys.executable, "-c", code))
    assert done.returncode == ExitCode.USAGE
    assert done.stderr == f"fusepipe-posix: it needs the Python package {package}; pip install 'fusepipe[posix]'\n"


def test_help_has_every_option_and_exit_code() -> None:
    text = run("--help").stdout
    for option in ("--upstream", "--target", "--jobs", "--timeout", "--junit", "--json"):
        assert f"\n  {option} " in text
    for code in ExitCode:
        assert f"\n  {int(code)}  " in text
    assert MEANING.keys() == set(ExitCode)
    assert "\nExamples:\n  fusepipe-posix --upstream" in text
