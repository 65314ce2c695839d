"""Native threads over a fake device: socket pairs in the place of /dev/fuse and its clones, and of the server."""

import errno
import importlib.util
import os
import re
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no types
import pytest
from cffi import FFI  # type: ignore[import-untyped]  # it ships no types

import fusepipe.device
from fusepipe.device import _build, native
from fusepipe.device.native import Channel, Native, NativeEvent, Policy, Target
from fusepipe.wire import (
    Attr,
    DirectoryEntry,
    Entry,
    FrameReceiver,
    FrameSender,
    OpenedFlag,
    Request,
    decode_request,
    encode_errno,
    encode_reply,
    pack_entry,
)
from fusepipe.wire import messages as m
from fusepipe.wire.frames import MAX_HEADER

SOURCES = Path(fusepipe.device.__file__).parent
WIRE = SOURCES.parent / "wire"
PATIENCE = 30.0  # seconds: the end of a test that fails

READLINK, SYMLINK, MKDIR, RMDIR, RENAME, LINK, RENAME2 = 5, 6, 9, 11, 12, 13, 45
LOOKUP, GETXATTR, STATFS, UNLINK, OPEN, READ, WRITE, RELEASE, READDIRPLUS = 1, 22, 17, 10, 14, 15, 16, 18, 44
HEADER = struct.Struct("<IIQQIIIHH")
OUT = struct.Struct("<IiQ")
ATTR = Attr(77, 0o100644, 1, 1000, 1001, 0, 5, 4096, 8, 1, 2, -3, 4, 5, 6)

FAKE = """
#include <errno.h>
#include <sys/uio.h>
#include "clones.h"
#include "filter.h"
#include "kernel.h"

struct init_agreed filter_agreed;
struct filter_counters filter_counters;
static int session, devices[CLONES_MAX];
static uint32_t count;

void fake_device(int fd, const int *clones, uint32_t number)
{
	session = fd;
	count = number;
	for (uint32_t i = 0; i < number; i++)
		devices[i] = clones[i];
}
int filter_session(void) { return session; }
void filter_hand_over(bool by_native_threads) { (void)by_native_threads; }
void clones_single(int fd) { (void)fd; }
int clones_open(int fd, uint32_t wanted) { (void)fd; return wanted == count ? 0 : -EINVAL; }
int clones_fd(uint32_t clone) { return devices[clone]; }
uint32_t clones_count(void) { return count; }
void clones_close(void) { }
int clones_answer(uint32_t clone, uint64_t unique, int error, const void *body, size_t size)
{
	struct fuse_out_header out = { .len = (uint32_t)(sizeof out + size), .error = -error, .unique = unique };
	const struct iovec iov[2] = { { &out, sizeof out }, { (void *)(uintptr_t)body, size } };
	return writev(devices[clone], iov, size ? 2 : 1) < 0 ? -errno : 0;
}
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The native code alone, on a device of the test's own."""
    folder = tmp_path_factory.mktemp("native")
    (folder / "fake.c").write_text(FAKE)
    names = [name for name in _build.SOURCES if name.startswith("native_")] + ["collected", "current", "given_back"]
    cdef = _build.CDEF[_build.CDEF.index("struct native_policy") :]
    cdef = re.sub(r'extern "Python".*|void use_python.*', "", cdef)
    builder = FFI()
    builder.cdef(
        cdef + "void fake_device(int fd, const int *clones, uint32_t number);"
        "size_t given_back_take_forgets(uint64_t *pairs, size_t limit);"
        "size_t given_back_take_handles(uint64_t *handles, size_t limit);"
        "size_t given_back_take_untaken(uint64_t *handles, size_t limit);"
    )
    headers = ["given_back", "native_connection", "native_device", "native_events", "native_lost", "native_policy"]
    headers += ["native_reply", "native_slots", "native_space"]
    builder.set_source(
        "native_alone",
        "".join(f'#include "{name}.h"\n' for name in headers)
        + "void fake_device(int fd, const int *clones, uint32_t number);\n",
        sources=[*(str(SOURCES / f"{name}.c") for name in names), str(WIRE / "native.c"), str(folder / "fake.c")],
        include_dirs=[str(SOURCES), str(WIRE)],
        extra_compile_args=["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-g"],
    )
    built = builder.compile(tmpdir=str(folder))
    spec = importlib.util.spec_from_file_location("native_alone", built)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


class Far:
    """The server's end of a connection."""

    def __init__(self, sock: socket.socket, *, checksums: bool = False) -> None:
        self.sock = sock
        self._receiver = FrameReceiver(MAX_HEADER, 1 << 20)
        self._sender = FrameSender()
        # As after a handshake: the first frame of each direction is over.
        self._receiver._first = self._sender._first = False
        self._receiver.number = self._sender.number = 1
        self._receiver.body_crc = self._sender.body_crc = checksums

    def receive(self) -> tuple[Request, bytes]:
        """The next request, with its payload."""
        while (frame := self._receiver.next()) is None:
            self._receiver.received(self.sock.recv_into(self._receiver.buffer()))
        return decode_request(frame.header), bytes(frame.payload)

    def send(self, header: bytes, payload: bytes = b"") -> None:
        """A frame."""
        self.sock.sendall(b"".join(self._sender.frame(header, payload)))

    def reply(self, to: Request, message: Any, payload: bytes = b"") -> None:
        """The reply to a request."""
        assert to.slot is not None
        self.send(encode_reply(to.slot, to.seq, to.op, message), payload)

    def fail(self, to: Request, error: int) -> None:
        """The reply to a request, with an error."""
        assert to.slot is not None
        self.send(encode_errno(to.slot, to.seq, error))


