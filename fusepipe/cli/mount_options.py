"""`-o name=value,flag,...` as mount(8) and fstab(5) give it, turned into the long options that it stands for.

Commas part the options; a backslash takes the meaning from the character after it, as in libfuse.  Underscores and
hyphens in names may be exchanged or left out: `allow_other`, `nosuid`.  Names that only mount(8) or the init system
reads are passed over; every other name that is not a long option of the command is an error.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Final

import click

ALIASES: Final = {"ro": "--read-only", "rw": "--read-write"}
"""Names of mount(8) for options that have another name here."""

FOR_OTHERS: Final = frozenset({"auto", "noauto", "defaults", "exec", "async", "relatime", "nofail", "_netdev"})
"""Names that mount(8) or the init system reads, and those that ask for what is so in any case.

`defaults` is rw,suid,dev,exec,auto,nouser,async (mount(8)); here it means the defaults of fusepipe, which are safer.
"""

FOR_OTHERS_PREFIXES: Final = ("x-", "X-", "comment=")
"""Beginnings of options that are comments to the mount itself: mount(8), systemd.mount(5)."""

NOT_IN_A_LIST: Final = frozenset({"--help"})


def split(text: str) -> list[str]:
    """Part a list at its commas.  A backslash keeps the character after it as it is; empty options are dropped."""
    items, current = [], ""
    characters = iter(text)
    for character in characters:
        if character == "\\":
            current += next(characters, "\\")
        elif character == ",":
            items.append(current)
            current = ""
        else:
            current += character
    items.append(current)
    return [item for item in items if item]


def expand(args: Sequence[str], params: Iterable[click.Parameter], ctx: click.Context) -> list[str]:
    """Replace each `-o LIST` among `args` by the long options it stands for, in their place.

    The last of two contradicting options counts, wherever it stands, as in mount(8).  Raises click.UsageError for a
    name that is unknown, a value that is missing or one that is too much.
    """
    options = [param for param in params if isinstance(param, click.Option)]
    with_value = {name for option in options if not option.is_flag and not option.count for name in option.opts}
    flags = {name for option in options if option.is_flag for name in [*option.opts, *option.secondary_opts]}
    flags -= NOT_IN_A_LIST
    done: list[str] = []
    rest = iter(args)
    for arg in rest:
        if arg == "--":
            return [*done, arg, *rest]
        if arg.startswith("-o") and "-o" in with_value:
            text = arg[2:] or next(rest, None)
            if text is None:
                raise click.UsageError("-o needs a list of options after it, for example -o ro,readers=16", ctx)
            done += _long_options(split(text), with_value - {"-o"}, flags, ctx)
        else:
            done.append(arg)
            if arg in with_value and (value := next(rest, None)) is not None:
                done.append(value)
    return done


def known_only(text: str, command: click.Command) -> str:
    """A list without the names that `command` does not know: what `mount -s` asks for."""
    options = [param for param in command.params if isinstance(param, click.Option)]
    known = _without_hyphens({name for option in options for name in [*option.opts, *option.secondary_opts]})
    kept = [item for item in split(text) if _plain(item.partition("=")[0]) in known]
    return ",".join(re.sub(r"([\\,])", r"\\\1", item) for item in kept)


def _plain(name: str) -> str:
    return name.replace("_", "").replace("-", "")


def _without_hyphens(names: Iterable[str]) -> dict[str, str]:
    """Long options by their names without hyphens, mount(8)'s names for them among them."""
    known = {name.removeprefix("--"): name for name in names if name.startswith("--")} | ALIASES
    return {_plain(name): long for name, long in known.items()}


def _long_options(items: Iterable[str], with_value: set[str], flags: set[str], ctx: click.Context) -> Iterator[str]:
    known = _without_hyphens(with_value | flags)
    for item in items:
        name, equals, value = item.partition("=")
        if name in FOR_OTHERS or item.startswith(FOR_OTHERS_PREFIXES):
            continue
        long = known.get(_plain(name))
        if long is None:
            names = [one.removeprefix("--") for one in (with_value | flags) - {"-o"}]
            close = get_close_matches(name.replace("_", "-"), sorted([*names, *ALIASES]), n=3)
            hint = f" Did you mean {' or '.join(close)}?" if close else " --help lists the options."
            raise click.UsageError(f"-o {item}: there is no option {name!r}.{hint}", ctx)
        if long in with_value:
            if not equals:
                raise click.UsageError(f"-o {item}: the option needs a value: {name}=VALUE", ctx)
            yield f"{long}={value}"
        else:
            if equals:
                raise click.UsageError(f"-o {item}: the option takes no value: write {name} alone", ctx)
            yield long
