"""`fusepipe bind`: both halves on this machine, over socket pairs."""

from typing import Any

import click

from fusepipe.cli import mounting
from fusepipe.cli.command import Command
from fusepipe.cli.daemon import go_to_background
from fusepipe.cli.exits import ExitCode
from fusepipe.cli.options import log_options, mount_options, sandbox_option, set_up_logging
from fusepipe.cli.places import absolute, check_apart, check_source
from fusepipe.cli.policy import policy_options
from fusepipe.server import Policy
from fusepipe.server.options import SandboxLevel


@click.command(
    cls=Command,
    short_help="Mount a directory of this machine through the pipe.",
    mount_options=True,
    examples=[
        ("fusepipe bind ~/project /mnt", "shows ~/project at /mnt until it is stopped"),
        ("fusepipe bind --daemon --read-only /srv/data /mnt", "goes to the background; nothing can be changed"),
        ("fusepipe bind --readers 128 --cache none /srv/data /mnt", "many slow files, and nothing remembered"),
    ],
    exit_codes=[
        ExitCode.MOUNT_POINT,
        ExitCode.VOLUME,
        ExitCode.REFUSED,
        ExitCode.NOT_PERMITTED,
        ExitCode.LOST,
    ],
)
@click.argument("src", type=click.Path())
@click.argument("mnt", type=str)  # click.Path asks the mount, which may not answer
@mount_options
@policy_options
@sandbox_option
@log_options("warning")
def bind(src: str, mnt: str, daemon: bool, policy: Policy, sandbox: SandboxLevel, **options: Any) -> int:
    """Mount the directory SRC on the directory MNT through the pipe, with nothing else to start.

    It stays in the foreground, prints one line when the mount is ready, and unmounts on SIGINT and SIGTERM.
    """
    logging = {name: options.pop(name) for name in ("log_level", "log_format", "trace", "log_file")}
    set_up_logging(**logging)
    if daemon:
        go_to_background(logs_to_file=logging["log_file"] is not None)
    check_source(src)
    check_apart(src, mnt)
    source = absolute(src)
    client_options = mounting.MountArguments(**options).for_client(mnt, fsname=source)
    return mounting.run_bind(source, client_options, policy, sandbox)
