"""Volumes: which directories a server offers, and under which names."""

import difflib
import errno
import os
import re
import stat
from dataclasses import dataclass, field, replace
from typing import Any, Final

from fusepipe.server.access import Access
from fusepipe.server.policy import Policy, PolicyError, parse_extent, parse_squash

FLAGS: Final = ("ro", "no-setuid", "no-devices", "squash-root")
VALUES: Final = ("squash-all", "map-uid", "map-gid", "allow-uid", "allow-cid")
"""The options of a volume, without and with a value."""

_OPTIONS: Final = re.compile(f":(?=(?:{'|'.join((*FLAGS, *VALUES))})(?:[,=]|$))")
_REMEDY: Final = "write NAME=DIRECTORY:OPTION,... with " + ", ".join(
    (*FLAGS, "squash-all=UID:GID", "map-uid=GUEST:HOST:COUNT", "map-gid=...", "allow-uid=UID+UID", "allow-cid=CID+CID")
)


class VolumeError(ValueError):
    """A volume that cannot be served.  `cause` says why, `remedy` what to do; the text of the exception has both."""

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(f"{cause}; {remedy}")
        self.cause = cause
        self.remedy = remedy


@dataclass(frozen=True)
class Volume:
    """A directory of this host and the name that clients ask for.  `path` may be relative to the working directory."""

    name: str
    path: str
    read_only: bool = False
    policy: Policy = field(default_factory=Policy)
    access: Access = field(default_factory=Access)

    def __post_init__(self) -> None:
        if not self.name:
            raise VolumeError("the volume has no name", "write NAME=DIRECTORY, for example data=/srv/data")
        if "/" in self.name or "\0" in self.name:
            raise VolumeError(
                f"the volume's name {self.name!r} contains a slash or NUL",
                "choose a name without: clients ask ADDRESS/NAME",
            )
        if not self.path or "\0" in self.path:
            raise VolumeError(
                f"volume {self.name!r} has no directory", "write NAME=DIRECTORY, for example data=/srv/data"
            )

    @staticmethod
    def parse(text: str) -> "Volume":
        """Read NAME=DIRECTORY or NAME=DIRECTORY:OPTION,OPTION...  Raises VolumeError.

        The options begin behind the last colon that an option's name follows; a directory whose own name ends like that
        is written with a slash at its end.
        """
        name, equals, rest = text.partition("=")
        if not equals:
            raise VolumeError(f"{text!r} is not a volume", "write NAME=DIRECTORY, for example data=/srv/data")
        colons = [match.start() for match in _OPTIONS.finditer(rest)]
        if not colons:
            return Volume(name, rest)
        volume = Volume(name, rest[: colons[-1]])
        try:
            return volume._with(rest[colons[-1] + 1 :].split(","))
        except PolicyError as error:
            raise VolumeError(f"volume {name!r}: {error}", _REMEDY) from error

    def _with(self, options: list[str]) -> "Volume":
        values: dict[str, list[str]] = {}
        for option in options:
            word, equals, value = option.partition("=")
            if word not in (VALUES if equals else FLAGS):
                raise PolicyError(_unknown(word, valued=bool(equals)))
            values.setdefault(word, []).extend(value.split("+"))
        squashes = [parse_squash(value) for value in values.get("squash-all", [])]
        if len(squashes) > 1:
            raise PolicyError("squash-all can name one user only")
        return replace(
            self,
            read_only="ro" in values,
            policy=Policy(
                no_setuid="no-setuid" in values,
                no_devices="no-devices" in values,
                map_uid=tuple(parse_extent(value) for value in values.get("map-uid", [])),
                map_gid=tuple(parse_extent(value) for value in values.get("map-gid", [])),
                squash_root="squash-root" in values,
                squash_all=squashes[0] if squashes else None,
            ),
            access=Access(_ids(values, "allow-uid"), _ids(values, "allow-cid")),
        )

    def __str__(self) -> str:
        options = self._options()
        return f"{self.name}={self.path}{':' if options else ''}{','.join(options)}"

    def _options(self) -> list[str]:
        policy, access = self.policy, self.access
        flags = (self.read_only, policy.no_setuid, policy.no_devices, policy.squash_root)
        values: list[tuple[str, Any]] = [
            ("squash-all", [policy.squash_all] if policy.squash_all else []),
            ("map-uid", policy.map_uid),
            ("map-gid", policy.map_gid),
            ("allow-uid", [(uid,) for uid in access.uids or ()]),
            ("allow-cid", [(cid,) for cid in access.cids or ()]),
        ]
        return [name for name, is_set in zip(FLAGS, flags, strict=True) if is_set] + [
            f"{name}={'+'.join(':'.join(map(str, numbers)) for numbers in value)}" for name, value in values if value
        ]

    def under(self, policy: Policy) -> "Volume":
        """The volume with what holds for all volumes of a server; identities of its own go before those."""
        own = self.policy
        merged = replace(
            own if own.has_identities else policy,
            no_setuid=own.no_setuid or policy.no_setuid,
            no_devices=own.no_devices or policy.no_devices,
        )
        return replace(self, policy=merged)

    def open(self) -> int:
        """Open the directory (O_PATH) and return the file descriptor.  Raises VolumeError."""
        try:
            fd = os.open(self.path, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            raise self._explain(error) from error
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            os.close(fd)
            raise VolumeError(f"{self.path} is not a directory", "give a directory to be served")
        return fd

    def check(self) -> None:
        """See that the directory can be served at this moment.  Raises VolumeError."""
        os.close(self.open())

    def _explain(self, error: OSError) -> VolumeError:
        if error.errno == errno.ENOENT:
            remedy = "create it, or correct the path" + (" or the volume's options" if ":" in self.path else "")
            return VolumeError(f"there is no directory {self.path}", remedy)
        if error.errno == errno.ENOTDIR:
            return VolumeError(f"a part of {self.path} is not a directory", "correct the path")
        if error.errno == errno.EACCES:
            return VolumeError(
                f"this user may not reach {self.path}", "grant search permission on its parents, or run as another user"
            )
        return VolumeError(f"{self.path} cannot be opened: {error.strerror}", "correct what the text names")


def _ids(values: dict[str, list[str]], name: str) -> tuple[int, ...] | None:
    if name not in values:
        return None
    for text in values[name]:
        if not (text.isascii() and text.isdigit()) or int(text) >= 0xFFFFFFFF:
            raise PolicyError(f"{name}={text} is not a number")
    return tuple(int(text) for text in values[name])


def _unknown(word: str, *, valued: bool) -> str:
    if word in (FLAGS if valued else VALUES):
        return f"the option {word} takes {'no' if valued else 'a'} value"
    close = difflib.get_close_matches(word, (*FLAGS, *VALUES), 1)
    return f"there is no option {word!r}" + (f", did you mean {close[0]}?" if close else "")
