"""Addresses: their texts, both ways, and what is said about wrong ones."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusepipe.transport import (
    Address,
    AddressError,
    FdAddress,
    FirecrackerAddress,
    FirecrackerConnectAddress,
    UnixAddress,
    VsockAddress,
    VsockListenAddress,
    parse_target,
)

# Everything that a command line can hold: any bytes but NUL, decoded as Python decodes arguments.
paths = st.binary(min_size=1, max_size=80).filter(lambda raw: b"\0" not in raw).map(os.fsdecode)
ports = st.integers(1, 0xFFFFFFFE)
addresses = st.one_of(
    st.builds(UnixAddress, paths),
    st.builds(FdAddress, st.integers(0, 0x7FFFFFFF)),
    st.builds(VsockAddress, st.integers(0, 0xFFFFFFFF), ports),
    st.builds(VsockListenAddress, ports),
    st.builds(FirecrackerAddress, paths, ports),
    st.builds(FirecrackerConnectAddress, paths, ports),
)


@given(addresses)
def test_text_leads_back_to_the_address(address: Address) -> None:
    assert Address.parse(str(address)) == address


@given(addresses, st.text(min_size=1, max_size=20).filter(lambda name: "/" not in name))
def test_a_target_is_an_address_and_what_follows_the_last_slash(address: Address, name: str) -> None:
    assert parse_target(f"{address}/{name}") == (address, name)


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_an_error_that_can_be_printed(text: str) -> None:
    try:
        address = Address.parse(text)
    except AddressError as error:
        assert str(error)
    else:
        assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/a:b.sock", UnixAddress("/run/a:b.sock")),
        ("unix:relative.sock", UnixAddress("relative.sock")),
        ("fd:0", FdAddress(0)),
        ("vsock:host:5000", VsockAddress(2, 5000)),
        ("vsock:2:5000", VsockAddress(2, 5000)),
        ("vsock:any:5000", VsockAddress(0xFFFFFFFF, 5000)),
        ("vsock:local:5000", VsockAddress(1, 5000)),
        ("vsock-listen:5000", VsockListenAddress(5000)),
        ("firecracker:/run/v:1.sock:52", FirecrackerAddress("/run/v:1.sock", 52)),
        ("firecracker-connect:/run/v.sock:52", FirecrackerConnectAddress("/run/v.sock", 52)),
    ],
)
def test_each_kind(text: str, address: Address) -> None:
    assert Address.parse(text) == address


def test_the_host_listens_beside_the_vmms_socket() -> None:
    assert FirecrackerAddress("/run/v.sock", 52).socket_path == "/run/v.sock_52"


@pytest.mark.parametrize(
    ("text", "crc"),
    [
        ("unix:/s", False),
        ("fd:3", False),
        ("vsock:3:1", True),
        ("vsock-listen:1", True),
        ("firecracker:/s:1", True),
        ("firecracker-connect:/s:1", True),
    ],
)
def test_body_crc_where_a_guests_kernel_carries_the_bytes(text: str, crc: bool) -> None:
    assert Address.parse(text).wants_body_crc is crc


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["empty", "unix:PATH"]),
        ("/run/s.sock", ["did you mean unix:/run/s.sock"]),
        ("run", ["does not begin with a kind", "vsock:CID:PORT"]),
        ("tcp:host:1", ["no kind of address 'tcp'", "unix:PATH"]),
        ("unix:", ["path is missing", "unix:/run/fusepipe.sock"]),
        ("unix:a\0b", ["NUL"]),
        ("unix:/" + "x" * 107, ["108 bytes", "107"]),
        ("unix:\ud800", ["cannot be encoded"]),
        ("fd:", ["file descriptor is missing", "fd:3"]),
        ("fd:-1", ["'-1' is not a number"]),
        ("fd:99999999999", ["not a file descriptor's number"]),
        ("vsock:", ["CID is missing"]),
        ("vsock:host", ["port is missing", "vsock:host:5000"]),
        ("vsock:guest:5000", ["CID 'guest' is not a number"]),
        ("vsock:4294967296:1", ["CID 4294967296 is not from 0"]),
        ("vsock:2:0", ["port 0 is not from 1"]),
        ("vsock:2:4294967295", ["port 4294967295 is not"]),
        ("vsock:2: 5", ["' 5' is not a number"]),
        ("vsock:2:\u0665", ["is not a number"]),
        ("vsock-listen:x", ["port 'x' is not a number", "vsock-listen:5000"]),
        ("firecracker:/s", ["port is missing"]),
        ("firecracker:5000", ["path is missing"]),
        ("firecracker::5000", ["path is missing"]),
        ("firecracker:/s:", ["port is missing"]),
        ("firecracker:/" + "x" * 103 + ":5000", ["109 bytes"]),
        ("firecracker-connect:/s:0", ["port 0", "firecracker-connect:PATH:PORT"]),
    ],
)
def test_errors_name_the_wrong_part(text: str, parts: list[str]) -> None:
    with pytest.raises(AddressError) as caught:
        Address.parse(text)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [("data", "name is missing"), ("unix:/run/s/", "ends with a slash"), ("/data", "address is empty")],
)
def test_wrong_targets(text: str, part: str) -> None:
    with pytest.raises(AddressError, match=part):
        parse_target(text)
