"""Runs in the guest: `load.py DIRECTORY SECONDS` works on files in four threads and checks all that it reads.

Ends after that many seconds of the guest's monotonic clock.  Prints one JSON object: operations done, and the longest
one in seconds.  Any error ends it with a traceback and status 1.
"""

import json
import os
import sys
import threading
import time

SIZE = 64 * 1024


class Worker(threading.Thread):
    """Writes, syncs, reads back, renames and removes one file after the other."""

    def __init__(self, place: str, number: int, end: float) -> None:
        super().__init__()
        self._place = os.path.join(place, f"worker-{number}")
        self._end = end
        self.done = 0
        self.longest = 0.0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            os.mkdir(self._place)
            while time.monotonic() < self._end:
                begin = time.monotonic()
                self._once(self.done)
                self.longest = max(self.longest, time.monotonic() - begin)
                self.done += 1
        except BaseException as error:
            self.error = error

    def _once(self, number: int) -> None:
        path = os.path.join(self._place, f"file-{number}")
        data = number.to_bytes(8, "big") * (SIZE // 8)
        with open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            read = os.pread(fd, SIZE + 1, 0)
        finally:
            os.close(fd)
        if read != data:
            raise AssertionError(f"{path}: read {len(read)} bytes that differ from what was written")
        os.rename(path, path + ".done")
        if number % 10:
            os.unlink(path + ".done")


def main(place: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    workers = [Worker(place, number, end) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for worker in workers:
        if worker.error is not None:
            raise worker.error
    print(json.dumps({"done": sum(w.done for w in workers), "longest": max(w.longest for w in workers)}))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
