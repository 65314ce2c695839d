"""O_APPEND: every write goes to the end, whoever else writes."""

import fcntl
import os

from ..harness import checks
from ..harness.caller import Caller
from ..harness.cases import cases
from ..harness.scene import Make, Scene
from ..harness.users import OTHER, OWNER

FLAGS = os.O_WRONLY | os.O_APPEND


@cases(
    "append/two-writers/in-turn",
    flags={"O_WRONLY": FLAGS, "O_RDWR": os.O_RDWR | os.O_APPEND, "O_SYNC": FLAGS | os.O_SYNC},
)
def test_in_turn(flags: int, owner: Caller, other: Caller, root: Caller, make: Make) -> None:
    make("regular", "file", OWNER, mode=0o666)
    first, second = owner.open("file", flags), other.open("file", flags)
    expected = b""
    for number in range(20):
        for user, descriptor in ((owner, first), (other, second)):
            record = b"%s %d\n" % (user.identity.name.encode(), number)
            user.write(descriptor, record)
            expected += record
            root.expect("file", size=len(expected))
    checks.equal(root.contents("file"), expected, "contents")


@cases("append/two-writers/at-once", size=[7, 64, 4096, 5000])
def test_at_once(size: int, owner: Caller, other: Caller, scene: Scene, root: Caller, make: Make) -> None:
    """No record is lost, torn or overwritten, and each writer's are in order."""
    make("regular", "file", OWNER, mode=0o666)
    writers = {b"A": owner, b"B": other, b"C": scene.another(OTHER)}
    count = 60
    for letter, user in writers.items():
        descriptor = user.open("file", FLAGS)
        user.start("write_records", descriptor, letter * (size - 1) + b"\n", count)
    for user in writers.values():
        user.finish()
    contents = root.contents("file")
    checks.equal(len(contents), 3 * count * size, "size")
    records = [contents[at : at + size] for at in range(0, len(contents), size)]
    for letter in writers:
        checks.equal(records.count(letter * (size - 1) + b"\n"), count, f"whole records of {letter!r}")


@cases("append/ignores-offset")
def test_offset_does_not_matter(owner: Caller, make: Make) -> None:
    make("regular", "file", OWNER)
    owner.setup.write_file("file", b"0123456789")
    descriptor = owner.open("file", os.O_RDWR | os.O_APPEND)
    owner.lseek(descriptor, 3, os.SEEK_SET)
    checks.equal(owner.read(descriptor, 2), b"34", "reading goes by the offset")
    owner.write(descriptor, b"abc")
    checks.equal(owner.lseek(descriptor, 0, os.SEEK_CUR), 13, "offset after the write")
    owner.pwrite(descriptor, b"def", 0)  # Linux appends here too (pwrite(2), BUGS)
    checks.equal(owner.contents("file"), b"0123456789abcdef", "contents")


@cases("append/after-truncation")
def test_after_truncation(owner: Caller, other: Caller, make: Make) -> None:
    """A log that was cut goes on at its new end, without a hole."""
    make("regular", "file", OWNER, mode=0o666)
    descriptor = other.open("file", FLAGS)
    other.write(descriptor, b"x" * 10000)
    owner.truncate("file", 0)
    other.write(descriptor, b"new")
    checks.equal(owner.contents("file"), b"new", "contents")
    owner.setup.close(owner.open("file", os.O_WRONLY | os.O_TRUNC))
    other.write(descriptor, b"newer")
    checks.equal(owner.contents("file"), b"newer", "contents")


@cases("append/switched-on")
def test_switched_on_and_off(owner: Caller, other: Caller, make: Make) -> None:
    make("regular", "file", OWNER, mode=0o666)
    descriptor = owner.open("file", os.O_RDWR)
    owner.write(descriptor, b"0123456789")
    owner.lseek(descriptor, 0, os.SEEK_SET)
    checks.equal(owner.attempt("fcntl", descriptor, fcntl.F_SETFL, os.O_APPEND)[0], 0, "errno of F_SETFL")
    other.setup.write(other.setup.open("file", FLAGS), b"other")
    owner.write(descriptor, b"end")
    checks.equal(owner.contents("file"), b"0123456789otherend", "contents")
    checks.equal(owner.attempt("fcntl", descriptor, fcntl.F_SETFL, 0)[0], 0, "errno of F_SETFL")
    owner.pwrite(descriptor, b"ab", 0)
    checks.equal(owner.contents("file"), b"ab23456789otherend", "contents")


@cases("append/with-a-writer-behind")
def test_with_a_writer_behind(owner: Caller, root: Caller, behind: Caller, make: Make) -> None:
    """Also what somebody appends who does not come through the target is never overwritten."""
    make("regular", "file", OWNER, mode=0o666)
    here, there = owner.open("file", FLAGS), behind.open("file", FLAGS)
    expected = b""
    for number in range(20):
        owner.write(here, b"here %d\n" % number)
        behind.write(there, b"there %d\n" % number)
        expected += b"here %d\nthere %d\n" % (number, number)
    checks.equal(behind.contents("file"), expected, "contents")
