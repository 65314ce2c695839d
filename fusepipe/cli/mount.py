"""`fusepipe mount`: the guest's half, which mounts a volume of a server."""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import click

from fusepipe.cli import mounting
from fusepipe.cli.command import Command
from fusepipe.cli.daemon import go_to_background
from fusepipe.cli.durations import Duration
from fusepipe.cli.exits import ExitCode
from fusepipe.cli.options import log_options, mount_options, set_up_logging
from fusepipe.cli.places import absolute
from fusepipe.transport import Address, AddressError, FirecrackerConnectAddress, UnixAddress, parse_target


class Target(NamedTuple):
    """Where a server is, and the volume wanted there."""

    address: Address
    volume: str
    text: str
    """What mount tables show: as it was written, so that mount(8) finds a line of fstab(5) in them."""


class TargetText(click.ParamType[Target]):
    """ADDR/NAME.  Paths become absolute."""

    name = "target"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Target:
        if isinstance(value, Target):
            return value
        try:
            address, volume = parse_target(value)
            if isinstance(address, UnixAddress | FirecrackerConnectAddress) and not address.path.startswith("/"):
                address = replace(address, path=absolute(address.path))
                value = f"{address}/{volume}"
            return Target(address, volume, value)
        except AddressError as error:
            self.fail(str(error), param, ctx)


@click.command(
    cls=Command,
    short_help="Mount a volume of a server.",
    mount_options=True,
    examples=[
        ("fusepipe mount unix:/run/fusepipe.sock/data /mnt", "mounts the volume data of a server on this machine"),
        (
            "fusepipe mount vsock:host:5000/data /mnt --daemon",
            "in a guest: the volume data of its host, in the background",
        ),
        ("fusepipe mount vsock:host:5000/data /mnt -o ro,readers=16,cache=ttl:5", "options as mount(8) writes them"),
    ],
    exit_codes=[
        ExitCode.MOUNT_POINT,
        ExitCode.VOLUME,
        ExitCode.CONNECT,
        ExitCode.REFUSED,
        ExitCode.NOT_PERMITTED,
        ExitCode.LOST,
        ExitCode.STALE,
    ],
)
@click.argument("target", metavar="ADDR/NAME", type=TargetText())
@click.argument("mnt", type=str)  # click.Path asks the mount, which may not answer
@click.option(
    "--connect-timeout",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to try to reach the server; it may start after the mount.  Reached, it has 60 seconds to answer.",
)
@click.option(
    "--on-disconnect",
    type=Duration(wait=math.inf, fail=0.0),
    default="wait",
    show_default=True,
    metavar="wait|SECONDS|fail",
    help="What programs get when the connection is lost: they wait until there is another one, wait for SECONDS and "
    "then get errors, or get errors at once.  With fd:N always fail.",
)
@mount_options
@log_options("warning")
def mount(target: Target, mnt: str, connect_timeout: float, on_disconnect: float, daemon: bool, **options: Any) -> int:
    """Mount the volume NAME of the server at ADDR on the directory MNT.

    ADDR is unix:PATH, vsock:CID:PORT, vsock-listen:PORT, firecracker-connect:PATH:PORT, or fd:N for a connected socket
    that this process inherits.  NAME is what follows the last slash.

    It stays in the foreground, prints one line when the mount is ready, and unmounts on SIGINT and SIGTERM.
    When the connection is lost, it goes on over another one, and every request runs once.
    """
    logging = {name: options.pop(name) for name in ("log_level", "log_format", "trace", "log_file")}
    set_up_logging(**logging)
    if daemon:
        go_to_background(logs_to_file=logging["log_file"] is not None)
    arguments = mounting.MountArguments(**options, on_disconnect=on_disconnect)
    client_options = arguments.for_client(mnt, fsname=target.text)
    return mounting.run_mount_of(target.address, target.volume, client_options, connect_timeout)
