"""POSIX access control lists as the kernel takes them (acl(5), linux/posix_acl_xattr.h)."""

import struct

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"

_VERSION = 2
_TAGS = {"user_obj": 1, "user": 2, "group_obj": 4, "group": 8, "mask": 16, "other": 32}
_NAMES = {number: name for name, number in _TAGS.items()}
_NO_ID = 0xFFFFFFFF
_LETTERS = "rwx"


def acl(text: str) -> bytes:
    """An ACL from text like `"user_obj:rw- user:65532:r-- group_obj:r-- mask:r-- other:---"`."""
    entries = []
    for word in text.split():
        tag, *number, letters = word.split(":")
        bits = sum(4 >> position for position, letter in enumerate(letters) if letter == _LETTERS[position])
        entries.append((_TAGS[tag], bits, int(number[0]) if number else _NO_ID))
    entries.sort(key=lambda entry: (entry[0], entry[2]))
    return struct.pack("<I", _VERSION) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def text(data: bytes) -> str:
    """The reverse of `acl`."""
    words = []
    for tag, bits, number in struct.iter_unpack("<HHI", data[4:]):
        letters = "".join(letter if bits & 4 >> position else "-" for position, letter in enumerate(_LETTERS))
        words.append(f"{_NAMES[tag]}:{letters}" if number == _NO_ID else f"{_NAMES[tag]}:{number}:{letters}")
    return " ".join(words)
