"""Options that say what guests may do on the host: identities, and what they may leave."""

import functools
import grp
import pwd
from collections.abc import Callable
from typing import Any

import click

from fusepipe.server.policy import Extent, Policy, PolicyError, parse_extent, parse_squash


class ExtentText(click.ParamType[Extent]):
    """GUEST:HOST:COUNT."""

    name = "ids"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Extent:
        if isinstance(value, tuple):
            return value
        try:
            return parse_extent(value)
        except PolicyError as error:
            self.fail(str(error), param, ctx)


class SquashText(click.ParamType[tuple[int, int]]):
    """UID:GID."""

    name = "ids"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        try:
            return parse_squash(value)
        except PolicyError as error:
            self.fail(str(error), param, ctx)


class UserId(click.ParamType[int]):
    """A user's name or number."""

    name = "user"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if value.isascii() and value.isdigit():
            return int(value)
        try:
            return pwd.getpwnam(value).pw_uid
        except (KeyError, ValueError):
            self.fail(f"there is no user {value!r} on this host; give a name or a number", param, ctx)


class SocketOwner(click.ParamType[tuple[int | None, int | None]]):
    """USER, USER:GROUP or :GROUP."""

    name = "owner"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int | None, int | None]:
        if isinstance(value, tuple):
            return value
        user, _, group = value.partition(":")
        if not user and not group:
            self.fail(f"{value!r} is neither USER nor USER:GROUP", param, ctx)
        uid = UserId().convert(user, param, ctx) if user else None
        if not group or (group.isascii() and group.isdigit()):
            return uid, int(group) if group else None
        try:
            return uid, grp.getgrnam(group).gr_gid
        except (KeyError, ValueError):
            self.fail(f"there is no group {group!r} on this host; give a name or a number", param, ctx)


class SocketMode(click.ParamType[int]):
    """Permissions in octal."""

    name = "mode"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if not value or len(value) > 4 or value.strip("01234567") or int(value, 8) > 0o777:
            self.fail(f"{value!r} is not a mode in octal from 0 to 0777, such as 0660", param, ctx)
        return int(value, 8)


def policy_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `serve`, for all volumes, and of `bind`; the command gets them as `policy`."""

    @functools.wraps(command)
    def run(
        *,
        no_setuid: bool,
        no_devices: bool,
        map_uid: tuple[Extent, ...],
        map_gid: tuple[Extent, ...],
        squash_root: bool,
        squash_all: tuple[int, int] | None,
        **others: Any,
    ) -> Any:
        try:
            policy = Policy(no_setuid, no_devices, map_uid, map_gid, squash_root, squash_all)
        except PolicyError as error:
            raise click.UsageError(str(error), click.get_current_context()) from error
        return command(policy=policy, **others)

    for option in reversed(_POLICY_OPTIONS):
        run = option(run)
    return run


_POLICY_OPTIONS: list[Callable[[Any], Any]] = [
    click.option(
        "--no-setuid",
        is_flag=True,
        default=False,
        show_default="off",
        help="No set-uid and set-gid files and no file capabilities can be made in the directory.",
    ),
    click.option(
        "--no-devices",
        is_flag=True,
        default=False,
        show_default="off",
        help="No device nodes can be made in the directory.",
    ),
    click.option(
        "--map-uid",
        type=ExtentText(),
        multiple=True,
        metavar="GUEST:HOST:COUNT",
        show_default="each for itself",
        help="COUNT user ids from GUEST on stand for those from HOST on here; others are nobody's.  May be given "
        "several times.",
    ),
    click.option(
        "--map-gid",
        type=ExtentText(),
        multiple=True,
        metavar="GUEST:HOST:COUNT",
        show_default="each for itself",
        help="The same for groups.",
    ),
    click.option(
        "--squash-root",
        is_flag=True,
        default=False,
        show_default="off",
        help="Root there is nobody here, and root here is nobody there.",
    ),
    click.option(
        "--squash-all",
        type=SquashText(),
        metavar="UID:GID",
        show_default="none",
        help="Do everything as this user and group.",
    ),
]
