"""The host's side in C: one call per whole operation, without the GIL, and the tables that those operations keep.

`Tree` is a directory on the host together with the tables of one session.  The C sources beside this file say how.
"""

from .native import Ended, NativeSession, NativeSocket, Received
from .process import Facts, facts, install_interrupt_handler
from .sandbox import (
    confine_to,
    filter_calls,
    keep_capabilities,
    leave_network,
    part_children,
    renounce_privileges,
)
from .tree import (
    TABLES_VERSION,
    AttributeChanges,
    Attributes,
    EntryNumbers,
    Identity,
    IdExtent,
    IdMap,
    Tree,
    bytes_per_inode,
    create_memfd,
)

__all__ = [
    "TABLES_VERSION",
    "AttributeChanges",
    "Attributes",
    "Ended",
    "EntryNumbers",
    "Facts",
    "IdExtent",
    "IdMap",
    "Identity",
    "NativeSession",
    "NativeSocket",
    "Received",
    "Tree",
    "bytes_per_inode",
    "confine_to",
    "create_memfd",
    "facts",
    "filter_calls",
    "install_interrupt_handler",
    "keep_capabilities",
    "leave_network",
    "part_children",
    "renounce_privileges",
]
