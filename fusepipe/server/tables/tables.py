"""The tables of one session, mapped."""

import errno
import os
from types import TracebackType
from typing import Self

from ... import syscalls
from ...syscalls import IdExtent, IdMap, Tree
from ..policy import Policy
from .locks import Locks
from .memory import Memory
from .slots import SlotStore

LEAST_BUDGET = 16


def create_memfd(slots: int, *, inodes: int = 1 << 24, handles: int = 1 << 20) -> int:
    """A memfd for the tables of one session, close-on-exec and sealed against any change of its size.

    `slots` is ServerLimits.slots.  `inodes` and `handles` are the most that there can be; they cost address space only,
    memory is taken as rows are used.  Raises OSError.
    """
    return syscalls.create_memfd(slots, inodes, handles)


def _apply(tree: Tree, policy: Policy) -> None:
    uid, gid = policy.squash_all or (None, None)
    tree.set_policy(
        no_setuid=policy.no_setuid,
        no_devices=policy.no_devices,
        uids=IdMap(tuple(IdExtent(*extent) for extent in policy.map_uid), policy.squash_root, uid),
        gids=IdMap(tuple(IdExtent(*extent) for extent in policy.map_gid), policy.squash_root, gid),
    )


class Tables:
    """Inodes, handles and slots of one session over one directory.  Safe to use from any thread, but for `close`."""

    def __init__(
        self,
        memfd: int,
        root: str | bytes | int,
        *,
        fd_budget: int,
        privileged: bool,
        read_only: bool = False,
        policy: Policy | None = None,
        proc_fd: int = -1,
        broker_fd: int = -1,
    ) -> None:
        """Maps a memfd of `create_memfd`; one that was used before goes on with its inodes, handles and slots.

        `root` is a path or a descriptor of the volume's directory; it and `memfd` stay the caller's.  `fd_budget`
        limits descriptors of open handles and cached inodes together; calls that run need up to 3 more each, a
        filesystem in the volume one.  `privileged`: files are made as the caller, which needs root.  `proc_fd`:
        /proc/self/fd, which then has to be the working directory and stays the caller's; -1: it is found by its path.
        `broker_fd`: a socket to the session's broker, which stays the caller's; -1: handles are opened here.
        Raises OSError where the root is missing or not a directory, ValueError where the memfd is none of ours or
        belongs to another directory.
        """
        if fd_budget < LEAST_BUDGET:
            raise ValueError(f"fd_budget is {fd_budget}; the least is {LEAST_BUDGET}")
        root_fd = root if isinstance(root, int) else os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.tree = Tree(
                memfd,
                root_fd,
                fd_budget=fd_budget,
                privileged=privileged,
                read_only=read_only,
                proc_fd=proc_fd,
                broker_fd=broker_fd,
            )
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise ValueError("the memfd does not hold tables of this version") from error
            if error.errno == errno.ESTALE:
                raise ValueError("the memfd holds the tables of another directory") from error
            raise
        finally:
            if not isinstance(root, int):
                os.close(root_fd)
        if policy is not None:
            _apply(self.tree, policy)
        self.read_only = read_only
        self._fd_budget = fd_budget
        self.slots = SlotStore(self.tree)
        self.memory = Memory(self.tree)
        self.locks = Locks(self.tree)

    def statistics(self) -> dict[str, int]:
        """Counters by name: inodes, lookups (not yet forgotten), handles, fds (that count against the budget), pinned
        (inodes without a name), evictions, reopened (by file handle), overforgotten (errors of the client),
        pins_given_up, filesystems, kept (inodes of which somebody else has a descriptor, too), lost_locks (open files
        that had locks when another process died), unreachable (inodes that nothing can open any more), signed_handles
        (by the broker), locks (owners that have fcntl locks on a file), and fd_budget, which fds never exceeds.  Walks
        the inode table.
        """
        return self.tree.statistics() | {"locks": len(self.locks), "fd_budget": self._fd_budget}

    def close(self) -> None:
        """Closes every descriptor, which ends all locks, and unmaps; the memfd keeps what it says.  No call may be
        running.
        """
        self.locks.close()
        self.tree.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
