"""A click command whose help ends with examples and its exit codes, and whose `-o` takes what mount(8) passes."""

from collections.abc import Callable, Sequence
from typing import Any

import click

from fusepipe.cli.exits import MEANING, ExitCode
from fusepipe.cli.mount_options import expand


class Command(click.Command):
    """A command of fusepipe.

    `examples` are pairs of a command line and what it does; `exit_codes` are those that the command can end with,
    beside those that every command has.  With `mount_options=True` every `-o name=value` among the arguments becomes
    `--name=value` before click sees it, so that both go through the same checks.
    """

    def __init__(
        self,
        *args: Any,
        examples: Sequence[tuple[str, str]] = (),
        exit_codes: Sequence[ExitCode] = (),
        mount_options: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples
        self.exit_codes = (ExitCode.OK, ExitCode.INTERNAL, ExitCode.USAGE, *exit_codes)
        self.mount_options = mount_options

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if self.mount_options:
            args = expand(args, self.get_params(ctx), ctx)
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Examples"):
            for line, meaning in self.examples:
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")
                formatter.indent()
                formatter.write_text(meaning)
                formatter.dedent()
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(int(code)), MEANING[code]) for code in sorted(self.exit_codes)])


class Group(click.Group):
    """The group of commands.  Each is imported when it is named: `umount` does not pay for what `mount` needs."""

    def __init__(self, *args: Any, commands_in: Callable[[str], click.Command], names: Sequence[str], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._load = commands_in
        self._names = names

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return self._load(cmd_name) if cmd_name in self._names else None

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(int(code)), MEANING[code]) for code in ExitCode])