@dataclass
class World:
    """Native threads between a fake kernel and a fake server."""

    native: Native
    module: ModuleType
    kernel: list[socket.socket]
    """The kernel's ends of the clones."""
    servers: list[Far]
    python: socket.socket
    """Where requests are handed on."""
    unique: int = 100

    def ask(self, opcode: int, node: int = 1, body: bytes = b"", *, clone: int = 0, uid: int = 1000) -> int:
        """A request of the kernel's; returns its `unique`."""
        self.unique += 2
        header = HEADER.pack(HEADER.size + len(body), opcode, self.unique, node, uid, 1000, os.getpid(), 0, 0)
        self.kernel[clone].send(header + body)
        return self.unique

    def answer(self, clone: int = 0) -> tuple[int, int, bytes]:
        """The next answer on a clone: (unique, errno, body)."""
        got = self.kernel[clone].recv(1 << 21)
        size, error, unique = OUT.unpack_from(got)
        assert size == len(got)
        return unique, -error, got[OUT.size :]

    def events(self) -> NativeEvent:
        """The next events."""
        assert select.select([self.native.wake], [], [], PATIENCE)[0], "nothing happened"
        return self.native.events()

    def found(self, unique: int) -> Target:
        """The request that waits for its reply, as soon as it has been sent."""
        end = time.monotonic() + PATIENCE
        while not isinstance(found := self.native.find(unique), Target):
            assert time.monotonic() < end, "it was never sent"
        return found

    def forgotten(self) -> list[int]:
        """Nodes and counts that were collected, in turn."""
        pairs = self.module.ffi.new("uint64_t[]", 100)
        return list(pairs[0 : self.module.lib.given_back_take_forgets(pairs, 100)])

    def released(self) -> list[int]:
        """Handles that were collected."""
        handles = self.module.ffi.new("uint64_t[]", 100)
        return list(handles[0 : self.module.lib.given_back_take_handles(handles, 100)])

    def untaken(self) -> list[int]:
        """Handles that the kernel has never seen."""
        handles = self.module.ffi.new("uint64_t[]", 100)
        return list(handles[0 : self.module.lib.given_back_take_untaken(handles, 100)])


