"""Listening: who may take an address, and what is left when it is given up."""

import errno
import fcntl
import os
import socket
from pathlib import Path

import pytest
import trio
from trio.testing import trio_test

from fusepipe.transport import Address, FirecrackerAddress, ListenError, OutOfResources, UnixAddress, connect, listen
from fusepipe.transport import listening as module


async def not_listening(address: Address) -> ListenError:
    with trio.fail_after(10), pytest.raises(ListenError) as caught:
        await listen(address)
    assert str(address) in str(caught.value)
    return caught.value


@trio_test
async def test_the_socket_file_goes_with_the_listener(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with await listen(UnixAddress(str(path))) as listener:
        assert path.is_socket()
    assert not path.exists()
    await listener.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()


@trio_test
async def test_closing_wakes_who_waits_in_accept(tmp_path: Path) -> None:
    listener = await listen(UnixAddress(f"{tmp_path}/s"))

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await listener.aclose()


@trio_test
async def test_firecracker_listens_beside_the_vmms_socket(tmp_path: Path) -> None:
    async with (
        await listen(FirecrackerAddress(f"{tmp_path}/v", 52)) as listener,
        await connect(UnixAddress(f"{tmp_path}/v_52"), deadline=0),
        await listener.accept() as stream,
    ):
        assert stream.peer.uid == os.geteuid()
    assert os.listdir(tmp_path) == []


@trio_test
async def test_a_dead_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with await listen(UnixAddress(str(path))):
        error = await not_listening(UnixAddress(str(path)))
        assert "another process listens" in error.cause and "stop it" in error.remedy
        assert path.is_socket()


@trio_test
async def test_only_a_socket_is_ever_removed(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("precious")
    assert "not a socket" in (await not_listening(UnixAddress(str(file)))).cause
    assert file.read_text() == "precious"
    link = tmp_path / "l"
    link.symlink_to(tmp_path / "nothing")
    assert "not a socket" in (await not_listening(UnixAddress(str(link)))).cause


@trio_test
async def test_a_successors_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = await listen(UnixAddress(str(path)))
    path.unlink()
    async with await listen(UnixAddress(str(path))):
        await first.aclose()
        assert path.is_socket()


@trio_test
async def test_where_no_socket_can_be_made(tmp_path: Path) -> None:
    assert "cannot be opened" in (await not_listening(UnixAddress(f"{tmp_path}/none/s"))).cause
    error = await not_listening(UnixAddress("/proc/self/s"))
    assert "choose a path" in error.remedy


@trio_test
async def test_a_locked_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOCK_PATIENCE", 0.1)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert "holds a lock" in (await not_listening(UnixAddress(f"{tmp_path}/s"))).cause
    finally:
        os.close(fd)


@trio_test
async def test_what_cannot_listen() -> None:
    for text in ("fd:3", "firecracker-connect:/s:1"):
        assert "cannot listen" in (await not_listening(Address.parse(text))).cause


@pytest.mark.parametrize(
    ("code", "raised"),
    [(errno.EMFILE, OutOfResources), (errno.ENOMEM, OutOfResources), (errno.EINVAL, OSError)],
)
def test_errors_of_accept(tmp_path: Path, code: int, raised: type[Exception]) -> None:
    class Failing(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            raise OSError(code, os.strerror(code))

    async def main() -> None:
        async with await listen(UnixAddress(f"{tmp_path}/s")) as listener:
            real = listener._socket
            listener._socket = Failing(fileno=os.dup(real.fileno()))
            try:
                async with await connect(UnixAddress(f"{tmp_path}/s"), deadline=0):
                    with pytest.raises(raised):
                        await listener.accept()
            finally:
                listener._socket.close()
                listener._socket = real

    trio.run(main)


# ---- vsock ----


def vsock_or_skip() -> None:
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    except OSError:
        pytest.skip("this kernel does not know AF_VSOCK")


@trio_test
async def test_one_listener_for_a_vsock_port() -> None:
    vsock_or_skip()
    address = Address.parse("vsock:any:50123")
    async with await listen(address):
        for text in ("vsock:any:50123", "vsock-listen:50123"):
            assert "another process listens on vsock port 50123" in (await not_listening(Address.parse(text))).cause
    async with await listen(Address.parse("vsock-listen:50123")):
        pass


@trio_test
async def test_a_cid_that_is_not_ours() -> None:
    vsock_or_skip()
    error = await not_listening(Address.parse("vsock:77777:50124"))
    assert "CID 77777 is not this machine's" in error.cause and "vsock:any:50124" in error.remedy


@trio_test
async def test_nobody_dials_a_vsock_port() -> None:
    vsock_or_skip()
    from fusepipe.transport import ConnectError

    with trio.fail_after(10), pytest.raises(ConnectError, match="nobody connected within"):
        await connect(Address.parse("vsock-listen:50125"), deadline=0.1)
