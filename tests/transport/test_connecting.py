"""Connecting: retries, the errors at the end of them, and the VMM's CONNECT line."""

import errno
import math
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from trio.testing import trio_test

from fusepipe.transport import (
    Address,
    ConnectError,
    FdAddress,
    FirecrackerConnectAddress,
    Stream,
    UnixAddress,
    VsockAddress,
    VsockListenAddress,
    connect,
    listen,
)


async def no_connection(address: Address, deadline: float = 0.1) -> ConnectError:
    with trio.fail_after(10), pytest.raises(ConnectError) as caught:
        await connect(address, deadline=deadline)
    assert str(address) in str(caught.value)
    return caught.value


# ---- Unix ----


@trio_test
async def test_connects_when_somebody_listens(tmp_path: Path) -> None:
    address = UnixAddress(f"{tmp_path}/s")
    async with (
        await listen(address) as listener,
        await connect(address, deadline=0) as client,
        await listener.accept() as server,
    ):
        await client.send_all(b"hello")
        assert await server.receive_some() == b"hello"


@trio_test
async def test_waits_for_a_server_that_starts_later(tmp_path: Path) -> None:
    address = UnixAddress(f"{tmp_path}/s")

    async def serve_later() -> None:
        await trio.sleep(0.2)
        async with await listen(address) as listener, await listener.accept() as stream:
            await stream.send_all(b"here")

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_later)
            async with await connect(address, deadline=math.inf) as stream:
                assert await stream.receive_some() == b"here"


@trio_test
async def test_nobody_there_until_the_deadline(tmp_path: Path) -> None:
    path = f"{tmp_path}/s"
    assert "there is no socket" in (await no_connection(UnixAddress(path))).cause
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    error = await no_connection(UnixAddress(path))
    assert "nobody listens" in error.cause and "start the server" in error.remedy


@trio_test
async def test_a_directory_is_refused_at_once(tmp_path: Path) -> None:
    error = await no_connection(UnixAddress(str(tmp_path)), deadline=1000)
    assert "is a directory" in error.cause and "volume's name" in error.remedy


@trio_test
async def test_a_file_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    assert "is a file" in (await no_connection(UnixAddress(f"{tmp_path}/f"), deadline=1000)).cause
    assert "Not a directory" in (await no_connection(UnixAddress(f"{tmp_path}/f/s"), deadline=1000)).cause


