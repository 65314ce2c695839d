"""`fusepipe umount`: ends a mount, also one whose server does not answer any more."""

import click

from fusepipe import log
from fusepipe.cli.command import Command
from fusepipe.cli.exits import CommandError, ExitCode
from fusepipe.cli.options import level_option, set_up_logging


@click.command(
    cls=Command,
    short_help="End a mount.",
    examples=[
        ("fusepipe umount /mnt", "ends the mount at /mnt; fails while programs use it"),
        ("fusepipe umount --lazy /mnt", "takes it out of sight at once, and ends it when its users are done"),
    ],
    exit_codes=[ExitCode.MOUNT_POINT, ExitCode.NOT_PERMITTED],
)
@click.argument("mnt", type=str)  # click.Path asks the mount, which may not answer
@click.option("--lazy/--no-lazy", default=False, show_default=True, help="Unmount also while programs use the mount.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long data may take to be written back before the connection is cut.",
)
@level_option("warning")
def umount(mnt: str, lazy: bool, timeout: float, log_level: log.Level) -> None:
    """Unmount what `bind` or `mount` mounted at MNT.

    A mount whose server is dead or silent is ended as well: programs that wait in it get an error.
    """
    set_up_logging(log_level)
    from fusepipe.client import MountError, unmount

    try:
        unmount(mnt, lazy=lazy, timeout=timeout)
    except MountError as error:
        raise CommandError(f"cannot unmount {mnt}", error.cause, error.remedy, ExitCode(error.exit_code)) from error
