"""Runs in the guest: `exchange.py DIRECTORY` looks at what the host put there, and puts there what the host looks at.

Prints one JSON object: what it found, and the SHA-256 of what it wrote.
"""

import hashlib
import json
import os
import random
import sys

SIZES = (0, 1, 4095, 4096, 32_000, 32_768, 65_536, 100_001, (1 << 20) + 1, 20 << 20)
"""Among them those around which some kernels lose the data of one large vsock send."""


def digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def main(place: str) -> None:
    here = os.path.join(place, "from-host")
    found = {name: digest(os.path.join(here, name)) for name in sorted(os.listdir(here))}
    there = os.path.join(place, "from-guest")
    os.mkdir(there)
    written = {}
    source = random.Random(place)
    for size in SIZES:
        data = source.randbytes(size)
        written[str(size)] = hashlib.sha256(data).hexdigest()
        with open(os.path.join(there, str(size)), "wb", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            os.fsync(file.fileno())
        # Read again what the host has, not what the cache kept.
        fd = os.open(os.path.join(there, str(size)), os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
        assert digest(os.path.join(there, str(size))) == written[str(size)], size
    first = os.path.join(there, "1")
    os.rename(first, os.path.join(there, "one"))
    os.link(os.path.join(there, "one"), os.path.join(there, "hard"))
    os.symlink("one", os.path.join(there, "soft"))
    os.chmod(os.path.join(there, "one"), 0o640)
    os.chown(os.path.join(there, "one"), 1234, 5678)
    os.setxattr(os.path.join(there, "one"), "user.colour", b"blue")
    os.unlink(os.path.join(there, "0"))
    with open(os.path.join(there, "gone"), "w+b") as file:
        os.unlink(os.path.join(there, "gone"))
        file.write(b"still here")
        file.seek(0)
        assert file.read() == b"still here"
        assert os.fstat(file.fileno()).st_nlink == 0
    status = os.stat(os.path.join(there, "one"))
    print(json.dumps({"found": found, "written": written, "inode": status.st_ino, "links": status.st_nlink}))


if __name__ == "__main__":
    main(sys.argv[1])