@pytest.fixture
def make(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """make(slots=..., clones=..., ...): a world, whose threads end with the test."""
    monkeypatch.setattr(native, "MODULE", module)
    with ExitStack() as stack:

        def pair(kind: int) -> tuple[socket.socket, socket.socket]:
            ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
            for sock in (ours, theirs):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            ours.settimeout(PATIENCE)
            stack.callback(ours.close)
            stack.callback(theirs.close)
            return ours, theirs

        def made(
            *,
            slots: int = 4,
            clones: int = 1,
            seconds: float = 1.5,
            checksums: bool = False,
            limit: int | None = None,
            max_name: int = 255,
            kind: int = socket.SOCK_STREAM,
        ) -> World:
            devices = [pair(socket.SOCK_SEQPACKET) for _ in range(clones)]
            session = os.open("/dev/null", os.O_RDWR)  # its number is what pyfuse3 would wait on
            fds = module.ffi.new("int[]", [theirs.fileno() for _, theirs in devices])
            module.lib.fake_device(session, fds, clones)
            policy = Policy(seconds, seconds, False, True, 1000, False, max_name, 1 << 20, 1 << 20)
            native_code = Native(slots, 1 << 24, policy)
            stack.callback(native_code.close)
            connections = [pair(kind) for _ in range(clones)]
            channels = [Channel(theirs, 1, 1, checksums, limit) for _, theirs in connections]
            native_code.begin(clones, channels)
            stack.callback(native_code.stop)
            python = socket.socket(fileno=session)
            python.settimeout(PATIENCE)
            stack.callback(python.close)
            kernel = [ours for ours, _ in devices]
            return World(
                native_code, module, kernel, [Far(ours, checksums=checksums) for ours, _ in connections], python
            )

        yield made


def read_in(handle: int, offset: int, size: int) -> bytes:
    return struct.pack("<QQIIQII", handle, offset, size, 0, 0, 0, 0)


def write_in(handle: int, offset: int, data: bytes, flags: int = 0) -> bytes:
    return struct.pack("<QQIIQII", handle, offset, len(data), flags, 0, 0, 0) + data


def test_a_lookup_goes_to_the_server_and_back(make: Any) -> None:
    world = make()
    unique = world.ask(LOOKUP, 7, b"name\0")
    request, payload = world.servers[0].receive()
    assert (request.slot, request.seq, request.message, payload) == (0, 1, m.LookupRequest(7, b"name"), b"")
    world.servers[0].reply(request, m.LookupReply(Entry(50, ATTR)))
    got, error, body = world.answer()
    assert (got, error) == (unique, 0)
    node, generation, entry_s, attr_s, entry_ns, attr_ns = struct.unpack_from("<QQQQII", body)
    assert (node, generation, entry_s, attr_s, entry_ns, attr_ns) == (50, 0, 1, 1, 500_000_000, 500_000_000)
    ino, size, blocks, atime, mtime, ctime, *rest = struct.unpack_from("<QQQqqqIIIIIIIII", body, 40)
    assert (ino, size, blocks, atime, mtime, ctime) == (77, 5, 8, 1, -3, 5)
    assert rest == [2, 4, 6, 0o100644, 1, 1000, 1001, 0, 4096]
    assert world.native.counters == (1, 0)


def test_a_name_that_is_not_there_may_be_remembered_or_not(make: Any) -> None:
    world = make()
    world.ask(LOOKUP, 1, b"gone\0")
    world.servers[0].fail(world.servers[0].receive()[0], errno.ENOENT)
    _, error, body = world.answer()
    assert (error, struct.unpack_from("<QQQ", body)) == (0, (0, 0, 1))


def test_nothing_is_remembered_without_a_cache(make: Any) -> None:
    world = make(seconds=0.0)
    unique = world.ask(LOOKUP, 1, b"gone\0")
    world.servers[0].fail(world.servers[0].receive()[0], errno.ENOENT)
    assert world.answer() == (unique, errno.ENOENT, b"")


def test_a_name_that_is_too_long_never_leaves(make: Any) -> None:
    world = make()
    unique = world.ask(LOOKUP, 1, b"n" * 256 + b"\0")
    assert world.answer() == (unique, errno.ENAMETOOLONG, b"")


NAMES: list[tuple[int, bytes, Any, Any, bytes | None]] = [
    (READLINK, b"", m.ReadlinkRequest(7), m.ReadlinkReply(b"../there"), b"../there"),
    (SYMLINK, b"s\0there\0", m.SymlinkRequest(7, b"s", b"there", 0, 1000, ()), m.SymlinkReply(Entry(50, ATTR)), None),
    (MKDIR, struct.pack("<II", 0o755, 0) + b"d\0", m.MkdirRequest(7, b"d", 0o755, 0, 0, 1000, ()),
     m.MkdirReply(Entry(50, ATTR)), None),
    (LINK, struct.pack("<Q", 9) + b"l\0", m.LinkRequest(9, 7, b"l"), m.LinkReply(Entry(50, ATTR)), None),
    (RMDIR, b"d\0", m.RmdirRequest(7, b"d"), m.RmdirReply(), b""),
    (RENAME, struct.pack("<Q", 8) + b"a\0b\0", m.RenameRequest(7, b"a", 8, b"b", 0), m.RenameReply(), b""),
    (RENAME2, struct.pack("<QII", 8, 2, 0) + b"a\0b\0", m.RenameRequest(7, b"a", 8, b"b", 2), m.RenameReply(), b""),
]  # fmt: skip
"""Opcode, what the kernel sends for node 7, the request to the server, its reply, the answer (None: an entry)."""


@pytest.mark.parametrize(("opcode", "body", "message", "reply", "answer"), NAMES)
def test_names_are_made_changed_and_read(
    make: Any, opcode: int, body: bytes, message: Any, reply: Any, answer: bytes | None
) -> None:
    world = make()
    for failed in (False, True):
        unique = world.ask(opcode, 7, body, uid=0)
        request, payload = world.servers[0].receive()
        assert (request.message, payload) == (message, b"")
        if failed:
            world.servers[0].fail(request, errno.EACCES)
            assert world.answer() == (unique, errno.EACCES, b"")
        else:
            world.servers[0].reply(request, reply)
            got, error, data = world.answer()
            assert (got, error) == (unique, 0)
            if answer is None:
                assert len(data) == 128 and struct.unpack_from("<Q", data) == (50,)
            else:
                assert data == answer
    assert world.native.counters == (2, 0)


@pytest.mark.parametrize("names", [b"n" * 256 + b"\0b\0", b"a\0" + b"n" * 256 + b"\0"])
@pytest.mark.parametrize(("opcode", "head"), [(RENAME, struct.pack("<Q", 8)), (RENAME2, struct.pack("<QII", 8, 1, 0))])
def test_a_new_name_that_is_too_long_never_leaves_either(make: Any, opcode: int, head: bytes, names: bytes) -> None:
    world = make()
    unique = world.ask(opcode, 7, head + names)
    assert world.answer() == (unique, errno.ENAMETOOLONG, b"")


def test_a_long_target_and_an_unknown_group_are_pythons(make: Any) -> None:
    world = make()
    for uid, target in ((0, b"t" * 513), (1000, b"t")):
        unique = world.ask(SYMLINK, 7, b"s\0" + target + b"\0", uid=uid)
        handed = world.python.recv(1 << 20)
        assert struct.unpack_from("<QQ", handed, 12) == (unique, 7)
    unique = world.ask(SYMLINK, 7, b"n" * 255 + b"\0" + b"t" * 512 + b"\0", uid=0)
    assert world.servers[0].receive()[0].message.target == b"t" * 512


@pytest.fixture
def lasting(make: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """make(...), where nothing that is known becomes too old during a test."""
    monkeypatch.setattr(native, "KNOWN_MILLISECONDS", 600_000)
    return lambda **options: make(seconds=600.0, **options)


CREATE, SETXATTR = 35, 21
CREATE_IN = struct.pack("<IIII", os.O_WRONLY, 0o644, 0, 0) + b"f\0"
CAPABILITY = struct.pack("<II", 0, 0) + b"security.capability\0"


def created(world: World, flags: int, node: int = 50) -> None:
    world.ask(CREATE, 1, CREATE_IN, uid=0)
    world.servers[0].reply(world.servers[0].receive()[0], m.CreateReply(Entry(node, ATTR), 9, flags))
    assert world.answer()[1] == 0


def asked(world: World, body: bytes, node: int = 50) -> bool:
    """Whether the server is asked for an attribute, which it does not have."""
    unique = world.ask(GETXATTR, node, body)
    sent = select.select([world.servers[0].sock, world.kernel[0]], [], [], PATIENCE)[0] == [world.servers[0].sock]
    if sent:
        world.servers[0].fail(world.servers[0].receive()[0], errno.ENODATA)
    assert world.answer() == (unique, errno.ENODATA, b"")
    return sent


def test_a_new_file_has_no_capability(lasting: Any) -> None:
    """The kernel asks before the first write, and not again."""
    world = lasting()
    created(world, OpenedFlag.NEW)
    assert asked(world, struct.pack("<II", 0, 0) + b"security.other\0")
    assert asked(world, CAPABILITY, node=51)
    assert not asked(world, CAPABILITY)
    assert asked(world, CAPABILITY), "known once"
    created(world, OpenedFlag.NEW | OpenedFlag.NOFLUSH)
    world.ask(SETXATTR, 50, struct.pack("<IIII", 1, 0, 0, 0) + b"user.x\0y")
    assert world.python.recv(1 << 20)
    assert asked(world, CAPABILITY), "it may have one now"
    created(world, OpenedFlag.NOFLUSH)
    assert asked(world, CAPABILITY), "it existed before"


def test_without_a_cache_a_new_file_is_asked_about(make: Any) -> None:
    world = make(seconds=0.0)
    created(world, OpenedFlag.NEW)
    assert asked(world, CAPABILITY)


GETATTR, SETATTR = 3, 4
GETATTR_IN = struct.pack("<IIQ", 0, 0, 0)
REMOVE = (UNLINK, b"x\0")


def change(world: World, node: int, opcode: int, body: bytes, *sizes: int) -> None:
    """A change of a directory whose reply says what size each directory has afterwards."""
    unique = world.ask(opcode, node, body, uid=0)
    finish_change(world, unique, world.servers[0].receive()[0], *sizes)


def finish_change(world: World, unique: int, request: Request, *sizes: int) -> None:
    fields = [Entry(50, ATTR), 9, 0] if request.op is m.Op.CREATE else []
    attached = [ATTR._replace(size=size) for size in sizes]
    world.servers[0].send(msgpack.packb([request.slot, request.seq, 0, *fields, *attached]))
    assert world.answer()[:2] == (unique, 0)


def size_of(world: World, node: int) -> int | None:
    """The size of a directory as the client knows it by itself; None where it asks the server."""
    unique = world.ask(GETATTR, node, GETATTR_IN)
    sent = select.select([world.servers[0].sock, world.kernel[0]], [], [], PATIENCE)[0] == [world.servers[0].sock]
    if sent:
        world.servers[0].reply(world.servers[0].receive()[0], m.GetattrReply(ATTR))
    got, error, body = world.answer()
    assert (got, error, len(body)) == (unique, 0, 104)
    assert struct.unpack_from("<Q", body)[0] in (599, 600)  # seconds for which it is good
    return None if sent else struct.unpack_from("<Q", body, 24)[0]


@pytest.mark.parametrize(
    ("opcode", "body"),
    [REMOVE, (RMDIR, b"x\0"), (CREATE, CREATE_IN), (RENAME, struct.pack("<Q", 7) + b"a\0b\0")],
)
def test_a_changed_directory_is_not_asked_about(lasting: Any, opcode: int, body: bytes) -> None:
    """Said once; what the guest does to the directory itself ends it."""
    world = lasting()
    change(world, 7, opcode, body, 11)
    assert size_of(world, 8) is None
    assert size_of(world, 7) == 11
    assert size_of(world, 7) is None
    change(world, 7, opcode, body)
    assert size_of(world, 7) is None, "the server did not say it"
    change(world, 7, opcode, body, 12)
    unique = world.ask(SETATTR, 7, bytes(88))
    world.servers[0].fail(world.servers[0].receive()[0], errno.EPERM)
    assert world.answer()[:2] == (unique, errno.EPERM)
    assert size_of(world, 7) is None


def test_both_directories_of_a_rename_are_known(lasting: Any) -> None:
    world = lasting()
    change(world, 7, RENAME2, struct.pack("<QII", 8, 1, 0) + b"a\0b\0", 11, 12)
    assert (size_of(world, 7), size_of(world, 8)) == (11, 12)
    change(world, 9, *REMOVE, 13)
    change(world, 7, RENAME, struct.pack("<Q", 8) + b"a\0b\0", 14, 15)
    assert size_of(world, 9) is None, "it may be what was renamed"
    assert (size_of(world, 7), size_of(world, 8)) == (14, 15)


def test_another_nodes_directory_may_take_the_place(lasting: Any) -> None:
    world = lasting()
    change(world, 7, *REMOVE, 11)
    change(world, 7 + 256, *REMOVE, 12)
    assert size_of(world, 7) is None
    assert size_of(world, 7 + 256) == 12


@pytest.mark.parametrize("first", [0, 1])
def test_what_two_changes_at_once_say_is_not_used(lasting: Any, first: int) -> None:
    """Which of them the server did last is not known."""
    world = lasting()
    for second in (REMOVE, (RENAME, struct.pack("<Q", 9) + b"a\0b\0")):
        uniques = [
            world.ask(UNLINK, 7, b"a\0", uid=0),
            world.ask(second[0], 9 if second != REMOVE else 7, second[1], uid=0),
        ]
        requests = [world.servers[0].receive()[0] for _ in range(2)]
        for one in (first, 1 - first):
            finish_change(world, uniques[one], requests[one], 11)
        assert size_of(world, 7) is None


def opened(world: World, node: int, handle: int, contents: bytes, flags: int = 0) -> m.OpenRequest:
    """OPEN, which brings contents: what the server was asked."""
    unique = world.ask(OPEN, node, struct.pack("<II", flags, 0))
    request, _ = world.servers[0].receive()
    world.servers[0].reply(request, m.OpenReply(handle, 0), contents)
    assert world.answer()[:2] == (unique, 0)
    assert isinstance(request.message, m.OpenRequest)
    return request.message


def read(world: World, node: int, handle: int, offset: int, size: int) -> bytes | None:
    """What READ says without asking the server; None where it is asked."""
    unique = world.ask(READ, node, read_in(handle, offset, size))
    ready, _, _ = select.select([world.kernel[0], world.servers[0].sock], [], [], PATIENCE)
    if world.kernel[0] not in ready:
        world.servers[0].reply(world.servers[0].receive()[0], m.ReadReply(), b"asked")
    got, error, data = world.answer()
    assert (got, error) == (unique, 0)
    return None if data == b"asked" else data


def test_a_short_file_is_read_from_what_came_with_its_opening(make: Any) -> None:
    world = make()
    assert opened(world, 7, 600, b"0123456789").size == native.CONTENTS_BYTES
    assert read(world, 7, 601, 0, 4096) is None, "another handle"
    assert read(world, 8, 600, 0, 4096) is None, "another node"
    assert read(world, 7, 600, 0, 4) == b"0123"
    assert read(world, 7, 600, 4, 3) == b"456"
    assert read(world, 7, 600, 4, 4096) == b"456789"
    assert read(world, 7, 600, 0, 4096) is None, "the kernel had it all, and asks again for a reason"
    opened(world, 7, 600, b"0123456789")
    assert read(world, 7, 600, 10, 4096) is None, "behind what came"
    assert read(world, 7, 600, 0, 4096) is None


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR | os.O_TRUNC, os.O_DIRECT])
def test_contents_are_asked_for_where_they_will_be_read(make: Any, flags: int) -> None:
    world = make()
    unique = world.ask(OPEN, 7, struct.pack("<II", flags, 0))
    request, _ = world.servers[0].receive()
    assert request.message.size == 0
    world.servers[0].reply(request, m.OpenReply(600, 0))
    assert world.answer()[:2] == (unique, 0)