@trio_test
async def test_a_socket_of_another_type_is_refused_at_once(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.bind(f"{tmp_path}/s")
        other.listen()
        assert "not a stream socket" in (await no_connection(UnixAddress(f"{tmp_path}/s"), deadline=1000)).cause


@trio_test
async def test_a_full_queue_is_waited_for(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(f"{tmp_path}/s")
        busy.listen(0)
        first.connect(f"{tmp_path}/s")
        assert "too many connections" in (await no_connection(UnixAddress(f"{tmp_path}/s"))).cause


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
def test_no_permission_is_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        child = os.fork()
        if child == 0:  # only a process of its own can give up root
            status = 1
            try:
                os.chmod(path, 0o600)
                os.setuid(65534)
                trio.run(no_connection, UnixAddress(str(path)), 1000.0)
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0


# ---- vsock and what cannot connect ----


@trio_test
async def test_a_kernel_without_vsock(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket

    def without_vsock(family: int = -1, *args: int, **kwargs: int) -> socket.socket:
        if family == socket.AF_VSOCK:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        return real(family, *args, **kwargs)

    monkeypatch.setattr("fusepipe.transport.connecting.socket.socket", without_vsock)
    for address in (VsockAddress(2, 5000), VsockListenAddress(5000)):
        error = await no_connection(address, deadline=1000)
        assert "does not know AF_VSOCK" in error.cause and "vsock" in error.remedy


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (errno.ETIMEDOUT, "nobody listens on port 5000 of CID 2"),
        (errno.ECONNREFUSED, "nobody listens on port 5000 of CID 2"),
        (errno.ECONNRESET, "nobody listens on port 5000 of CID 2"),
        (errno.ENODEV, "no vsock device"),
        (errno.ENETUNREACH, os.strerror(errno.ENETUNREACH)),
    ],
)
def test_vsock_errors_are_waited_out(code: int, cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = 0

    async def failing(*_: object) -> socket.socket:
        nonlocal attempts
        attempts += 1
        await trio.lowlevel.checkpoint()
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fusepipe.transport.connecting._connected", failing)
    error = trio.run(no_connection, VsockAddress(2, 5000))
    assert cause in error.cause
    assert attempts > 1


@trio_test
async def test_what_is_not_for_connecting() -> None:
    assert "any" in (await no_connection(Address.parse("vsock:any:5000"), deadline=1000)).cause
    assert "vsock:host:5000" in (await no_connection(Address.parse("firecracker:/s:5000"), deadline=1000)).remedy


# ---- a VMM's socket ----


async def vmm(path: Path, answer: Callable[[Stream], Awaitable[None]], *, times: int = 1) -> None:
    """Stand for Firecracker: take the CONNECT line of each connection and do what `answer` does."""
    async with await listen(UnixAddress(str(path))) as listener:
        for _ in range(times):
            async with await listener.accept() as stream:
                line = b""
                while not line.endswith(b"\n"):
                    line += await stream.receive_some(1)
                assert line == b"CONNECT 52\n"
                await answer(stream)


@trio_test
async def test_dialling_a_guest_reads_the_answer_and_nothing_more(tmp_path: Path) -> None:
    async def guest(stream: Stream) -> None:
        await stream.send_all(b"O")
        await stream.send_all(b"K 1073741824\nOK from the guest\n")
        assert await stream.receive_some() == b"to the guest"

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(vmm, tmp_path / "v", guest)
            async with await connect(FirecrackerConnectAddress(f"{tmp_path}/v", 52), deadline=10) as stream:
                assert await stream.receive_some() == b"OK from the guest\n"
                await stream.send_all(b"to the guest")


@trio_test
async def test_a_guest_that_does_not_listen_yet_is_dialled_again(tmp_path: Path) -> None:
    calls = 0

    async def guest(stream: Stream) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            await stream.send_all(b"OK 1\n")

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: vmm(tmp_path / "v", guest, times=3))
            async with await connect(FirecrackerConnectAddress(f"{tmp_path}/v", 52), deadline=10):
                assert calls == 3


@trio_test
async def test_a_guest_that_never_listens(tmp_path: Path) -> None:
    async def guest(stream: Stream) -> None:
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: vmm(tmp_path / "v", guest, times=1000))
        error = await no_connection(FirecrackerConnectAddress(f"{tmp_path}/v", 52))
        assert "nobody listens on port 52 in the guest" in error.cause
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("line", [b"NO\n", b"x" * 200, b"OK"])
def test_something_else_than_a_vmm(tmp_path: Path, line: bytes) -> None:
    async def guest(stream: Stream) -> None:
        await stream.send_all(line)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(vmm, tmp_path / "v", guest)
            error = await no_connection(FirecrackerConnectAddress(f"{tmp_path}/v", 52), deadline=1000)
            assert "instead of OK" in error.cause

    trio.run(main)


@trio_test
async def test_a_paused_vmm_ends_at_the_deadline(tmp_path: Path) -> None:
    async with await listen(UnixAddress(f"{tmp_path}/v")):
        error = await no_connection(FirecrackerConnectAddress(f"{tmp_path}/v", 52))
        assert "does not answer" in error.cause


# ---- inherited sockets ----


@trio_test
async def test_an_inherited_socket() -> None:
    ours, theirs = socket.socketpair()
    os.set_inheritable(theirs.fileno(), True)
    async with Stream(ours) as peer, await connect(FdAddress(theirs.detach()), deadline=0) as stream:
        assert not stream.socket.get_inheritable()
        await peer.send_all(b"hello")
        assert await stream.receive_some() == b"hello"


def a_pipe() -> list[int]:
    return list(os.pipe())


def a_datagram_pair() -> list[int]:
    return [end.detach() for end in socket.socketpair(type=socket.SOCK_DGRAM)]


def a_listening_socket() -> list[int]:
    sock = socket.create_server(("127.0.0.1", 0))
    return [sock.detach()]


def an_unconnected_socket() -> list[int]:
    return [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).detach()]


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (a_pipe, "is not a socket"),
        (a_datagram_pair, "not a stream socket"),
        (a_listening_socket, "listening socket"),
        (an_unconnected_socket, "not connected"),
    ],
)
def test_what_cannot_be_inherited_stays_open(make: Callable[[], list[int]], cause: str) -> None:
    fds = make()
    try:
        assert cause in trio.run(no_connection, FdAddress(fds[0]), 1000.0).cause
        os.fstat(fds[0])
    finally:
        for fd in fds:
            os.close(fd)


@trio_test
async def test_a_descriptor_that_is_not_open() -> None:
    assert "not open" in (await no_connection(FdAddress(1_000_000), deadline=1000)).cause
