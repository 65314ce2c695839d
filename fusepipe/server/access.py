"""Who may connect: users of this host on Unix sockets, machines on vsock."""

from dataclasses import dataclass

from fusepipe.transport.peers import Peer


@dataclass(frozen=True)
class Access:
    """Those that a volume is for; None: not asked.

    A volume that names users or machines is theirs alone: where it names only machines, no user has it, and the other
    way round.
    """

    uids: tuple[int, ...] | None = None
    cids: tuple[int, ...] | None = None

    def admits(self, peer: Peer) -> bool:
        """Whether the volume is for this peer."""
        if self.uids is None and self.cids is None:
            return True
        if peer.cid is not None:
            return peer.cid in (self.cids or ())
        return peer.uid is not None and peer.uid in (self.uids or ())


def who(peer: Peer) -> str:
    """The peer as a refusal names it."""
    if peer.cid is not None:
        return f"the machine with CID {peer.cid}"
    return f"the user with id {peer.uid}"