FALLOCATE, COPY_FILE_RANGE = 43, 47
CHANGES = {
    "written": (WRITE, 7, write_in(1, 0, b"x"), m.WriteReply(1)),
    "changed": (SETATTR, 7, bytes(88), m.SetattrReply(ATTR)),
    "looked at": (GETATTR, 7, bytes(16), m.GetattrReply(ATTR)),
    "looked up": (LOOKUP, 1, b"name\0", m.LookupReply(Entry(7, ATTR))),
    "made": (CREATE, 1, struct.pack("<IIII", 0, 0o644, 0, 0) + b"f\0", m.CreateReply(Entry(7, ATTR), 9, 0)),
    "truncated": (OPEN, 7, struct.pack("<II", os.O_TRUNC | os.O_WRONLY, 0), m.OpenReply(9, 0)),
    "filled": (FALLOCATE, 7, bytes(32), None),
    "copied to": (COPY_FILE_RANGE, 9, bytes(56), None),
}
"""What makes contents of node 7 unknown: opcode, node, arguments, and the reply; None: Python's."""


@pytest.mark.parametrize("change", CHANGES)
def test_contents_are_unknown_after_a_change(make: Any, change: str) -> None:
    world = make()
    opcode, node, body, reply = CHANGES[change]
    opened(world, 7, 600, b"0123456789")
    opened(world, 8, 601, b"0123456789")
    unique = world.ask(opcode, node, body, uid=0)
    if reply is None:
        assert world.python.recv(1 << 17)
    else:
        world.servers[0].reply(world.servers[0].receive()[0], reply)
        assert world.answer()[:2] == (unique, 0)
    assert read(world, 7, 600, 0, 4096) is None
    assert (read(world, 8, 601, 0, 4096) is None) is (reply is None)


