"""Every command explains itself: defaults, examples, exit codes."""

import re

import click
import pytest

from fusepipe.cli.exits import MEANING, ExitCode
from fusepipe.cli.main import NAMES, fusepipe
from tests.support.program import Programs


def command(name: str) -> click.Command:
    found = fusepipe.get_command(click.Context(fusepipe), name)
    assert found is not None
    return found


@pytest.mark.parametrize("name", NAMES)
def test_help_shows_every_option_with_its_default(program: Programs, name: str) -> None:
    ended = program.run(name, "--help")
    assert ended.process.returncode == 0
    assert ended.stderr == ""
    options = ended.stdout[ended.stdout.index("Options:") : ended.stdout.index("Examples:")]
    entries = re.split(r"\n  (?=-)", options)[1:]
    for option in (param for param in command(name).params if isinstance(param, click.Option)):
        entry = next(entry for entry in entries if option.opts[0] in entry.split("  ")[0])
        assert "[default:" in entry, f"{option.opts[0]} does not show its default"


@pytest.mark.parametrize("name", NAMES)
def test_help_has_examples_that_the_command_accepts(program: Programs, name: str) -> None:
    text = program.run(name, "--help").stdout
    examples = re.findall(rf"^  fusepipe {name}\b(.*)$", text[text.index("Examples:") :], re.M)
    assert examples
    for example in examples:
        assert command(name).make_context(name, example.split()).params.keys() >= {"log_level"}


@pytest.mark.parametrize("name", NAMES)
def test_help_lists_exit_codes(program: Programs, name: str) -> None:
    text = program.run(name, "--help").stdout
    section = text[text.index("Exit codes:") :]
    assert {0, 1, 2} <= {int(number) for number in re.findall(r"^  (\d+)  ", section, re.M)}


def test_the_command_alone_lists_the_commands_and_all_exit_codes(program: Programs) -> None:
    ended = program.run("--help")
    assert ended.process.returncode == 0
    for name in NAMES:
        assert re.search(rf"^  {name} ", ended.stdout, re.M)
    for code in ExitCode:
        assert re.search(rf"^  {int(code)} ", ended.stdout, re.M)


def test_every_exit_code_has_a_meaning() -> None:
    assert MEANING.keys() == set(ExitCode)


def test_short_help(program: Programs) -> None:
    assert program.run("bind", "-h").stdout == program.run("bind", "--help").stdout


def test_version_option(program: Programs) -> None:
    ended = program.run("--version")
    assert re.fullmatch(r"fusepipe \S+\n", ended.stdout)
