"""Where an address is, whatever way it is written: by it one process finds another one that uses the same address."""

import hashlib
import os
import stat

from fusepipe.transport.addresses import (
    VMADDR_CID_ANY,
    Address,
    FirecrackerAddress,
    FirecrackerConnectAddress,
    UnixAddress,
    VsockAddress,
    VsockListenAddress,
)


def place(address: Address) -> str | None:
    """A short text without spaces; None for an address that only its own process can use, and where nobody listens.

    Of a Unix socket it is the identity of its file, so it is the same by any path and from any mount namespace.
    """
    if isinstance(address, UnixAddress):
        return _of_socket(address.path)
    if isinstance(address, FirecrackerAddress):
        return _of_socket(address.socket_path)
    if isinstance(address, VsockAddress):
        return f"vsock:{address.cid}:{address.port}"
    if isinstance(address, VsockListenAddress):
        return f"vsock:{VMADDR_CID_ANY}:{address.port}"
    if isinstance(address, FirecrackerConnectAddress):
        # The VMM makes its socket anew each time that it starts, so the file is of no use here.
        path = os.fsencode(os.path.realpath(address.path))
        return f"dialled:{hashlib.sha256(path).hexdigest()[:32]}:{address.port}"
    return None


def _of_socket(path: str) -> str | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return f"socket:{status.st_dev}:{status.st_ino}" if stat.S_ISSOCK(status.st_mode) else None
