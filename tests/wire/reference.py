"""A second, plain writer and reader of the protocol, made from protocol/SPEC.md and protocol/ops.toml alone.

It shares nothing with fusepipe/wire, so that both can be held against each other and against the golden vectors.
"""

import json
import struct
import tomllib
import zlib
from pathlib import Path
from typing import Any

PROTOCOL = Path(__file__).resolve().parents[2] / "protocol"
VECTORS = PROTOCOL / "vectors"
TABLE = tomllib.loads((PROTOCOL / "ops.toml").read_text())
OPS: dict[str, dict[str, Any]] = {row["name"]: row for row in TABLE["op"] if row.get("status") != "reserved"}
STRUCTS: dict[str, list[list[Any]]] = {row["name"]: row["fields"] for row in TABLE["struct"]}


def vectors(name: str) -> list[dict[str, Any]]:
    """The vectors of one file."""
    loaded: list[dict[str, Any]] = json.loads((VECTORS / f"{name}.json").read_text())["vectors"]
    return loaded


# ---- msgpack, shortest forms ----------------------------------------------------------------------------------------


def pack(value: Any) -> bytes:
    """msgpack of nil, bools, integers, bytes, text and lists of them."""
    if value is None:
        return b"\xc0"
    if value is True or value is False:
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return _pack_int(value)
    if isinstance(value, bytes):
        return _head(len(value), [(0xFF, b"\xc4", ">B"), (0xFFFF, b"\xc5", ">H"), (1 << 32, b"\xc6", ">I")]) + value
    if isinstance(value, str):
        raw = value.encode()
        if len(raw) < 32:
            return bytes([0xA0 | len(raw)]) + raw
        return _head(len(raw), [(0xFF, b"\xd9", ">B"), (0xFFFF, b"\xda", ">H"), (1 << 32, b"\xdb", ">I")]) + raw
    if len(value) < 16:
        head = bytes([0x90 | len(value)])
    else:
        head = _head(len(value), [(0xFFFF, b"\xdc", ">H"), (1 << 32, b"\xdd", ">I")])
    return head + b"".join(map(pack, value))


def _pack_int(value: int) -> bytes:
    if -32 <= value < 128:
        return struct.pack(">b", value)
    if value >= 0:
        forms = [(0xFF, b"\xcc", ">B"), (0xFFFF, b"\xcd", ">H"), (0xFFFF_FFFF, b"\xce", ">I"), (1 << 64, b"\xcf", ">Q")]
        return _head(value, forms)
    for low, code, form in ((-(1 << 7), b"\xd0", ">b"), (-(1 << 15), b"\xd1", ">h"), (-(1 << 31), b"\xd2", ">i")):
        if value >= low:
            return code + struct.pack(form, value)
    return b"\xd3" + struct.pack(">q", value)


def _head(value: int, forms: list[tuple[int, bytes, str]]) -> bytes:
    for limit, code, form in forms:
        if value <= limit:
            return code + struct.pack(form, value)
    raise AssertionError(value)


# ---- fields ---------------------------------------------------------------------------------------------------------


def to_wire(kind: str, value: Any) -> Any:
    """What is packed for a field, from its value as Python has it."""
    if kind in STRUCTS:
        return fields_to_wire(STRUCTS[kind], value)
    if kind == "[u32]":
        return b"".join(struct.pack("<I", number) for number in value)
    if kind in ("[u64]", "[u64 u64]"):
        return b"".join(struct.pack("<Q", number) for number in value)
    if kind == "[xattr]":
        return b"".join(name + b"\0" for name in value)
    return list(value) if kind == "[text]" else value


def fields_to_wire(fields: list[list[Any]], values: Any) -> list[Any]:
    return [to_wire(field[1], value) for field, value in zip(fields, values, strict=True)]


def from_json(kind: str, value: Any) -> Any:
    """A field's value as Python has it, from how the vectors write it."""
    if kind in STRUCTS:
        return tuple(from_json(field[1], item) for field, item in zip(STRUCTS[kind], value, strict=True))
    if kind in ("[u32]", "[u64]", "[u64 u64]"):
        return tuple(int(number) for number in value)
    if kind == "[xattr]":
        return tuple(bytes.fromhex(name) for name in value)
    if kind == "[text]":
        return tuple(value)
    if kind in ("bool", "text"):
        return value
    return int(value) if kind in ("u32", "u64", "i64") else bytes.fromhex(value)


def fields_from_json(fields: list[list[Any]], values: dict[str, Any]) -> tuple[Any, ...]:
    assert [field[0] for field in fields] == list(values), "a vector names the fields of the table, in order"
    return tuple(from_json(field[1], values[field[0]]) for field in fields)


# ---- headers and frames ---------------------------------------------------------------------------------------------


def request(name: str, slot: int | None, seq: int, values: Any) -> bytes:
    row = OPS[name]
    return pack([slot, seq, row["number"], *fields_to_wire(row["request"], values)])


def reply(name: str, slot: int | None, seq: int, values: Any) -> bytes:
    return pack([slot, seq, 0, *fields_to_wire(OPS[name]["reply"], values)])


def frame(header: bytes, payload: bytes = b"", number: int = 0, *, checksum: bool) -> bytes:
    prefix = struct.pack("<III", len(header), len(payload), number)
    body = header + payload
    tail = struct.pack("<I", zlib.crc32(body)) if checksum else b""
    return prefix + struct.pack("<I", zlib.crc32(prefix)) + body + tail
