"""The server: a listener, and a process for every session.

The names are imported when they are first used: a session process needs little of it, and not trio.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusepipe.server.access import Access
    from fusepipe.server.handover import HandoverError
    from fusepipe.server.launching import SessionProcess, check_sandbox, start_session, try_sandbox
    from fusepipe.server.listener import serve
    from fusepipe.server.options import SandboxError, ServerError, ServerOptions
    from fusepipe.server.policy import Policy, PolicyError
    from fusepipe.server.volumes import Volume, VolumeError

__all__ = [
    "Access",
    "HandoverError",
    "Policy",
    "PolicyError",
    "SandboxError",
    "ServerError",
    "ServerOptions",
    "SessionProcess",
    "Volume",
    "VolumeError",
    "check_sandbox",
    "serve",
    "start_session",
    "try_sandbox",
]

_HOMES = {
    "launching": ("SessionProcess", "check_sandbox", "start_session", "try_sandbox"),
    "handover": ("HandoverError",),
    "listener": ("serve",),
    "access": ("Access",),
    "policy": ("Policy", "PolicyError"),
    "options": ("SandboxError", "ServerError", "ServerOptions"),
    "volumes": ("Volume", "VolumeError"),
}


def __getattr__(name: str) -> object:
    """Import the module that holds `name` (PEP 562)."""
    for home, names in _HOMES.items():
        if name in names:
            value: object = getattr(import_module(f"{__name__}.{home}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
