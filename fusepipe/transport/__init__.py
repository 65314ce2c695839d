"""Addresses, and the byte streams that they lead to.

The names are imported when they are first used: a session process needs `send_now` and must not pay for importing trio.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusepipe.transport.addresses import (
        Address,
        AddressError,
        FdAddress,
        FirecrackerAddress,
        FirecrackerConnectAddress,
        UnixAddress,
        VsockAddress,
        VsockListenAddress,
        parse_target,
    )
    from fusepipe.transport.connecting import ConnectError, connect, connector
    from fusepipe.transport.listening import Listener, ListenError, OutOfResources, listen, take_over
    from fusepipe.transport.peers import Peer, peer_of
    from fusepipe.transport.places import place
    from fusepipe.transport.sending import Buffer, send_limit, send_now
    from fusepipe.transport.socket_file import SocketFile
    from fusepipe.transport.streams import Stream

__all__ = [
    "Address",
    "AddressError",
    "Buffer",
    "ConnectError",
    "FdAddress",
    "FirecrackerAddress",
    "FirecrackerConnectAddress",
    "ListenError",
    "Listener",
    "OutOfResources",
    "Peer",
    "SocketFile",
    "Stream",
    "UnixAddress",
    "VsockAddress",
    "VsockListenAddress",
    "connect",
    "connector",
    "listen",
    "parse_target",
    "peer_of",
    "place",
    "send_limit",
    "send_now",
    "take_over",
]

_HOMES = {
    "addresses": (
        "Address",
        "AddressError",
        "FdAddress",
        "FirecrackerAddress",
        "FirecrackerConnectAddress",
        "UnixAddress",
        "VsockAddress",
        "VsockListenAddress",
        "parse_target",
    ),
    "connecting": ("ConnectError", "connect", "connector"),
    "listening": ("ListenError", "Listener", "OutOfResources", "listen", "take_over"),
    "peers": ("Peer", "peer_of"),
    "places": ("place",),
    "sending": ("Buffer", "send_limit", "send_now"),
    "socket_file": ("SocketFile",),
    "streams": ("Stream",),
}


def __getattr__(name: str) -> object:
    """Import the module that holds `name` (PEP 562)."""
    for home, names in _HOMES.items():
        if name in names:
            value: object = getattr(import_module(f"{__name__}.{home}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
