"""`mount.fusepipe`: what mount(8) runs for `mount -t fusepipe ADDR/NAME MNT` and for a line of fstab(5).

    mount.fusepipe ADDR/NAME MNT [-fnsv] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]

It is `fusepipe mount --daemon` under another name: it returns when the mount is ready.  The exit code is one that
mount(8) knows, and the error, if any, is one line on stderr.
"""

import sys
from collections.abc import Sequence
from typing import Final

import click

from fusepipe.cli import report
from fusepipe.cli.exits import ExitCode
from fusepipe.cli.main import main as run_command
from fusepipe.cli.mount import mount
from fusepipe.cli.mount_options import known_only

USAGE: Final = 1
INTERNAL: Final = 4
INTERRUPTED: Final = 8
FAILED: Final = 32
"""Exit codes of mount(8)."""


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="OPTIONS are those of fusepipe mount: see fusepipe mount --help.",
)
@click.argument("target", metavar="ADDR/NAME")
@click.argument("mnt", type=str)  # click.Path asks the mount, which may not answer
@click.option("-o", "options", multiple=True, metavar="OPTIONS", help="A comma list, as in fstab(5).")
@click.option("-f", "--fake", is_flag=True, help="Check the arguments and do nothing.")
@click.option("-n", "no_mtab", is_flag=True, help="Accepted: no table but the kernel's is written in any case.")
@click.option("-s", "--sloppy", is_flag=True, help="Pass over options that are not known.")
@click.option("-v", "--verbose", is_flag=True, help="Say when the mount is ready.")
@click.option("-N", "namespace", metavar="NAMESPACE", help="Accepted: mount(8) has entered it already.")
@click.option("-t", "kind", metavar="TYPE", help="Accepted: it is fusepipe.")
def mount_fusepipe(
    target: str,
    mnt: str,
    options: tuple[str, ...],
    fake: bool,
    no_mtab: bool,
    sloppy: bool,
    verbose: bool,
    namespace: str | None,
    kind: str | None,
) -> int:
    """Mount the volume NAME of the fusepipe server at ADDR on the directory MNT, and go on in the background."""
    del no_mtab, namespace, kind
    lists = [known_only(text, mount) for text in options] if sloppy else list(options)
    # After the lists, in which `foreground` might stand: mount(8) waits for the end of this command.
    arguments = [*(word for text in lists for word in ("-o", text)), "--daemon", "--", target, mnt]
    if fake:
        mount.make_context("mount", arguments)
        return ExitCode.OK
    if not verbose:
        report.only_errors()
    return run_command(["mount", *arguments])


def main(args: Sequence[str] | None = None) -> int:
    """Run `mount.fusepipe ARGS` (default: those of this process) and return mount(8)'s exit code."""
    try:
        code = mount_fusepipe.main(args, prog_name="mount.fusepipe", standalone_mode=False)
    except click.UsageError as error:
        report.error(" ".join(error.format_message().split()))
        return USAGE
    except click.Abort:
        return INTERRUPTED
    return _for_mount(code if isinstance(code, int) else ExitCode.OK)


def _for_mount(code: int) -> int:
    """What mount(8) calls it."""
    if code == ExitCode.OK:
        return 0
    if code in (ExitCode.USAGE, ExitCode.NOT_PERMITTED):
        return USAGE
    if code == ExitCode.INTERNAL:
        return INTERNAL
    return INTERRUPTED if code > 128 else FAILED


if __name__ == "__main__":
    sys.exit(main())
