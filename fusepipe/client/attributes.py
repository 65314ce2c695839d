"""The server's attributes as pyfuse3 wants them."""

import pyfuse3

from fusepipe.wire.directory import DirectoryEntry
from fusepipe.wire.messages import Attr, Entry, StatfsReply

NANOSECONDS = 1_000_000_000
TYPE_SHIFT = 12  # a DT_* of readdir(3) is the file type of st_mode, shifted by so much


class Attributes:
    """Makes pyfuse3's attributes, with the timeouts of the mount's cache mode.

    pyfuse3 has one field for node id and inode number.  With the filter on the device, an entry carries its node id
    there and its inode number in `generation`, from where the filter puts it into its place.  Without it
    (`numbers_apart` is False) the guest sees node ids as inode numbers.
    """

    def __init__(self, seconds: float, *, numbers_apart: bool, names: bool = True) -> None:
        """`seconds` is how long attributes may be remembered, and where `names` is true names, too."""
        self._seconds = seconds
        self._name_seconds = seconds if names else 0.0
        self._numbers_apart = numbers_apart

    def of_node(self, node: int, attr: Attr) -> pyfuse3.EntryAttributes:
        """The answer to GETATTR and SETATTR, which has no node id: the field is only the number that is shown."""
        made = pyfuse3.EntryAttributes()
        self._fill(made, attr)
        made.st_ino = attr.ino if self._numbers_apart else node
        return made

    def of_entry(self, entry: Entry) -> pyfuse3.EntryAttributes:
        """The answer to LOOKUP and to what creates a name."""
        made = pyfuse3.EntryAttributes()
        self._fill(made, entry.attr)
        made.st_ino = entry.node
        if self._numbers_apart:
            made.generation = entry.attr.ino
        return made

    def no_entry(self) -> pyfuse3.EntryAttributes | None:
        """The answer to LOOKUP that makes the kernel remember that there is no such name; None where it may not."""
        if not self._name_seconds:
            return None
        made = pyfuse3.EntryAttributes()
        made.st_ino = 0
        made.entry_timeout = self._name_seconds
        return made

    def of_listed(self, listed: DirectoryEntry) -> pyfuse3.EntryAttributes:
        """An entry of a directory's page, for `pyfuse3.readdir_reply`, which copies it."""
        if listed.attr is not None:
            return self.of_entry(Entry(listed.node, listed.attr))
        made = pyfuse3.EntryAttributes()
        made.st_mode = listed.type << TYPE_SHIFT
        made.entry_timeout = made.attr_timeout = 0
        if self._numbers_apart:
            made.st_ino = 0
            made.generation = listed.ino
        else:
            # The kernel takes no notice of the node ids of "." and ".."; any other entry must not have one.
            made.st_ino = listed.ino if listed.name in (b".", b"..") else 0
        return made

    def _fill(self, made: pyfuse3.EntryAttributes, attr: Attr) -> None:
        made.attr_timeout, made.entry_timeout = self._seconds, self._name_seconds
        made.st_mode = attr.mode
        made.st_nlink = attr.nlink
        made.st_uid = attr.uid
        made.st_gid = attr.gid
        made.st_rdev = attr.rdev
        made.st_size = attr.size
        made.st_blksize = attr.blksize
        made.st_blocks = attr.blocks
        made.st_atime_ns = attr.atime * NANOSECONDS + attr.atime_ns
        made.st_mtime_ns = attr.mtime * NANOSECONDS + attr.mtime_ns
        made.st_ctime_ns = attr.ctime * NANOSECONDS + attr.ctime_ns


def to_statvfs(reply: StatfsReply) -> pyfuse3.StatvfsData:
    """What statvfs(3) shows; `f_namemax` as the host has it."""
    made = pyfuse3.StatvfsData()
    made.f_bsize = reply.bsize
    made.f_frsize = reply.frsize
    made.f_blocks = reply.blocks
    made.f_bfree = reply.bfree
    made.f_bavail = reply.bavail
    made.f_files = reply.files
    made.f_ffree = made.f_favail = reply.ffree
    made.f_namemax = reply.namemax
    return made
