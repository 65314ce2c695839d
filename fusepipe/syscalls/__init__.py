"""The host's side in C: one call per whole operation, without the GIL, and the tables that those operations keep.

`Tree` is a directory on the host together with the tables of one session.  The C sources beside this file say how.
"""

from .file_handles import (
    FILE_HANDLE_ROOM,
    HANDLE_ID_SIZE,
    SIGN_TOGETHER,
    TAG_SIZE,
    device_of,
    handle_of,
    handle_within,
    open_handle,
)
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
    "FILE_HANDLE_ROOM",
    "HANDLE_ID_SIZE",
    "SIGN_TOGETHER",
    "TABLES_VERSION",
    "TAG_SIZE",
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
    "device_of",
    "facts",
    "filter_calls",
    "handle_of",
    "handle_within",
    "install_interrupt_handler",
    "keep_capabilities",
    "leave_network",
    "open_handle",
    "part_children",
    "renounce_privileges",
]
