"""The entry point: runs the command, and turns whatever goes wrong into one line and an exit code."""

import os
import sys
from collections.abc import Sequence
from typing import Final

PACKAGES: Final = ("click", "junitparser", "rich", "tap")
"""What the command needs; all but click come with the extra `posix` of the package."""


def main(args: Sequence[str] | None = None) -> int:
    """Run `fusepipe-posix ARGS` (default: those of this process) and return the exit code."""
    try:
        import click

        from fusepipe.posix.command import fusepipe_posix
        from fusepipe.posix.errors import ExitCode, PosixError
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package not in PACKAGES:
            raise
        return _fail(f"it needs the Python package {package}; pip install 'fusepipe[posix]'", 2)
    try:
        result = fusepipe_posix.main(args, prog_name="fusepipe-posix", standalone_mode=False)
        return result if isinstance(result, int) else ExitCode.OK
    except click.UsageError as error:
        text = " ".join(error.format_message().split()).rstrip(".")
        return _fail(f"{text}; see fusepipe-posix --help", ExitCode.USAGE)
    except PosixError as error:
        return _fail(str(error), error.code)
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whoever read our output has gone; Python would complain at exit
        return ExitCode.INTERNAL
    except Exception as error:
        return _fail(f"unexpected error: {type(error).__name__}: {error}; please report it", ExitCode.INTERNAL)


def _fail(text: str, code: int) -> int:
    print("fusepipe-posix:", "".join(c if c.isprintable() else repr(c)[1:-1] for c in text), file=sys.stderr)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