@pytest.mark.parametrize("change", [name for name, case in CHANGES.items() if case[3] is not None])
@pytest.mark.parametrize("first", ["opening", "change"])
def test_contents_are_unknown_where_a_change_meets_the_opening(make: Any, change: str, first: str) -> None:
    """Whether the server read before or after the change is not known."""
    world = make()
    opcode, node, body, reply = CHANGES[change]
    world.ask(OPEN, 7, struct.pack("<II", 0, 0))
    opening = world.servers[0].receive()[0]
    world.ask(opcode, node, body, uid=0)
    other = world.servers[0].receive()[0]
    answers = [(opening, m.OpenReply(600, 0), b"0123456789"), (other, reply, b"")]
    for answer in answers if first == "opening" else reversed(answers):
        world.servers[0].reply(*answer)
        assert world.answer()[1] == 0
    assert read(world, 7, 600, 0, 4096) is None


def test_contents_become_too_old(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "KNOWN_MILLISECONDS", 0)
    world = make(seconds=600.0)
    opened(world, 7, 600, b"0123456789")
    assert read(world, 7, 600, 0, 4096) is None


def test_contents_of_an_opening_that_nobody_waits_for_are_dropped(make: Any) -> None:
    world = make()
    unique = world.ask(OPEN, 7, struct.pack("<II", 0, 0))
    opening = world.servers[0].receive()[0]
    assert world.native.abandon(world.found(unique), 1)
    assert world.answer() == (unique, errno.EINTR, b"")
    world.servers[0].reply(opening, m.OpenReply(600, 0), b"0123456789")
    assert world.events() & NativeEvent.COLLECTED
    assert world.untaken() == [600]
    assert read(world, 7, 600, 0, 4096) is None


def test_what_is_known_becomes_too_old(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "KNOWN_MILLISECONDS", 0)
    world = make(seconds=600.0)
    change(world, 7, *REMOVE, 11)
    assert size_of(world, 7) is None
    created(world, OpenedFlag.NEW)
    assert asked(world, CAPABILITY)


def record(node: int, offset: int, name: bytes) -> bytes:
    """One of a directory page (SPEC.md, "Directory pages")."""
    return struct.pack("<QQQII", node, 70, offset, len(name), 8) + bytes(80) + name + bytes(-len(name) % 8)


PAGE = record(0, 4, b".") + record(51, 9, b"last")


def listed(world: World, *attached: bool, node: int = 7, handle: int = 20, size: int = 4096) -> None:
    """A page of a directory, whose reply may say that nothing follows."""
    unique = world.ask(READDIRPLUS, node, read_in(handle, 0, size))
    request = world.servers[0].receive()[0]
    world.servers[0].send(msgpack.packb([request.slot, request.seq, 0, 2, *attached]), PAGE)
    assert world.answer()[:2] == (unique, 0)


def read_on(world: World, offset: int = 9, *, node: int = 7, handle: int = 20) -> bool:
    """Whether the server is asked for what follows; both ways there is nothing."""
    unique = world.ask(READDIRPLUS, node, read_in(handle, offset, 4096))
    sent = select.select([world.servers[0].sock, world.kernel[0]], [], [], PATIENCE)[0] == [world.servers[0].sock]
    if sent:
        world.servers[0].reply(world.servers[0].receive()[0], m.ReaddirReply(0))
    assert world.answer() == (unique, 0, b"")
    return sent


