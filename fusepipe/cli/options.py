"""Options that several commands share, and the kinds of values they take."""

import os
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from fusepipe import log
from fusepipe.cli import report
from fusepipe.cli.exits import CommandError, ExitCode
from fusepipe.server.options import SANDBOX_LEVELS, default_sandbox

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

MIN_READERS: Final = 1
MAX_READERS: Final = 256
DEFAULT_READERS: Final = 64


class Components(click.ParamType[frozenset[str]]):
    """A comma list of components whose requests are traced."""

    name = "components"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> frozenset[str]:
        if isinstance(value, frozenset):
            return value
        names = frozenset(part.strip() for part in value.split(",") if part.strip())
        if unknown := sorted(names.difference(log.TRACEABLE)):
            known = ", ".join(log.TRACEABLE)
            self.fail(f"cannot trace {', '.join(unknown)}; give one or more of {known}", param, ctx)
        return names


def level_option(default: log.Level) -> Callable[[Decorated], Decorated]:
    """--log-level, which every command has."""
    return click.option(
        "--log-level",
        type=click.Choice(log.LEVELS),
        default=default,
        show_default=True,
        help="Log this and what is worse, on stderr; at debug, errors show their traceback.",
    )


def log_options(default: log.Level) -> Callable[[Decorated], Decorated]:
    """The options of the commands that keep running."""

    def decorate(command: Decorated) -> Decorated:
        command = click.option(
            "--log-file",
            type=click.Path(dir_okay=False),
            metavar="FILE",
            show_default="stderr",
            help="Append log lines to this file.",
        )(command)
        command = click.option(
            "--trace",
            type=Components(),
            default=frozenset(),
            metavar="COMPONENTS",
            show_default="none",
            help="Log every single request with its duration in these components: client, wire, server (a comma list).",
        )(command)
        command = click.option(
            "--log-format",
            type=click.Choice(log.FORMATS),
            default="text",
            show_default=True,
            help="One line per event, for people or for machines.",
        )(command)
        return level_option(default)(command)

    return decorate


def set_up_logging(
    log_level: log.Level,
    log_format: log.Format = "text",
    trace: frozenset[str] = frozenset(),
    log_file: str | None = None,
) -> None:
    """Apply the options of `log_options` to this process.  Raises CommandError."""
    log.configure(log_level, log_format, trace)
    log.log_uncaught()
    if log_file:
        try:
            report.log_to(log_file)
        except OSError as error:
            raise CommandError(
                f"--log-file {log_file}", str(error.strerror), "name a file that you may write to", ExitCode.USAGE
            ) from error


NATIVE_OPTION: Final[Callable[[Any], Any]] = click.option(
    "--native",
    type=click.Choice(("auto", "off")),
    default="auto",
    show_default=True,
    help="Answer frequent requests in C where that is possible, or everything in Python.",
)
"""Whether this side of the pipe takes its native path; for `bind` both sides."""


def sandbox_option(command: Decorated) -> Decorated:
    """--sandbox, of the commands that serve."""
    return click.option(
        "--sandbox",
        type=click.Choice(SANDBOX_LEVELS),
        default=default_sandbox,
        show_default="require for root, else prefer",
        help="Confine each session's process to its volume (docs/security.md): in every way or not at all, in those "
        "ways that can be had here, or in none.",
    )(command)


def may_mount_for_others() -> bool:
    """The default of --allow-other: on for root; anybody else may need the consent of /etc/fuse.conf for it."""
    return os.geteuid() == 0


def mount_options(command: Decorated) -> Decorated:
    """The options of `bind` and `mount`."""
    for option in reversed(_MOUNT_OPTIONS):
        command = option(command)
    return command


_MOUNT_OPTIONS: Final[list[Callable[[Any], Any]]] = [
    click.option(
        "--readers",
        type=click.IntRange(MIN_READERS, MAX_READERS),
        default=DEFAULT_READERS,
        show_default=True,
        metavar="N",
        help=f"Requests in service at once, from {MIN_READERS} to {MAX_READERS}.",
    ),
    click.option(
        "--cache",
        default="ttl:1",
        show_default=True,
        metavar="none|ttl:SECONDS|exclusive",
        help="What the mount may remember: nothing; names, attributes and data for SECONDS; or all, where nobody else "
        "writes to the volume: then written data, too, stay in memory for a while.",
    ),
    click.option(
        "--locks",
        type=click.Choice(["local", "shared"]),
        default="local",
        show_default=True,
        help="Who sees the locks of programs: who uses this mount, or also the server and its other mounts.",
    ),
    NATIVE_OPTION,
    click.option(
        "--read-only/--read-write",
        default=False,
        show_default=True,
        help="Refuse to change anything through the mount.",
    ),
    click.option(
        "--allow-other/--no-allow-other",
        default=may_mount_for_others,
        show_default="on for root, else off",
        help="Let other users than the one who mounts into the mount.",
    ),
    click.option(
        "--suid/--no-suid", default=False, show_default=True, help="Honour set-uid and set-gid bits of programs (root)."
    ),
    click.option("--dev/--no-dev", default=False, show_default=True, help="Honour device nodes (root)."),
    click.option(
        "--nonempty/--no-nonempty",
        default=False,
        show_default=True,
        help="Mount also over a directory that is not empty, which hides what is in it.",
    ),
    click.option(
        "--daemon/--foreground",
        default=False,
        show_default=True,
        help="Go on in the background once the mount is ready.",
    ),
    click.option(
        "-o",
        "mount_option_list",
        multiple=True,
        expose_value=False,
        metavar="NAME[=VALUE],...",
        show_default="none",
        help="Any long option as mount(8) gives it: -o ro,suid,readers=16 is --read-only --suid --readers=16.",
    ),
]
