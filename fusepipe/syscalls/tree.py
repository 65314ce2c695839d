"""The typed face of the C operations."""

import errno
import threading
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Any, NamedTuple, TypeAlias

from ._syscalls import ffi, lib
from .check import check, fail

Buffer: TypeAlias = bytes | bytearray | memoryview
Attributes: TypeAlias = tuple[int, ...]
"""ino, mode, nlink, uid, gid, rdev, size, blksize, blocks, atime, atime_ns, mtime, mtime_ns, ctime, ctime_ns."""
EntryNumbers: TypeAlias = tuple[int, ...]
"""A node id, and then its attributes."""

MAX_TRANSFER = 1 << 26
"""Most bytes that one READ or READDIR can ask for here; what a session allows is far less."""

TABLES_VERSION: int = lib.TABLES_VERSION
"""Of what stands in the memfd: another one's tables cannot be gone on with."""

_ATTRIBUTES = Struct("=9QqQqQqQ")
_ENTRY = Struct("=10QqQqQqQ")
_STATFS = Struct("=8Q")
_STATX = Struct("=9QqQqQqQQqQQQ")
_XATTR_ROOM = 65536  # XATTR_SIZE_MAX and XATTR_LIST_MAX of linux/limits.h
_TARGET_ROOM = 4097  # PATH_MAX and one more, to see that nothing was cut

_NO_ID = 0xFFFFFFFF
_SECRET_SIZE = 32
_TOGETHER = 250
_SETTLED = {int(lib.SETTLED_NOT_DONE): False, int(lib.SETTLED_DONE): True}

_uninitialised = ffi.new_allocator(should_clear_after_alloc=False)


class Identity(NamedTuple):
    """Whose file it will be: ids, supplementary groups and umask of the caller."""

    uid: int
    gid: int
    groups: Sequence[int]
    umask: int = 0


class AttributeChanges(NamedTuple):
    """What to set; `valid` has the bits of Linux's FATTR_* (linux/fuse.h), times are seconds and nanoseconds."""

    valid: int
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    atime: int = 0
    mtime: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0


class IdExtent(NamedTuple):
    """`size` ids from `guest` on stand for those from `host` on."""

    guest: int
    host: int
    size: int


class IdMap(NamedTuple):
    """Ids of one kind, between guest and host; without extents each stands for itself."""

    extents: tuple[IdExtent, ...] = ()
    squash_root: bool = False
    """The guest's 0 is the host's 65534, and 0 of the host is nobody."""
    squash_all: int | None = None
    """Each is this one of the host."""

    def to_host(self, guest: int) -> int | None:
        """The host's id; None where the guest's is not mapped."""
        _kept, c_map = _id_map(self)
        host = int(lib.id_in(c_map, guest))
        return None if host == _NO_ID else host

    def to_guest(self, host: int) -> int | None:
        """The guest's id; None where the host's is not mapped, which is shown as 65534."""
        _kept, c_map = _id_map(self)
        guest = ffi.new("uint32_t *")
        return int(guest[0]) if lib.id_out(c_map, host, guest) else None


def _id_map(ids: IdMap) -> tuple[Any, Any]:
    """What must live as long as the struct, and the struct."""
    extents = ffi.new("struct id_extent[]", list(ids.extents))
    squash_all = ids.squash_all is not None
    return extents, ffi.new(
        "struct id_map *", (extents, len(ids.extents), ids.squash_root, squash_all, ids.squash_all or 0)
    )


class _Room(threading.local):
    """Where C calls of one thread put their numbers: nothing is allocated per call."""

    def __init__(self) -> None:
        self.numbers: Any = ffi.new("uint64_t[20]")
        self.view: Any = ffi.buffer(self.numbers)
        self.handle: Any = ffi.new("uint64_t *")
        self.count: Any = ffi.new("uint32_t *")
        self.end: Any = ffi.new("bool *")


def create_memfd(slots: int, inodes: int, handles: int) -> int:
    """A memfd for the tables of one session; close-on-exec, sealed against any change of its size.

    `inodes` and `handles` are the most that it can hold; memory is taken as they come.  Raises OSError.
    """
    return check(lib.tables_create(slots, inodes, handles))


def bytes_per_inode() -> int:
    """What an inode costs in memory, in bytes: in the memfd and beside it."""
    return int(lib.tables_bytes_per_inode())