def test_the_end_of_a_directory_is_not_asked_about(lasting: Any) -> None:
    world = lasting()
    listed(world, True)
    assert not read_on(world)
    assert read_on(world), "said once"
    for attached in ((), (False,)):
        listed(world, *attached)
        assert read_on(world), "the server did not say it"
    listed(world, True)
    assert read_on(world, 4), "there is more behind that"
    listed(world, True)
    assert read_on(world, node=8, handle=21)
    assert not read_on(world)


def test_the_end_of_a_directory_that_changes_is_asked_about(lasting: Any) -> None:
    world = lasting()
    for node, change_of in ((7, REMOVE), (7, (CREATE, CREATE_IN)), (9, (RENAME, struct.pack("<Q", 7) + b"a\0b\0"))):
        listed(world, True)
        change(world, node, *change_of)
        assert read_on(world)
    listed(world, True)
    change(world, 8, *REMOVE)
    assert not read_on(world), "another directory"


def test_the_end_of_a_page_that_was_cut_is_asked_about(lasting: Any) -> None:
    """Its last entry did not fit, against the protocol: so it is still to come."""
    world = lasting()
    listed(world, True, size=250)
    assert world.forgotten() == [51, 1]
    assert read_on(world, 4)
    assert read_on(world, 9)


def test_where_nothing_is_kept_the_end_is_asked_about(make: Any) -> None:
    world = make(seconds=0.0)
    listed(world, True)
    assert read_on(world)


def test_every_answer_goes_to_the_clone_that_read_the_request(make: Any) -> None:
    world = make(clones=2)
    uniques = [world.ask(UNLINK, 1, b"x\0", clone=clone) for clone in (1, 0, 1, 0)]
    requests = [(far, far.receive()[0]) for far in (world.servers[1], world.servers[0]) for _ in range(2)]
    for far, request in reversed(requests):
        far.reply(request, m.UnlinkReply())
    assert {world.answer(1)[0], world.answer(1)[0]} == {uniques[0], uniques[2]}
    assert {world.answer(0)[0], world.answer(0)[0]} == {uniques[1], uniques[3]}


def test_everything_else_is_handed_on_with_its_clone(make: Any) -> None:
    world = make(clones=2)
    unique = world.ask(STATFS, 9, b"rest", clone=1)
    got = world.python.recv(1 << 16)
    assert struct.unpack_from("<I", got) == (1,)
    assert HEADER.unpack_from(got, 4)[1:4] == (STATFS, unique, 9)
    assert got.endswith(b"rest")


def xattr_in(size: int, name: bytes) -> bytes:
    return struct.pack("<II", size, 0) + name + b"\0"


def test_an_attribute_comes_as_its_value_or_its_length(make: Any) -> None:
    world = make()
    far = world.servers[0]
    value = bytes(range(256)) * 40
    for room, answer in (
        (0, (0, struct.pack("<II", len(value), 0))),
        (len(value), (0, value)),
        (65536, (0, value)),
        (len(value) - 1, (errno.ERANGE, b"")),
    ):
        unique = world.ask(GETXATTR, 9, xattr_in(room, b"user.long"))
        request, _ = far.receive()
        assert request.message == m.GetxattrRequest(9, b"user.long")
        far.reply(request, m.GetxattrReply(value))
        assert world.answer() == (unique, *answer)


def test_where_acls_are_unknown_there_are_none(make: Any) -> None:
    world = make()
    far = world.servers[0]
    for name, becomes in (
        (b"system.posix_acl_access", errno.ENODATA),
        (b"system.posix_acl_default", errno.ENODATA),
        (b"system.posix_acl", errno.EOPNOTSUPP),
        (b"user.x", errno.EOPNOTSUPP),
    ):
        unique = world.ask(GETXATTR, 9, xattr_in(100, name))
        far.fail(far.receive()[0], errno.EOPNOTSUPP)
        assert world.answer() == (unique, becomes, b"")


def test_the_longest_name_of_an_attribute_fits(make: Any) -> None:
    world = make(max_name=10)
    unique = world.ask(GETXATTR, 9, xattr_in(100, b"user." + b"n" * 250))
    request, _ = world.servers[0].receive()
    assert request.message == m.GetxattrRequest(9, b"user." + b"n" * 250)
    world.servers[0].fail(request, errno.ENODATA)
    assert world.answer() == (unique, errno.ENODATA, b"")


def test_read_and_write_carry_their_data(make: Any) -> None:
    world = make(checksums=True, limit=32_000)
    data = os.urandom(200_000)
    world.ask(WRITE, 3, write_in(9, 5, data, flags=7))
    far = world.servers[0]
    request, payload = far.receive()
    assert (request.message, payload == data) == (m.WriteRequest(9, 5, 5), True)
    far.reply(request, m.WriteReply(len(data)))
    assert struct.unpack_from("<I", world.answer()[2]) == (len(data),)
    world.ask(READ, 3, read_in(9, 5, len(data)))
    request, _ = far.receive()
    assert request.message == m.ReadRequest(9, 5, len(data))
    far.reply(request, m.ReadReply(), data)
    assert world.answer()[2] == data


@pytest.mark.parametrize("checksums", [False, True])
def test_no_call_sends_more_than_the_socket_takes_well(make: Any, checksums: bool) -> None:
    """vsock's limit, on a socket that keeps apart what each call sends."""
    world = make(checksums=checksums, limit=32_000, kind=socket.SOCK_SEQPACKET)
    data = os.urandom(200_000)
    for size in (1, 31_900, 32_000, len(data)):
        world.ask(WRITE, 3, write_in(9, 5, data[:size]))
        packets = [world.servers[0].sock.recv(1 << 20)]
        (header, payload), end = struct.unpack_from("<II", packets[0]), 4 * checksums
        while sum(map(len, packets)) < 16 + header + payload + end:
            packets.append(world.servers[0].sock.recv(1 << 20))
        assert b"".join(packets)[16 + header : 16 + header + payload] == data[:size]
        assert max(map(len, packets)) <= 32_000


