"""Who makes a request, as the server needs to know it: supplementary groups, and whether the caller is dying."""

from collections.abc import Iterator, Sequence

from fusepipe.device import CurrentRequest

SIGKILL_BIT = 1 << 8
CAP_FSETID_BIT = 1 << 4
CAP_SYS_ADMIN_BIT = 1 << 21


def _status(task: int) -> Iterator[tuple[str, str]]:
    """The fields of /proc/TASK/status (proc(5)).  Reading it waits for nobody.  Raises OSError."""
    with open(f"/proc/{task}/status", "rb") as lines:
        for line in lines:
            name, _, value = line.decode("ascii", "replace").partition(":")
            yield name, value


def supplementary_groups(task: int) -> Sequence[int]:
    """The supplementary groups of a task; none where it is not seen from here."""
    try:
        for name, value in _status(task):
            if name == "Groups":
                return tuple(map(int, value.split()))
    except OSError:
        pass  # it belongs to another pid namespace, or it is gone: it gets what its uid and gid give it
    return ()


def groups_of(current: CurrentRequest, uid: int, task: int, *, sent_by_kernel: bool) -> Sequence[int]:
    """The groups to create a file with, beside the caller's own.

    `sent_by_kernel`: CREATE_SUPP_GROUP was agreed, so the kernel itself names the one that matters (that of the parent
    directory, where the caller is in it).  Else they are read from /proc; root needs none.
    """
    if sent_by_kernel:
        return (current.group,) if current.has_group else ()
    return supplementary_groups(task) if uid else ()


def keeps_set_id(uid: int, task: int) -> bool:
    """Whether set-uid and set-gid survive when this caller changes a file: whether it has CAP_FSETID (capabilities(7)).

    For requests that do not say so themselves.
    """
    return _root_with(CAP_FSETID_BIT, uid, task)


def sees_trusted(uid: int, task: int) -> bool:
    """Whether this caller is told the names of attributes in trusted.*: whether it has CAP_SYS_ADMIN (xattr(7))."""
    return _root_with(CAP_SYS_ADMIN_BIT, uid, task)


def _root_with(bit: int, uid: int, task: int) -> bool:
    """Whether a caller is root and has a capability.

    Only root is asked about: others may have it in a user namespace alone, where it does not count here.  A task that
    cannot be seen from here counts as having what its uid usually has.
    """
    if uid:
        return False
    try:
        for name, value in _status(task):
            if name == "CapEff":
                return bool(int(value, 16) & bit)
    except OSError:
        pass  # it belongs to another pid namespace, or it is gone
    return True


def is_dying(task: int) -> bool:
    """Whether a fatal signal waits for a task, so that it will never see how its request ends.

    The kernel marks every thread of a process that a signal ends with a pending SIGKILL (kernel/signal.c,
    complete_signal).  A task that cannot be seen from here counts as dying.
    """
    try:
        for name, value in _status(task):
            if name in ("SigPnd", "ShdPnd") and int(value, 16) & SIGKILL_BIT:
                return True
    except OSError:
        return True
    return False