class Tree:
    """A directory on the host, its inodes and handles, and the session's slots.

    Every operation may be called from any thread, runs without the GIL and raises OSError with the errno that the guest
    is to see; ESTALE for a node, EBADF for a handle that is not known.  Nodes and handles are never given twice.
    """

    def __init__(
        self,
        memfd: int,
        root_fd: int,
        *,
        fd_budget: int,
        privileged: bool,
        read_only: bool,
        proc_fd: int = -1,
        broker_fd: int = -1,
    ) -> None:
        error = ffi.new("int *")
        tables = lib.tables_open(memfd, root_fd, fd_budget, privileged, read_only, proc_fd, broker_fd, error)
        if not tables:
            fail(error[0])
        self._tables: Any = tables
        self._room = _Room()
        self.slots: int = lib.slots_count(tables)

    def set_policy(self, *, no_setuid: bool, no_devices: bool, uids: IdMap, gids: IdMap) -> None:
        """What the guest may not leave, and whose ids stand for whose.  Before any operation.  Raises OSError."""
        kept_uids, c_uids = _id_map(uids)
        kept_gids, c_gids = _id_map(gids)
        policy = ffi.new("struct policy *", (no_setuid, no_devices, c_uids[0], c_gids[0]))
        check(lib.tables_set_policy(self._tables, policy))
        del kept_uids, kept_gids  # copied

    def close(self) -> None:
        """Closes every descriptor; the memfd keeps what it says.  No call may be running; may be called twice."""
        tables, self._tables = self._tables, None
        if tables is not None:
            lib.tables_close(tables)

    def statistics(self) -> dict[str, int]:
        """Counters by name.  Walks the inode table: for logs and tests."""
        counters = ffi.new("struct counters *")
        lookups = ffi.new("uint64_t *")
        lib.tables_statistics(self._tables, counters, lookups)
        numbers = {name: int(getattr(counters, name)) for name, _ in ffi.typeof("struct counters").fields}
        return {"lookups": int(lookups[0]), **numbers}

    # ---- names

    def lookup(self, parent: int, name: bytes) -> EntryNumbers:
        """Counts one lookup of what the name stands for; a symlink is not followed."""
        room = self._room
        result = lib.tree_lookup(self._tables, parent, name, len(name), room.numbers)
        if result:
            fail(result)
        return _ENTRY.unpack_from(room.view)

    def readlink(self, node: int) -> bytes:
        """The target of a symlink."""
        target = _uninitialised("char[]", _TARGET_ROOM)
        size = check(lib.tree_readlink(self._tables, node, target, _TARGET_ROOM))
        return bytes(ffi.buffer(target, size))

    def link(self, node: int, parent: int, name: bytes) -> EntryNumbers:
        """Gives an inode another name, and counts one lookup of it."""
        room = self._room
        check(lib.tree_link(self._tables, node, parent, name, len(name), room.numbers))
        return _ENTRY.unpack_from(room.view)

    def unlink(self, parent: int, name: bytes) -> None:
        """Removes a name; an inode that the guest knows stays within its reach."""
        check(lib.tree_unlink(self._tables, parent, name, len(name), ffi.NULL))

    def rmdir(self, parent: int, name: bytes) -> None:
        """Removes an empty directory."""
        check(lib.tree_rmdir(self._tables, parent, name, len(name), ffi.NULL))

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        """renameat2(2)."""
        names = (parent, name, len(name), new_parent, new_name, len(new_name))
        check(lib.tree_rename(self._tables, *names, flags, ffi.NULL, ffi.NULL))

    # ---- creating

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, identity: Identity) -> EntryNumbers:
        """Makes a node of any type but directory and symlink, as `identity`, and counts one lookup of it."""
        room = self._room
        who = _identity(identity)
        check(lib.tree_mknod(self._tables, parent, name, len(name), mode, rdev, who[0], room.numbers))
        return _ENTRY.unpack_from(room.view)

    def mkdir(self, parent: int, name: bytes, mode: int, identity: Identity) -> EntryNumbers:
        """Makes a directory, as `identity`, and counts one lookup of it."""
        room = self._room
        who = _identity(identity)
        check(lib.tree_mkdir(self._tables, parent, name, len(name), mode, who[0], room.numbers))
        return _ENTRY.unpack_from(room.view)

    def symlink(self, parent: int, name: bytes, target: bytes, identity: Identity) -> EntryNumbers:
        """Makes a symlink, as `identity`, and counts one lookup of it."""
        room = self._room
        who = _identity(identity)
        check(lib.tree_symlink(self._tables, parent, name, len(name), target, len(target), who[0], room.numbers))
        return _ENTRY.unpack_from(room.view)

    def create(
        self, parent: int, name: bytes, flags: int, mode: int, kill: bool, identity: Identity
    ) -> tuple[EntryNumbers, int, int]:
        """Makes and opens a file as `identity`: the entry, whose lookup is counted, a handle of the same inode, and the
        flags of the reply.
        """
        room = self._room
        who = _identity(identity)
        answer = (room.numbers, room.handle, room.count)
        check(lib.tree_create(self._tables, parent, name, len(name), flags, mode, kill, who[0], *answer, ffi.NULL))
        return _ENTRY.unpack_from(room.view), room.handle[0], room.count[0]

    def tmpfile(self, parent: int, flags: int, mode: int, identity: Identity) -> tuple[EntryNumbers, int, int]:
        """Makes and opens a file without a name as `identity`: as `create`."""
        room = self._room
        who = _identity(identity)
        answer = (room.numbers, room.handle, room.count)
        check(lib.tree_tmpfile(self._tables, parent, flags, mode, who[0], *answer))
        return _ENTRY.unpack_from(room.view), room.handle[0], room.count[0]

    # ---- attributes

    def getattr(self, node: int, handle: int) -> Attributes:
        """Attributes, through the handle where it is not 0."""
        room = self._room
        result = lib.tree_getattr(self._tables, node, handle, room.numbers)
        if result:
            fail(result)
        return _ATTRIBUTES.unpack_from(room.view)

    def statx(self, node: int, handle: int, flags: int, mask: int) -> tuple[int, ...]:
        """Attributes, and then statx(2)'s mask, birth time in seconds and nanoseconds, attributes, attributes_mask."""
        room = self._room
        check(lib.tree_statx(self._tables, node, handle, flags, mask, room.numbers))
        return _STATX.unpack_from(room.view)

    def setattr(self, node: int, handle: int, changes: AttributeChanges) -> Attributes:
        """Changes attributes, through the handle where it is not 0, and says what they are then."""
        room = self._room
        check(
            lib.tree_setattr(self._tables, node, handle, ffi.new("struct attribute_changes *", changes), room.numbers)
        )
        return _ATTRIBUTES.unpack_from(room.view)

    def access(self, node: int, mask: int, identity: Identity) -> None:
        """access(2) for an identity."""
        check(lib.tree_access(self._tables, node, mask, _identity(identity)[0]))

    def statfs(self, node: int) -> tuple[int, ...]:
        """bsize, frsize, blocks, bfree, bavail, files, ffree and namemax of the filesystem that holds the node."""
        room = self._room
        check(lib.tree_statfs(self._tables, node, room.numbers))
        return _STATFS.unpack_from(room.view)

    def ioctl(self, handle: int, command: int, data: bytes, identity: Identity) -> bytes:
        """An ioctl(2) that reads or sets inode flags, as `identity`; ENOTTY for all others."""
        if len(data) > lib.IOCTL_ROOM:
            fail(-errno.EINVAL)
        room = ffi.new("unsigned char[]", lib.IOCTL_ROOM)
        ffi.memmove(room, data, len(data))
        size = check(lib.tree_ioctl(self._tables, handle, command, room, len(data), _identity(identity)[0]))
        return bytes(ffi.buffer(room, size))

    # ---- extended attributes

    def getxattr(self, node: int, name: bytes) -> bytes:
        """The value."""
        value = _uninitialised("char[]", _XATTR_ROOM)
        size = check(lib.tree_getxattr(self._tables, node, name, len(name), value, _XATTR_ROOM))
        return bytes(ffi.buffer(value, size))

    def setxattr(self, node: int, name: bytes, value: bytes, flags: int) -> None:
        """setxattr(2) with its flags."""
        check(lib.tree_setxattr(self._tables, node, name, len(name), value, len(value), flags))

    def listxattr(self, node: int) -> list[bytes]:
        """The names."""
        names = _uninitialised("char[]", _XATTR_ROOM)
        size = check(lib.tree_listxattr(self._tables, node, names, _XATTR_ROOM))
        return bytes(ffi.buffer(names, size)).split(b"\0")[:-1]

    def removexattr(self, node: int, name: bytes) -> None:
        """removexattr(2)."""
        check(lib.tree_removexattr(self._tables, node, name, len(name)))

    # ---- files

    def open(self, node: int, flags: int, kill: bool, keep: int) -> tuple[int, int]:
        """A handle of a regular file, with the flags of open(2), and the flags of the reply.

        Other types: EISDIR, ELOOP, ENXIO.  `keep`: milliseconds that the guest may keep pages; 0xffffffff: always.
        """
        room = self._room
        check(lib.tree_open(self._tables, node, flags, kill, keep, room.handle, room.count, ffi.NULL))
        return room.handle[0], room.count[0]

    def read(self, handle: int, offset: int, size: int) -> memoryview:
        """Bytes in memory of their own; fewer than `size` only at the end of the file."""
        data = _transfer(size)
        result = lib.tree_read(self._tables, handle, offset, data, size)
        if result < 0:
            fail(result)
        return memoryview(ffi.buffer(data, result))

    def write(self, handle: int, offset: int, flags: int, data: Buffer) -> int:
        """How many bytes were written.  `flags`: 1 from the guest's page cache, 4 clear set-uid and set-gid."""
        return check(lib.tree_write(self._tables, handle, offset, flags, ffi.from_buffer("char[]", data), len(data)))

    def flush(self, handle: int) -> None:
        """What close(2) would report now."""
        check(lib.tree_flush(self._tables, handle))

    def fsync(self, handle: int, directory: bool, datasync: bool) -> None:
        """fsync(2) or fdatasync(2)."""
        check(lib.tree_fsync(self._tables, handle, directory, datasync))

    # ---- ranges of files

    def fallocate(self, handle: int, mode: int, offset: int, length: int, kill: bool) -> None:
        """fallocate(2); `kill` clears set-uid and set-gid."""
        check(lib.tree_fallocate(self._tables, handle, mode, offset, length, kill))

    def copy_range(self, handle: int, offset: int, to_handle: int, to_offset: int, length: int, kill: bool) -> int:
        """copy_file_range(2): how many bytes were copied, which may be fewer; `kill` as above, for the second file."""
        copied = self._room.handle
        check(lib.tree_copy_range(self._tables, handle, offset, to_handle, to_offset, length, kill, copied))
        return int(copied[0])

    def lseek(self, handle: int, offset: int, whence: int) -> int:
        """SEEK_DATA or SEEK_HOLE of lseek(2)."""
        found = self._room.handle
        check(lib.tree_lseek(self._tables, handle, offset, whence, found))
        return int(found[0])

    # ---- locks: types have the numbers of F_RDLCK, F_WRLCK and F_UNLCK, the last byte of a range belongs to it

    def handle_node(self, handle: int) -> int:
        """The node that a file's handle is open for."""
        check(lib.tree_handle_node(self._tables, handle, self._room.handle))
        return int(self._room.handle[0])

    def lock_open(self, handle: int) -> int:
        """A descriptor for the locks of one owner on the handle's file, to be closed by `lock_close`.

        ENOLCK where there are too many descriptors.
        """
        return check(lib.tree_lock_open(self._tables, handle))

    def lock_close(self, fd: int) -> None:
        """Ends the locks of a descriptor of `lock_open`."""
        lib.tree_lock_close(self._tables, fd)

    def lock_set(self, fd: int, type: int, start: int, end: int, *, wait: bool) -> None:
        """Sets or removes a lock of the descriptor's owner.

        EAGAIN where another is in the way; with `wait` it waits instead, until it is interrupted (EINTR).
        """
        check(lib.lock_set(fd, type, start, end, wait))

    def lock_get(self, fd: int, type: int, start: int, end: int) -> tuple[int, int, int]:
        """Type, first and last byte of a lock that is in the way; the type is F_UNLCK where none is."""
        room = self._room
        check(lib.lock_get(fd, type, start, end, room.numbers))
        return room.numbers[0], room.numbers[1], room.numbers[2]

    def flock(self, handle: int, type: int, *, wait: bool) -> None:
        """flock(2) on the handle itself: F_RDLCK is shared, F_WRLCK exclusive.  Fails and waits as `lock_set`."""
        check(lib.tree_flock(self._tables, handle, type, wait))

    # ---- directories

    def opendir(self, node: int, keep: int) -> tuple[int, int]:
        """A handle of a directory, and the flags of the reply; `keep` as for `open`."""
        room = self._room
        check(lib.tree_opendir(self._tables, node, keep, room.handle, room.count))
        return int(room.handle[0]), int(room.count[0])

    def readdir(self, handle: int, offset: int, size: int) -> tuple[memoryview, int]:
        """A page of entries, and how many they are; one lookup of each whose node is not 0 is counted."""
        page = _transfer(size)
        room = self._room
        filled = check(lib.tree_readdir(self._tables, handle, offset, page, size, room.count, room.end))
        return memoryview(ffi.buffer(page, filled)), room.count[0]

    # ---- the end of things

    def cleanup(self, forgets: Sequence[int], handles: Sequence[int], untaken: Sequence[int]) -> list[int]:
        """Forgets (node and count in turn) and releases, the latter also of what the guest has taken no note of.

        Gives back the numbers that were wrong.
        """
        both = (*handles, *untaken)
        wrong = _uninitialised("uint64_t[]", len(forgets) // 2 + len(both))
        pairs = ffi.new("uint64_t[]", tuple(forgets))
        numbers = ffi.new("uint64_t[]", both)
        count = lib.tree_cleanup(self._tables, pairs, len(forgets) // 2, numbers, len(both), len(handles), wrong)
        return list(ffi.unpack(wrong, count)) if count else []

    # ---- after the death of another process

    def removal_is_done(self, parent: int, name: bytes) -> bool | None:
        """Whether that process had done this thread's UNLINK or RMDIR; None where nothing proves it.

        Raises OSError.
        """
        return _SETTLED.get(check(lib.settle_removal(self._tables, parent, name, len(name))))

    def rename_is_done(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> bool | None:
        """The same of RENAME."""
        found = lib.settle_rename(self._tables, parent, name, len(name), new_parent, new_name, len(new_name), flags)
        return _SETTLED.get(check(found))

    def release_made(self) -> None:
        """Releases the handle that the process before had made for this thread's request."""
        lib.settle_made(self._tables)

    def appends(self, handle: int) -> bool:
        """Whether what is written by the handle goes to the end of its file.  Raises OSError (EBADF)."""
        return bool(check(lib.handle_appends(self._tables, handle)))

    def know_filesystem(self, root: int, path: bytes) -> None:
        """Inodes of the filesystem that is mounted at this path below `root` can be opened by their handles.

        Raises OSError.
        """
        check(lib.tables_know_filesystem(self._tables, root, path))

    def prove(self) -> int:
        """Has the broker sign for inodes of another process that it had not signed for: how many are not found."""
        return int(lib.tables_prove(self._tables))

    @property
    def opens_by_handle(self) -> bool:
        """Whether inodes of the volume's own filesystem can be opened by their handles."""
        return bool(lib.tables_by_handle(self._tables))

    def keep(self, fd: int) -> None:
        """From now on descriptors of inodes without a name are sent to the other end of this socket, which is the
        tree's from then on."""
        lib.tables_keep(self._tables, fd)

    def restore_pin(self, node: int, fd: int) -> bool:
        """Takes a descriptor that was kept; whether it is of any use."""
        return not lib.pin_restore(self._tables, node, fd)

    def note_lock(self, handle: int) -> None:
        """A lock of fcntl(2) has been set by way of this handle, which the end of this process ends."""
        lib.handle_note_lock(self._tables, handle, lib.HANDLE_LOCKED, True)

    # ---- making room for another process, while nothing runs

    @property
    def without_handle(self) -> int:
        """How many inodes nothing could open again."""
        return int(lib.succession_without_handle(self._tables))

    def sign(self) -> None:
        """Has the broker, where there is one, sign for all that is open.  Nothing may be running."""
        lib.succession_sign(self._tables)

    def keep_nameless(self) -> None:
        """Sends, where `keep` says, descriptors of what lost its last name without our doing."""
        lib.succession_pins(self._tables)

    def note_no_locks(self) -> None:
        """No handle has locks of fcntl(2), but those that `note_lock` names afterwards."""
        lib.succession_no_locks(self._tables)

    def flocked(self) -> Iterator[tuple[int, int]]:
        """The handles that have locks of flock(2), and their descriptors, which stay the tree's."""
        handles, fds = ffi.new("uint64_t[]", _TOGETHER), ffi.new("int[]", _TOGETHER)
        last = 0
        while count := lib.succession_flocked(self._tables, last, handles, fds, _TOGETHER):
            yield from zip(ffi.unpack(handles, count), ffi.unpack(fds, count), strict=True)
            last = handles[count - 1]

    def restore_lock(self, handle: int, fd: int) -> bool:
        """Takes a descriptor of `lock_open` that another process had; whether it is of any use."""
        return not lib.succession_restore_lock(self._tables, handle, fd)

    def restore_flock(self, handle: int, fd: int) -> bool:
        """Takes the descriptor of a handle that has a lock; whether it is of any use."""
        return not lib.succession_restore_flock(self._tables, handle, fd)

    # ---- what the connections share: never two calls at once

    def session_begin(self, opening: bytes, secret: bytes) -> bool:
        """Notes how HELLO is answered; False where that is too long to be kept."""
        return not lib.session_begin(self._tables, opening, len(opening), secret)

    def session_secret(self, secret: bytes) -> None:
        """Changes the secret at once."""
        lib.session_secret(self._tables, secret)

    def session_known(self) -> None:
        """The client has shown that it knows the session."""
        lib.session_mark(self._tables, lib.SESSION_KNOWN)

    def session_ended(self) -> None:
        """The client has said BYE."""
        lib.session_mark(self._tables, lib.SESSION_ENDED)

    def session(self) -> tuple[bytes, bytes, bool, bool] | None:
        """Answer to HELLO, secret, whether the client knows the session, whether it has ended; None before HELLO."""
        opening, secret = ffi.new("const unsigned char **"), ffi.new("const unsigned char **")
        size = self._room.count
        state = lib.session_load(self._tables, opening, size, secret)
        if not state & lib.SESSION_OPEN:
            return None
        parts = bytes(ffi.buffer(opening[0], size[0])), bytes(ffi.buffer(secret[0], _SECRET_SIZE))
        return *parts, bool(state & lib.SESSION_KNOWN), bool(state & lib.SESSION_ENDED)

    # ---- slots: the caller holds the slot's lock and has checked its number

    def slot_load(self, slot: int) -> int:
        """seq << 10 | op << 2 | state."""
        return int(lib.slot_load(self._tables, slot))

    def slot_store(self, slot: int, seq: int, op: int, state: int) -> None:
        """Changes the slot's word at once.  Raises OSError (ERANGE) where a number does not fit."""
        check(lib.slot_store(self._tables, slot, seq, op, state))

    def slot_keep(self, slot: int, header: bytes, payload: Buffer) -> None:
        """Keeps the reply and sets state 2; or 0, so that it runs again, where there is no memory for a long one."""
        lib.slot_keep(
            self._tables, slot, header, len(header), ffi.from_buffer("unsigned char[]", payload), len(payload)
        )

    def slot_enter(self, slot: int) -> None:
        """The calling thread runs this slot's request until `slot_leave`: what it notes belongs to that."""
        lib.slot_enter(self._tables, slot)

    def slot_leave(self) -> None:
        """The calling thread runs no request any more."""
        lib.slot_leave()

    def slot_deaths(self) -> int:
        """How many processes have died while they ran the request that the calling thread runs."""
        return int(lib.slot_deaths(self._tables))

    def slot_reply(self, slot: int) -> tuple[bytes, bytes] | None:
        """Header and payload of the reply that is kept, or None."""
        reply = ffi.new("unsigned char **")
        size = self._room.count
        header = lib.slot_reply(self._tables, slot, reply, size)
        if header < 0:
            return None
        whole = bytes(ffi.buffer(reply[0], header + size[0]))
        return whole[:header], whole[header:]


def _identity(identity: Identity) -> tuple[Any, Any]:
    """The struct, and what must live as long as it."""
    uid, gid, groups, umask = identity
    numbers = ffi.new("uint32_t[]", tuple(groups)) if groups else ffi.NULL
    return ffi.new("struct identity *", (uid, gid, numbers, len(groups), umask)), numbers


def _transfer(size: int) -> Any:
    if size > MAX_TRANSFER:
        fail(-errno.EINVAL)
    return _uninitialised("char[]", size or 1)
