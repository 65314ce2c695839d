"""`fusepipe serve`: the host's half, which serves directories to guests."""

from typing import Any

import click

from fusepipe import log
from fusepipe.cli import report
from fusepipe.cli.command import Command
from fusepipe.cli.durations import Duration
from fusepipe.cli.exits import CommandError, ExitCode, leaves
from fusepipe.cli.notify import notify
from fusepipe.cli.options import NATIVE_OPTION, log_options, sandbox_option, set_up_logging
from fusepipe.cli.policy import SocketMode, SocketOwner, UserId, policy_options
from fusepipe.cli.running import run_until_stopped
from fusepipe.server import Policy, PolicyError, ServerOptions, Volume, VolumeError
from fusepipe.server.options import SandboxLevel
from fusepipe.transport import Address, AddressError


class ListenAddress(click.ParamType[Address]):
    """Where to listen."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        if isinstance(value, Address):
            return value
        try:
            return Address.parse(value)
        except AddressError as error:
            self.fail(str(error), param, ctx)


class VolumeText(click.ParamType[Volume]):
    """NAME=DIR or NAME=DIR:OPTION,..."""

    name = "volume"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Volume:
        if isinstance(value, Volume):
            return value
        try:
            return Volume.parse(value)
        except VolumeError as error:
            self.fail(str(error), param, ctx)


@click.command(
    cls=Command,
    short_help="Serve directories to who mounts them.",
    examples=[
        ("fusepipe serve --listen unix:/run/fusepipe.sock --volume data=/srv/data", "one directory, on this machine"),
        (
            "fusepipe serve --listen vsock:any:5000 --volume data=/srv/data --volume docs=/usr/share/doc:ro",
            "two volumes for the VMs of this machine, the second one read-only",
        ),
        (
            "fusepipe serve --listen vsock:any:5000 --volume a=/srv/a:no-setuid,no-devices,allow-cid=3 "
            "--map-uid 0:100000:65536 --map-gid 0:100000:65536",
            "for the VM with CID 3 alone, whose users are 100000 and up on this host",
        ),
        (
            "fusepipe serve --listen firecracker:/run/vm1/vsock.sock:5000 --volume data=/srv/data",
            "for a Firecracker VM with that vsock device",
        ),
    ],
    exit_codes=[ExitCode.VOLUME, ExitCode.CONNECT, ExitCode.REFUSED, ExitCode.NOT_PERMITTED],
)
@click.option(
    "--listen",
    type=ListenAddress(),
    multiple=True,
    required=True,
    metavar="ADDR",
    show_default="none, at least one is needed",
    help="Listen on ADDR: unix:PATH, vsock:CID:PORT, vsock-listen:PORT or firecracker:PATH:PORT; or serve the one "
    "connection of fd:N or firecracker-connect:PATH:PORT.  May be given several times.",
)
@click.option(
    "--volume",
    type=VolumeText(),
    multiple=True,
    required=True,
    metavar="NAME=DIR[:OPTION,...]",
    show_default="none, at least one is needed",
    help="Serve the directory DIR as NAME; with :ro nobody can change it.  Further options: no-setuid, no-devices, "
    "squash-root, squash-all=UID:GID, map-uid=GUEST:HOST:COUNT, map-gid=..., allow-uid=UID+UID, allow-cid=CID+CID.  "
    "May be given several times.",
)
@click.option(
    "--drain",
    type=click.FloatRange(min=0),
    default=ServerOptions.drain,
    show_default=True,
    metavar="SECONDS",
    help="How long running requests may take to end when the server is told to stop.",
)
@click.option(
    "--session-grace",
    type=Duration(),
    default="24h",
    show_default=True,
    metavar="TIME",
    help="How long a mount's session is kept after its last connection was lost, in seconds or as in 10m and 24h; "
    "files that it has open and its locks stay so long.  With 0, and for fd:N, it ends at once.",
)
@click.option(
    "--session-deaths",
    type=click.IntRange(min=1),
    default=ServerOptions.session_deaths,
    show_default=True,
    metavar="N",
    help="When the process that serves a mount dies, another one goes on in its place; when N of them die within a "
    "minute, the mount's session ends.",
)
@click.option(
    "--max-sessions",
    type=click.IntRange(min=1),
    default=ServerOptions.max_sessions,
    show_default=True,
    metavar="N",
    help="Mounts that may exist at once, those that are kept for --session-grace among them; one more is refused.",
)
@click.option(
    "--fd-budget",
    type=click.IntRange(min=16),
    metavar="N",
    show_default="most of what the limit of open files allows",
    help="Open files that each session may keep for inodes that its guest knows.",
)
@click.option(
    "--allow-cid",
    type=click.IntRange(0, 0xFFFFFFFE),
    multiple=True,
    metavar="CID",
    show_default="all",
    help="Only the machine with this context id may connect to vsock addresses.  May be given several times.",
)
@click.option(
    "--allow-uid",
    type=UserId(),
    multiple=True,
    metavar="USER",
    show_default="all",
    help="Only this user of the host may connect to Unix sockets (the VMM's, for firecracker:).  May be given several "
    "times.",
)
@click.option(
    "--socket-mode",
    type=SocketMode(),
    metavar="MODE",
    show_default="by the umask",
    help="Permissions of the files of Unix sockets, in octal: who may write may connect.",
)
@click.option(
    "--socket-owner",
    type=SocketOwner(),
    metavar="USER[:GROUP]",
    show_default="who starts the server",
    help="Owner of the files of Unix sockets (root).",
)
@click.option(
    "--max-sessions-per-peer",
    type=click.IntRange(min=1),
    default=ServerOptions.max_sessions_per_peer,
    show_default=True,
    metavar="N",
    help="Mounts that one machine, or one user of the host, may have at once on an address.",
)
@click.option(
    "--replace",
    is_flag=True,
    show_default="off",
    help="Take the place of this user's server that runs at these addresses: its mounts go on with this one, and it "
    "ends.  Where none runs, start as without.",
)
@policy_options
@sandbox_option
@NATIVE_OPTION
@log_options("info")
def serve(
    listen: tuple[Address, ...],
    volume: tuple[Volume, ...],
    drain: float,
    session_grace: float,
    session_deaths: int,
    max_sessions: int,
    fd_budget: int | None,
    native: str,
    sandbox: SandboxLevel,
    allow_cid: tuple[int, ...],
    allow_uid: tuple[int, ...],
    socket_mode: int | None,
    socket_owner: tuple[int | None, int | None] | None,
    max_sessions_per_peer: int,
    replace: bool,
    policy: Policy,
    **logging: Any,
) -> int:
    """Serve directories of this machine, each as a volume with a name, to who mounts them.

    It stays in the foreground, prints one line when every address listens, and tells the service manager (sd_notify).
    SIGTERM and SIGINT let running requests end, and then end the server.
    """
    set_up_logging(**logging)
    from fusepipe.server import HandoverError, SandboxError, ServerError, serve
    from fusepipe.transport import ConnectError, ListenError, SocketFile

    try:
        volumes = [one.under(policy) for one in volume]
    except PolicyError as error:
        raise click.UsageError(str(error), click.get_current_context()) from error
    is_ready = False

    def ready() -> None:
        nonlocal is_ready
        is_ready = True
        names = ", ".join(one.name for one in volume)
        report.ready(f"serving {names} on {', '.join(map(str, listen))}")
        notify("READY=1")

    options = ServerOptions(
        drain=drain,
        session_grace=session_grace,
        session_deaths=session_deaths,
        max_sessions=max_sessions,
        max_sessions_per_peer=max_sessions_per_peer,
        allowed_uids=allow_uid or None,
        fd_budget=fd_budget,
        native=native == "auto",
        allowed_cids=allow_cid or None,
        sandbox=sandbox,
    )
    try:
        run_until_stopped(
            lambda: serve(
                listen,
                volumes,
                options,
                socket_file=SocketFile(socket_mode, *(socket_owner or ())),
                ready=ready,
                replace=replace,
                # The one that the service manager knows is to be the other one from now on.
                replaced=lambda pid: notify(f"MAINPID={pid}") if pid else None,
            ),
            is_ready=lambda: is_ready,
            stopping=lambda: notify("STOPPING=1"),
        )
    except (ServerError, VolumeError, ListenError, ConnectError, BaseExceptionGroup) as error:
        first = next(leaves(error))
        if isinstance(first, SandboxError):
            code = ExitCode.NOT_PERMITTED
        elif isinstance(first, HandoverError):
            code = ExitCode.REFUSED
        elif isinstance(first, ServerError):
            code = ExitCode.USAGE
        elif isinstance(first, VolumeError):
            code = ExitCode.VOLUME
        elif isinstance(first, ListenError | ConnectError):
            raise CommandError(str(first.address), first.cause, first.remedy, ExitCode.CONNECT) from error
        else:
            raise
        raise CommandError("cannot serve", first.cause, first.remedy, code) from error
    log.get_logger("server").info("the server has ended")
    return ExitCode.OK