def test_a_directory_page_is_turned_into_the_kernels_form(make: Any) -> None:
    world = make()
    world.ask(READDIRPLUS, 1, read_in(8, 0, 400))
    far = world.servers[0]
    request, _ = far.receive()
    assert request.message == m.ReaddirRequest(8, 0, 400)
    page = pack_entry(DirectoryEntry(0, 5, 1, 4, b".", None)) + pack_entry(DirectoryEntry(60, 77, 2, 8, b"file", ATTR))
    page += pack_entry(DirectoryEntry(61, 78, 3, 8, b"too much", ATTR))
    far.reply(request, m.ReaddirReply(3), page)
    body = world.answer()[2]
    assert len(body) == 2 * 160
    assert struct.unpack_from("<QQII", body, 128) == (5, 1, 1, 4)
    assert body[:128] == bytes(128) and body[152:160] == b".".ljust(8, b"\0")
    assert struct.unpack_from("<Q", body, 160) == (60,)
    assert struct.unpack_from("<QQII", body, 160 + 128) == (77, 2, 4, 8)
    assert world.forgotten() == [61, 1], "what the kernel does not see it will not forget"


def test_what_is_released_is_collected(make: Any) -> None:
    world = make()
    unique = world.ask(RELEASE, 1, struct.pack("<QIIQ", 55, 0, 0, 0))
    assert world.answer() == (unique, 0, b"")
    assert world.events() == NativeEvent.COLLECTED
    assert world.released() == [55]


def test_a_request_without_a_slot_waits_and_can_be_interrupted(make: Any) -> None:
    world = make(slots=1)
    first, second, third = (world.ask(UNLINK, 1, name) for name in (b"a\0", b"b\0", b"c\0"))
    far = world.servers[0]
    request, _ = far.receive()
    target = world.found(first)
    assert target == Target(0, 1, 0, os.getpid())
    assert world.native.interrupt(target)
    asked, _ = far.receive()
    assert (asked.slot, asked.seq, asked.message) == (None, 2, m.InterruptRequest(0, 1))
    far.send(encode_reply(None, 2, m.Op.INTERRUPT, m.InterruptReply()))
    while world.native.find(second) is not True:
        pass  # it has not been read yet
    assert world.answer() == (second, errno.EINTR, b"")
    far.reply(request, m.UnlinkReply())
    assert world.answer() == (first, 0, b"")
    request, _ = far.receive()
    assert (request.slot, request.seq, request.message.name) == (0, 2, b"c")
    far.reply(request, m.UnlinkReply())
    assert world.answer() == (third, 0, b"")
    assert world.native.find(third) is False


def test_python_and_native_code_take_turns(make: Any) -> None:
    world = make(slots=1)
    world.ask(UNLINK, 1, b"a\0")
    far = world.servers[0]
    request, _ = far.receive()
    assert world.native.take() is None
    world.native.python_waits(2)
    waiting = world.ask(UNLINK, 1, b"b\0")
    world.ask(STATFS)
    world.python.recv(1 << 16)  # it was read after the one before it, which waits for a slot by now
    far.reply(request, m.UnlinkReply())
    world.answer()
    assert world.events() == NativeEvent.SLOT
    slot = world.native.take()
    assert slot == 0
    world.native.put(slot, 2)
    world.native.python_waits(1)
    world.native.clear(slot)  # Python waits still, but it is native code's turn
    request, _ = far.receive()
    assert (request.seq, request.message.name) == (3, b"b")
    far.reply(request, m.UnlinkReply())
    assert world.answer()[0] == waiting
    assert world.events() == NativeEvent.SLOT


def test_an_abandoned_request_gives_back_what_its_reply_brings(make: Any) -> None:
    world = make(slots=2)
    unique = world.ask(LOOKUP, 1, b"slow\0")
    other = world.ask(OPEN, 5, struct.pack("<II", 0, 0))
    far = world.servers[0]
    lookup, _ = far.receive()
    opening, _ = far.receive()
    target = world.found(unique)
    assert world.native.abandon(target, 1)
    assert world.answer() == (unique, errno.EINTR, b"")
    assert not world.native.waits(target)
    left = world.found(other)
    assert not world.native.abandon(left, 1), "half of the slots are abandoned already"
    far.reply(lookup, m.LookupReply(Entry(50, ATTR)))
    assert world.events() & NativeEvent.COLLECTED
    assert world.forgotten() == [50, 1]
    end = time.monotonic() + PATIENCE
    while world.native.abandoned:  # until the thread that has taken the reply is done with the slot
        assert time.monotonic() < end
    assert world.native.abandon(left, 1)
    assert world.answer() == (other, errno.EINTR, b"")
    far.reply(opening, m.OpenReply(600, 0))
    assert world.events() & NativeEvent.COLLECTED
    assert (world.released(), world.untaken()) == ([], [600])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.ENFILE, errno.EMFILE])
def test_what_was_full_gets_a_second_try(make: Any, number: int) -> None:
    """Disks, and the server's file descriptors: some may be free once it has closed what was given back."""
    world = make()
    unique = world.ask(WRITE, 3, write_in(9, 0, b"data"))
    far = world.servers[0]
    far.fail(far.receive()[0], number)
    assert world.events() == NativeEvent.NO_SPACE
    world.native.again(True)
    request, payload = far.receive()
    assert payload == b"data"
    far.fail(request, number)
    assert world.answer() == (unique, number, b"")


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (encode_errno(0, 9, 5), "a reply to a request that was never sent"),
        (encode_errno(9, 1, 5), "a reply to a request that was never sent"),
        (b"\x93\x00\x01", "a reply is malformed"),
        (b"\x93\xc0\x01\x00", "the server sent what it may not send now"),
        (encode_reply(0, 1, m.Op.UNLINK, m.UnlinkReply()) + b"\0", "a reply is malformed"),
    ],
)
def test_a_server_that_breaks_the_protocol_is_left(make: Any, wrong: bytes, why: str) -> None:
    world = make()
    world.ask(UNLINK, 1, b"x\0")
    world.servers[0].receive()
    world.servers[0].send(wrong)
    assert world.events() & NativeEvent.LOST
    assert world.native.reason == why


