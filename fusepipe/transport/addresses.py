"""Addresses: where a connection leads, as a user writes it.

| address | a client | a server |
|---|---|---|
| `unix:PATH` | connects to the Unix socket | listens on it |
| `fd:N` | uses the inherited, connected socket | the same |
| `vsock:CID:PORT` | connects (in a guest: to `vsock:host:PORT`) | listens, mostly on `vsock:any:PORT` |
| `vsock-listen:PORT` | listens for one connection (in a guest that its host dials) | listens on any CID |
| `firecracker:PATH:PORT` | - | listens on the Unix socket `PATH_PORT` |
| `firecracker-connect:PATH:PORT` | dials port PORT of a guest through the VMM's Unix socket | the same |

Firecracker and vhost-device-vsock bring a guest's connections to port PORT of its host to the Unix socket `PATH_PORT`.

Everything here is immutable and does no I/O.
"""

import os
import re
from dataclasses import dataclass
from typing import ClassVar

VMADDR_CID_ANY = 0xFFFFFFFF
"""vsock(7): bind to every CID of this machine."""

VMADDR_CID_LOCAL = 1
VMADDR_CID_HOST = 2

MAX_VSOCK_PORT = 0xFFFFFFFE
"""vsock(7): 0xFFFFFFFF is VMADDR_PORT_ANY."""

MAX_UNIX_PATH = 107
"""unix(7): `sun_path` has 108 bytes, the last of them for the terminating NUL."""

_CID_NAMES = {"any": VMADDR_CID_ANY, "local": VMADDR_CID_LOCAL, "host": VMADDR_CID_HOST}
_CID_TEXTS = {number: name for name, number in _CID_NAMES.items()}

# int() alone would also take "+5", " 5", "5_0" and digits of other scripts.
_NUMBER = re.compile(r"[0-9]{1,20}")


class AddressError(ValueError):
    """An address that cannot be used.  The text says which part is wrong and shows the right form."""


@dataclass(frozen=True)
class Address:
    """What all kinds of addresses have in common.  `str()` of an address is its text; `parse` takes it back.

    Class attributes: `form` and `example` as error messages show them; `wants_body_crc`, whether an end with such an
    address asks for a CRC-32 on every frame, because some vsock kernels lose bytes in the middle of a stream.
    """

    form: ClassVar[str]
    example: ClassVar[str]
    wants_body_crc: ClassVar[bool]

    @staticmethod
    def parse(text: str) -> "Address":
        """Read an address.  Raises AddressError."""
        kind, colon, rest = text.partition(":")
        build = _KINDS.get(kind)
        if not text:
            raise AddressError(f"the address is empty: use one of {_FORMS}")
        if build is None or not colon:
            if "/" in kind or not colon:
                raise AddressError(
                    f"{text!r} does not begin with a kind of address: use one of {_FORMS}"
                    + (f" (a path alone is not enough: did you mean unix:{text} ?)" if "/" in text else "")
                )
            raise AddressError(f"{text!r}: there is no kind of address {kind!r}: use one of {_FORMS}")
        return build._from_rest(text, rest)

    @classmethod
    def _from_rest(cls, text: str, rest: str) -> "Address":
        raise NotImplementedError

    @classmethod
    def _error(cls, text: str, what: str) -> AddressError:
        return AddressError(f"{text!r}: {what}; the right form is {cls.form}, for example {cls.example}")

    @classmethod
    def _number(cls, text: str, name: str, part: str) -> int:
        if not part:
            raise cls._error(text, f"the {name} is missing")
        if not _NUMBER.fullmatch(part):
            raise cls._error(text, f"the {name} {part!r} is not a number")
        return int(part)

    def _check_port(self, port: int) -> None:
        if not 1 <= port <= MAX_VSOCK_PORT:
            raise self._error(str(self), f"the port {port} is not from 1 to {MAX_VSOCK_PORT}")

    def _check_path(self, path: str, socket_path: str) -> None:
        if not path:
            raise self._error(str(self), "the path is missing")
        if "\0" in path:
            raise self._error(str(self), "the path contains a NUL character")
        try:
            length = len(os.fsencode(socket_path))
        except UnicodeEncodeError:
            raise self._error(str(self), "the path cannot be encoded for this filesystem") from None
        if length > MAX_UNIX_PATH:
            raise self._error(
                str(self), f"the socket's path has {length} bytes, and Unix sockets take at most {MAX_UNIX_PATH}"
            )


@dataclass(frozen=True)
class UnixAddress(Address):
    """A Unix socket in the filesystem.  `path` may hold colons and be relative."""

    path: str

    form: ClassVar[str] = "unix:PATH"
    example: ClassVar[str] = "unix:/run/fusepipe.sock"
    wants_body_crc: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self._check_path(self.path, self.path)

    def __str__(self) -> str:
        return f"unix:{self.path}"

    @classmethod
    def _from_rest(cls, text: str, rest: str) -> Address:
        return cls(rest)


