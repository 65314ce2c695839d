"""`fusepipe version`: the versions of everything that takes part."""

import contextlib
import ctypes
import json
import platform
from importlib import import_module, metadata
from typing import Literal

import click

from fusepipe import __version__, log
from fusepipe.cli.command import Command
from fusepipe.cli.options import level_option, set_up_logging
from fusepipe.wire.messages import MAJOR, MINOR

LIBRARIES = ("pyfuse3", "trio", "msgpack", "cffi", "click", "structlog")
LIBFUSE_NAMES = ("libfuse3.so.4", "libfuse3.so.3")


def libfuse_version() -> str | None:
    """The version of the libfuse 3 that pyfuse3 loads, or None where there is none.

    With the device filter loaded it is the one in this process (fuse_pkgversion(), fuse_common.h).
    """
    with contextlib.suppress(ImportError):  # not built here: then the library is asked by its name
        import_module("fusepipe.device")
    for name in (None, *LIBFUSE_NAMES):
        try:
            function = ctypes.CDLL(name).fuse_pkgversion
        except (OSError, AttributeError):
            continue
        function.restype = ctypes.c_char_p
        found: bytes = function()
        return found.decode()
    return None


def versions() -> dict[str, str | None]:
    """What takes part, and its version; None where it is not installed."""
    found: dict[str, str | None] = {
        "fusepipe": __version__,
        "protocol": f"{MAJOR}.{MINOR}",
        "python": platform.python_version(),
        "kernel": platform.release(),
        "libfuse": libfuse_version(),
    }
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            found[library] = None
    return found


@click.command(
    cls=Command,
    short_help="Show the versions of everything that takes part.",
    examples=[
        ("fusepipe version", "one line for each part"),
        ("fusepipe version --format json", "the same for a program"),
    ],
)
@click.option("--format", "as_format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@level_option("warning")
def version(as_format: Literal["text", "json"], log_level: log.Level) -> None:
    """Show the versions of fusepipe, its protocol, the libraries it uses and the kernel."""
    set_up_logging(log_level)
    found = versions()
    if as_format == "json":
        click.echo(json.dumps(found))
        return
    for name, text in found.items():
        click.echo(f"{name:<10} {text or 'not installed'}")
