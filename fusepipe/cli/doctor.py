"""`fusepipe doctor`: what this machine lacks for mounting and serving, and what to do about it."""

import json
from typing import Literal

import click

from fusepipe import log
from fusepipe.cli.checks import Finding, Status, findings
from fusepipe.cli.command import Command
from fusepipe.cli.exits import ExitCode
from fusepipe.cli.options import level_option, set_up_logging


@click.command(
    cls=Command,
    short_help="Say what this machine lacks, and what to do about it.",
    examples=[
        ("fusepipe doctor", "one line for each thing that was looked at"),
        ("fusepipe doctor --format json", "the same for a program: a list of objects"),
    ],
    exit_codes=[ExitCode.DOCTOR],
)
@click.option("--format", "as_format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@level_option("warning")
def doctor(as_format: Literal["text", "json"], log_level: log.Level) -> int:
    """Look at this machine and say what is missing for fusepipe, and what to install or change.

    "limited" means that mounting works, with less.  A trial mount of an empty directory shows whether it all fits
    together.
    """
    set_up_logging(log_level)
    found = list(findings())
    if as_format == "json":
        click.echo(json.dumps([_as_json(finding) for finding in found], indent=2))
    else:
        for finding in found:
            click.echo(f"{finding.status.value:<8} {finding.name}: {finding.found}")
            if finding.remedy:
                click.echo(f"{'':<8} -> {finding.remedy}")
    missing = any(finding.status is Status.MISSING for finding in found)
    return ExitCode.DOCTOR if missing else ExitCode.OK


def _as_json(finding: Finding) -> dict[str, str]:
    return {
        "name": finding.name,
        "status": finding.status.value,
        "found": finding.found,
        "remedy": finding.remedy,
    }