@dataclass(frozen=True)
class FdAddress(Address):
    """A file descriptor that this process inherited: a connected stream socket."""

    fd: int

    form: ClassVar[str] = "fd:N"
    example: ClassVar[str] = "fd:3"
    wants_body_crc: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.fd <= 0x7FFFFFFF:
            raise self._error(str(self), f"{self.fd} is not a file descriptor's number")

    def __str__(self) -> str:
        return f"fd:{self.fd}"

    @classmethod
    def _from_rest(cls, text: str, rest: str) -> Address:
        return cls(cls._number(text, "file descriptor", rest))


@dataclass(frozen=True)
class VsockAddress(Address):
    """A vsock port of a machine: `cid` is its context id, of which `host`, `local` and `any` have names."""

    cid: int
    port: int

    form: ClassVar[str] = "vsock:CID:PORT (CID is a number, `host`, `local`, or `any` to listen)"
    example: ClassVar[str] = "vsock:host:5000"
    wants_body_crc: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.cid <= VMADDR_CID_ANY:
            raise self._error(str(self), f"the CID {self.cid} is not from 0 to {VMADDR_CID_ANY}")
        self._check_port(self.port)

    def __str__(self) -> str:
        return f"vsock:{_CID_TEXTS.get(self.cid, self.cid)}:{self.port}"

    @classmethod
    def _from_rest(cls, text: str, rest: str) -> Address:
        cid, _, port = rest.partition(":")
        named = _CID_NAMES.get(cid)
        return cls(cls._number(text, "CID", cid) if named is None else named, cls._number(text, "port", port))


@dataclass(frozen=True)
class VsockListenAddress(Address):
    """A vsock port of this machine, which the other side dials."""

    port: int

    form: ClassVar[str] = "vsock-listen:PORT"
    example: ClassVar[str] = "vsock-listen:5000"
    wants_body_crc: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._check_port(self.port)

    def __str__(self) -> str:
        return f"vsock-listen:{self.port}"

    @classmethod
    def _from_rest(cls, text: str, rest: str) -> Address:
        return cls(cls._number(text, "port", rest))


@dataclass(frozen=True)
class FirecrackerAddress(Address):
    """The host's side of a guest's `vsock:host:PORT`: the VMM connects to the Unix socket `socket_path`."""

    path: str
    port: int

    form: ClassVar[str] = "firecracker:PATH:PORT"
    example: ClassVar[str] = "firecracker:/run/vm1/vsock.sock:5000"
    wants_body_crc: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._check_port(self.port)
        self._check_path(self.path, self.socket_path)

    @property
    def socket_path(self) -> str:
        """Where to listen: the VMM's own socket path with `_PORT` appended."""
        return f"{self.path}_{self.port}"

    def __str__(self) -> str:
        return f"firecracker:{self.path}:{self.port}"

    @classmethod
    def _from_rest(cls, text: str, rest: str) -> Address:
        path, port = _path_and_port(cls, text, rest)
        return cls(path, port)


@dataclass(frozen=True)
class FirecrackerConnectAddress(Address):
    """A port of a guest that listens, reached through the VMM's Unix socket at `path`."""

    path: str
    port: int

    form: ClassVar[str] = "firecracker-connect:PATH:PORT"
    example: ClassVar[str] = "firecracker-connect:/run/vm1/vsock.sock:5000"
    wants_body_crc: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._check_port(self.port)
        self._check_path(self.path, self.path)

    def __str__(self) -> str:
        return f"firecracker-connect:{self.path}:{self.port}"

    @classmethod
    def _from_rest(cls, text: str, rest: str) -> Address:
        path, port = _path_and_port(cls, text, rest)
        return cls(path, port)


def _path_and_port(kind: type[Address], text: str, rest: str) -> tuple[str, int]:
    """Split PATH:PORT at its last colon, since a path may hold colons."""
    path, colon, port = rest.rpartition(":")
    if not colon:
        raise kind._error(text, "the path is missing" if _NUMBER.fullmatch(rest) else "the port is missing")
    return path, kind._number(text, "port", port)


def parse_target(text: str) -> tuple[Address, str]:
    """Read ADDRESS/NAME: where a server is, and the volume wanted there.  The name is what follows the last slash.

    Raises AddressError.
    """
    address, slash, name = text.rpartition("/")
    if not slash:
        raise AddressError(
            f"{text!r}: the volume's name is missing; the right form is ADDRESS/NAME, "
            f"for example {UnixAddress.example}/data"
        )
    if not name:
        raise AddressError(f"{text!r} ends with a slash: the name of the volume is what follows the last slash")
    return Address.parse(address), name


_KINDS: dict[str, type[Address]] = {
    "unix": UnixAddress,
    "fd": FdAddress,
    "vsock": VsockAddress,
    "vsock-listen": VsockListenAddress,
    "firecracker": FirecrackerAddress,
    "firecracker-connect": FirecrackerConnectAddress,
}
_FORMS = "unix:PATH, fd:N, vsock:CID:PORT, vsock-listen:PORT, firecracker:PATH:PORT, firecracker-connect:PATH:PORT"