def test_a_payload_that_nobody_asked_for_is_refused(make: Any) -> None:
    world = make()
    unique = world.ask(READ, 3, read_in(9, 0, 4096))
    request, _ = world.servers[0].receive()
    world.servers[0].reply(request, m.ReadReply(), bytes(4097))
    assert world.answer() == (unique, errno.EIO, b"")
    assert world.events() & NativeEvent.LOST


def test_a_lost_connection_fails_all_that_waits_and_all_that_comes(make: Any) -> None:
    world = make(slots=1)
    first, parked = world.ask(UNLINK, 1, b"a\0"), world.ask(UNLINK, 1, b"b\0")
    world.servers[0].receive()
    world.servers[0].sock.close()
    assert world.events() & NativeEvent.LOST
    assert world.native.reason in ("the server closed the connection", os.strerror(errno.ECONNRESET))
    world.native.fail(errno.EIO)
    assert {world.answer(), world.answer()} == {(first, errno.EIO, b""), (parked, errno.EIO, b"")}
    later = world.ask(LOOKUP, 1, b"c\0")
    assert world.answer() == (later, errno.EIO, b"")


def at_rest(world: World) -> None:
    """Waits until nothing is sent or received any more after a loss."""
    world.native.shut()
    while not world.native.parked:
        world.events()


def waiting(world: World, unique: int) -> Target:
    """The request, as soon as it has a slot, while there is no connection."""
    end = time.monotonic() + PATIENCE
    while not isinstance(found := world.native.find(unique, down=True), Target):
        assert time.monotonic() < end, "it never had a slot"
    return found


def test_after_a_loss_everything_is_sent_again_once(make: Any) -> None:
    """What was sent, what was asked for meanwhile, and what had no slot; each on the connection of its clone."""
    world = make(slots=4, clones=2)
    sent = [world.ask(UNLINK, 1, name, clone=clone) for clone, name in ((0, b"a\0"), (1, b"b\0"))]
    for unique in sent:
        world.found(unique)
    world.servers[1].sock.close()
    assert world.events() & NativeEvent.LOST
    at_rest(world)
    later = []
    for clone, name in ((0, b"c\0"), (1, b"d\0")):
        later.append(world.ask(UNLINK, 1, name, clone=clone))
        waiting(world, later[-1])
    assert world.native.take() is None
    assert [world.native.last_sent(slot) for slot in range(4)] == [1, 1, 0, 0]
    later.append(world.ask(UNLINK, 1, b"e\0", clone=0))
    pairs = [socket.socketpair() for _ in range(2)]
    old = world.servers[0].sock
    world.servers[:] = [Far(ours) for ours, _ in pairs]
    for ours, _ in pairs:
        ours.settimeout(PATIENCE)
    with old, pairs[0][0], pairs[1][0]:
        world.native.resume([Channel(theirs, 1, 1, False, None) for _, theirs in pairs])
        got = []
        for far, count in ((world.servers[0], 2), (world.servers[1], 2)):
            requests = [far.receive()[0] for _ in range(count)]
            got += [(request.seq, request.message.name) for request in requests]
            for request in requests:
                far.reply(request, m.UnlinkReply())
        assert sorted(got) == [(1, b"a"), (1, b"b"), (1, b"c"), (1, b"d")]
        last, _ = world.servers[0].receive()
        assert last.message.name == b"e" and last.seq == 2
        world.servers[0].reply(last, m.UnlinkReply())
        answers = [world.answer(clone) for clone in (0, 0, 0, 1, 1)]
        assert sorted(answers) == sorted((unique, 0, b"") for unique in sent + later)
        assert not world.native.events() & NativeEvent.LOST


def test_a_request_that_waits_for_a_connection_can_be_abandoned(make: Any) -> None:
    """All of them, not only half: nobody else could use the slots."""
    world = make(slots=2)
    world.servers[0].sock.close()
    assert world.events() & NativeEvent.LOST
    at_rest(world)
    for unique in [world.ask(UNLINK, 1, name) for name in (b"a\0", b"b\0")]:
        assert world.native.abandon(waiting(world, unique), 2)
        assert world.answer() == (unique, errno.EINTR, b"")


def test_a_sign_of_life_on_a_native_connection(make: Any) -> None:
    world = make()
    world.native.ping()
    ping, _ = world.servers[0].receive()
    assert (ping.slot, ping.seq, ping.message) == (None, 2, m.PingRequest())
    before = world.native.heard(0)
    world.servers[0].send(encode_reply(None, 2, m.Op.PING, m.PingReply()))
    end = time.monotonic() + PATIENCE
    while world.native.heard(0) == before:
        assert time.monotonic() < end
    assert not world.native.events() & NativeEvent.LOST


def test_threads_end_whatever_they_wait_for(make: Any) -> None:
    world = make(slots=1, clones=3)
    for clone in range(3):
        for _ in range(4):
            world.ask(READ, 3, read_in(9, 0, 10), clone=clone)
    world.servers[0].sock.settimeout(PATIENCE)
    world.native.stop()
    assert world.python.recv(1) == b"", "who reads what is handed on learns the end"


def test_the_end_of_the_device_is_the_end_of_what_is_handed_on(make: Any) -> None:
    world = make()
    world.kernel[0].close()
    assert world.python.recv(1) == b""
