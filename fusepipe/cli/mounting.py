"""What `bind` and `mount` have in common: from options to a mount that runs until it ends."""

import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import click

from fusepipe.cli import report
from fusepipe.cli.exits import CommandError, ExitCode, leaves
from fusepipe.cli.notify import notify
from fusepipe.cli.places import absolute, check_python
from fusepipe.cli.running import run_until_stopped

if TYPE_CHECKING:
    from fusepipe.client import MountEnd, MountOptions
    from fusepipe.server import Policy
    from fusepipe.server.options import SandboxLevel
    from fusepipe.transport import Address

BIND_VOLUME: Final = "bind"
"""The name of the one volume that the server of a `bind` has."""

BIND_DRAIN: Final = 2.0
"""Seconds that its server gets to end: once the mount is gone nothing is left that deserves more."""


@dataclass(frozen=True, kw_only=True)
class MountArguments:
    """The options of `bind` and `mount` as the command line gives them."""

    readers: int
    cache: str
    locks: str
    read_only: bool
    allow_other: bool
    suid: bool
    dev: bool
    nonempty: bool
    native: str
    on_disconnect: float = 0.0

    def for_client(self, mountpoint: str, fsname: str) -> "MountOptions":
        """The client's options for a mount at `mountpoint` with the source `fsname`.

        Raises click.BadParameter and CommandError.
        """
        from fusepipe.client import Cache, MountOptions

        try:
            cache = Cache.parse(self.cache)
        except ValueError as error:
            raise click.BadParameter(str(error), click.get_current_context(), param_hint="'--cache'") from error
        shared_locks = self.locks == "shared"
        if shared_locks and cache.write_back:
            raise click.UsageError(
                "--locks shared is for volumes that others use too, --cache exclusive for those that nobody else does",
                click.get_current_context(),
            )
        check_python(mountpoint)
        return MountOptions(
            mountpoint=absolute(mountpoint),
            readers=self.readers,
            cache=cache,
            shared_locks=shared_locks,
            read_only=self.read_only,
            allow_other=self.allow_other,
            suid=self.suid,
            dev=self.dev,
            fsname=fsname,
            nonempty=self.nonempty,
            native=self.native == "auto",
            on_disconnect=self.on_disconnect,
        )


def run_bind(source: str, options: "MountOptions", policy: "Policy", sandbox: "SandboxLevel") -> int:
    """Serve the directory `source` from a process of its own and mount it.  Returns the exit code; raises as `_run`."""
    from fusepipe.client import MountError, run_mount
    from fusepipe.server import ServerOptions, Volume, check_sandbox, start_session
    from fusepipe.transport import Stream

    options_of_server = ServerOptions(drain=BIND_DRAIN, native=options.native, sandbox=sandbox)

    async def work(ready: Callable[[], None]) -> "MountEnd":
        async with start_session(Volume(BIND_VOLUME, source, options.read_only, policy), options_of_server) as process:

            async def connect() -> Stream:
                ours, theirs = socket.socketpair()
                process.give(theirs)
                return Stream(ours)

            try:
                return await run_mount(connect, BIND_VOLUME, options, body_crc=False, ready=ready)
            except (MountError, BaseExceptionGroup):
                if process.sandbox is not None:
                    check_sandbox(process.sandbox, sandbox)
                raise

    return _run(work, source, options.mountpoint)


def run_mount_of(address: "Address", volume: str, options: "MountOptions", connect_timeout: float) -> int:
    """Mount a volume of the server at `address`.  Returns the exit code; raises as `_run`."""
    from fusepipe.client import run_mount
    from fusepipe.transport import FdAddress, connector

    async def work(ready: Callable[[], None]) -> "MountEnd":
        async with connector(address, deadline=connect_timeout) as connect:
            return await run_mount(
                connect,
                volume,
                options,
                body_crc=address.wants_body_crc,
                ready=ready,
                single=isinstance(address, FdAddress),
            )

    return _run(work, options.fsname, options.mountpoint)


def _run(work: Callable[[Callable[[], None]], Awaitable["MountEnd"]], shown: str, mountpoint: str) -> int:
    """Mount, say so in one line once it is ready, and return the exit code when it has ended.

    `shown` is what the user called the other side.  Raises CommandError and StoppedEarly.
    """
    from fusepipe.client import MountError
    from fusepipe.server import SandboxError, VolumeError
    from fusepipe.transport import ConnectError

    is_ready = False

    def ready() -> None:
        nonlocal is_ready
        is_ready = True
        report.ready(f"{shown} is mounted at {mountpoint}")
        notify("READY=1")

    try:
        end = run_until_stopped(lambda: work(ready), is_ready=lambda: is_ready, stopping=lambda: notify("STOPPING=1"))
    except (MountError, ConnectError, VolumeError, SandboxError, BaseExceptionGroup) as error:
        first = next(leaves(error))
        if isinstance(first, MountError):
            code = ExitCode(first.exit_code)
        elif isinstance(first, SandboxError):
            code = ExitCode.NOT_PERMITTED
        elif isinstance(first, ConnectError):
            code = ExitCode.CONNECT
        elif isinstance(first, VolumeError):
            code = ExitCode.VOLUME
        else:
            raise
        raise CommandError(f"cannot mount {shown} at {mountpoint}", first.cause, first.remedy, code) from error
    if end is None:
        return ExitCode.OK
    code = ExitCode(end.exit_code)
    if code is not ExitCode.OK:
        remedy = f"mount it again, or end it with fusepipe umount {mountpoint}"
        report.error(f"{mountpoint}: {end.text}; {remedy}")
    return code
