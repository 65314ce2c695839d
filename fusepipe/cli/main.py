"""The entry point: runs a command, and turns whatever goes wrong into one line and an exit code."""

import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Final

import click

from fusepipe import __version__, log
from fusepipe.cli import report
from fusepipe.cli.command import Group
from fusepipe.cli.exits import CommandError, ExitCode, StoppedEarly, leaves

NAMES: Final = ("bind", "serve", "mount", "umount", "version", "doctor")


def _command(name: str) -> click.Command:
    command = getattr(import_module(f"fusepipe.cli.{name}"), name)
    assert isinstance(command, click.Command)
    return command


@click.group(
    cls=Group,
    commands_in=_command,
    names=NAMES,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="fusepipe", message="%(prog)s %(version)s")
def fusepipe() -> None:
    """A host directory as a POSIX filesystem in a guest, over vsock or a Unix socket.

    \b
    fusepipe bind SRC MNT            mounts a directory of this machine through the pipe
    fusepipe serve ... / mount ...   does it in two halves, on two machines
    """


def main(args: Sequence[str] | None = None) -> int:
    """Run `fusepipe ARGS` (default: those of this process) and return the exit code.  Prints at most one error line."""
    try:
        result = fusepipe.main(args, prog_name="fusepipe", standalone_mode=False)
        return result if isinstance(result, int) else ExitCode.OK
    except click.UsageError as error:
        report.error(_usage(error))
        return ExitCode.USAGE
    except KeyboardInterrupt:
        return 130
    except click.Abort:
        return 130
    except BaseExceptionGroup as group:
        return _explained(next(leaves(group)))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else ExitCode.OK
    except Exception as error:
        return _explained(error)


def _explained(error: BaseException) -> int:
    """One line for an error, and its exit code."""
    if log.current().level == "debug":
        report.detail("".join(traceback.format_exception(error)))
    if isinstance(error, CommandError):
        report.error(str(error))
        return error.code
    if isinstance(error, StoppedEarly):
        return 128 + error.signal
    if isinstance(error, BrokenPipeError):
        return ExitCode.INTERNAL  # whoever read our output has gone; there is nobody to tell
    text = f"unexpected error: {type(error).__name__}: {error}".replace("\n", " ")
    report.error(f"{text}; --log-level debug shows where, please report it")
    return ExitCode.INTERNAL


def _usage(error: click.UsageError) -> str:
    """What is wrong with the arguments and where to read about the right ones, on one line."""
    command = error.ctx.command_path if error.ctx else "fusepipe"
    text = " ".join(error.format_message().split()).rstrip(".")
    where = command.removeprefix("fusepipe").strip()
    return f"{where}: {text}; see {command} --help" if where else f"{text}; see {command} --help"


if __name__ == "__main__":
    raise SystemExit(main())
