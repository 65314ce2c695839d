"""The table of messages, its spec, its vectors and the code that is generated from it belong together."""

import ast
import re
import subprocess
import sys
import tomllib
from typing import Any

import pytest

from fusepipe.wire import MAJOR, MAX_FIRST_HEADER, MAX_HEADER, MAX_SLOTS, MINOR, ROWS, ErrorCode, Op
from fusepipe.wire.codec import MAX_ARRAY, MAX_ERROR_TEXT, PATH_MAX, XATTR_NAME_MAX
from fusepipe.wire.directory import KERNEL_RECORD, RECORD
from fusepipe.wire.limits import _LOWEST
from fusepipe.wire.messages import NOTIFICATION_MIN, RESERVED
from fusepipe.wire.server_session import MAX_WAITING

from . import reference

SPEC = (reference.PROTOCOL / "SPEC.md").read_text()
WIRE = sorted((reference.PROTOCOL.parent / "fusepipe" / "wire").glob("*.py"))
SECTIONS = dict(re.findall(r"^### (\w+ \(\d+\))\n(.*?)(?=^##)", SPEC, re.MULTILINE | re.DOTALL))
MESSAGES = reference.vectors("messages")


def test_the_generated_messages_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(reference.PROTOCOL / "generate.py"), "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", reference.OPS)
def test_every_operation_has_a_section_that_names_its_fields(name: str) -> None:
    row = reference.OPS[name]
    section = SECTIONS[f"{name.upper()} ({row['number']})"]
    fields = [field[0] for field in (*row["request"], *row["reply"])]
    assert [field for field in fields if f"`{field}`" not in section] == []


@pytest.mark.parametrize("name", reference.OPS)
def test_every_operation_has_vectors(name: str) -> None:
    row = reference.OPS[name]
    kinds = [vector["kind"] for vector in MESSAGES if vector["op"] == name]
    assert {"request", "reply"} <= set(kinds)
    assert ("error" in kinds) == (row["channel"] != "control")


def test_no_section_and_no_vector_without_an_operation() -> None:
    expected = {f"{name.upper()} ({row['number']})" for name, row in reference.OPS.items()}
    assert set(SECTIONS) == expected
    assert {vector["op"] for vector in MESSAGES} == set(reference.OPS)


def test_reserved_rows_are_numbers_and_names() -> None:
    table = tomllib.loads((reference.PROTOCOL / "ops.toml").read_text())
    reserved = [row for row in (*table["op"], *table["notification"]) if row.get("status") == "reserved"]
    section = SPEC[SPEC.index("### Reserved") : SPEC.index("## Directory pages")]
    for row in reserved:
        assert set(row) == {"number", "name", "status"}
        assert f"`{row['name']}` ({row['number']})" in " ".join(section.split())
    assert {row["number"] for row in table["op"] if row in reserved} == RESERVED
    assert not RESERVED & set(ROWS)
    assert min(row["number"] for row in table["notification"]) == NOTIFICATION_MIN == 4096
    assert len(re.findall(r"`\w+` \(\d+\)", section)) == len(reserved)


def test_the_table_is_sound() -> None:
    table = tomllib.loads((reference.PROTOCOL / "ops.toml").read_text())
    numbers = [row["number"] for row in table["op"]]
    assert len(set(numbers)) == len(numbers)
    assert numbers == sorted(numbers)
    for name, row in reference.OPS.items():
        assert row["channel"] in ("control", "slot", "cleanup", "lock")
        assert row.get("payload", "none") in ("none", "request", "reply")
        assert row["summary"].endswith("."), name
        for fields in (row["request"], row["reply"]):
            since = [field[2] if len(field) > 2 else 0 for field in fields]
            assert since == sorted(since), "later fields stand at the end"
            assert max(since, default=0) <= table["minor"]
        made = ROWS[Op(row["number"])]
        assert (made.op.name.lower(), made.channel, made.payload) == (name, row["channel"], row.get("payload", "none"))
        assert made.repeatable is row.get("repeatable", False)
        assert [field.name for field in made.request_fields] == list(made.request._fields)  # type: ignore[attr-defined]  # named tuples
        assert [field.name for field in made.reply_fields] == list(made.reply._fields)  # type: ignore[attr-defined]  # as above
    changing = {"hello", "lookup", "open", "opendir", "readdir", "create", "fsync", "fsyncdir", "flush", "write"}
    changing |= {"setlk", "setlkw", "flock", "flockw", "release"}
    assert not [name for name in changing if reference.OPS[name].get("repeatable")]


def test_numbers_in_the_spec_are_those_of_the_code() -> None:
    spec = " ".join(SPEC.split())
    assert f"version {MAJOR}.{MINOR}" in spec
    assert f"1 to {MAX_HEADER:,} bytes, the header of a first frame 1 to {MAX_FIRST_HEADER:,}" in spec
    assert f"All slots together are at most {MAX_SLOTS}" in spec
    assert f"limit that to {MAX_WAITING}" in spec
    assert f"more than {MAX_ARRAY} elements" in spec
    assert f"at most {MAX_ERROR_TEXT} characters" in spec
    assert f"1 to {XATTR_NAME_MAX} bytes, no NUL" in spec
    assert f"1 to {PATH_MAX} bytes, no NUL" in spec
    assert f"Each has {RECORD.size} bytes" in spec
    assert f"counts {KERNEL_RECORD} bytes plus" in spec
    for name, lowest in _LOWEST.items():
        assert f"| `{name}` | {lowest} |" in spec
    for code in ErrorCode:
        assert f"| {int(code)} | {code.name} |" in spec
    types = {field[1] for row in reference.OPS.values() for field in (*row["request"], *row["reply"])}
    assert not [name for name in types - set(reference.STRUCTS) if f"| `{name}` |" not in spec]


def test_the_records_of_the_spec_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (\d+) \| (u32|u64|i64) \| (.*?) \|$", SPEC, re.MULTILINE)
    letters = "".join({"u32": "I", "u64": "Q", "i64": "q"}[kind] for _, kind, _ in rows)
    assert RECORD.format == "<" + letters
    at = 0
    for offset, kind, _ in rows:
        assert int(offset) == at
        at += 4 if kind == "u32" else 8
    assert at == RECORD.size


def test_the_walk_through_is_in_the_vectors() -> None:
    section = SPEC[SPEC.index("## Walk-through") : SPEC.index("## Vectors")]
    blocks = re.findall(r"```\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 5
    frames = [step["frame"] for step in reference.vectors("conversations")[0]["steps"]]
    for block in blocks:
        shown = "".join("".join(re.findall(r"^[0-9a-f ]{1,38}", line)).replace(" ", "") for line in block.splitlines())
        assert shown in frames, block


def test_the_spec_has_no_dead_links() -> None:
    anchors = {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", SPEC, re.MULTILINE)
    }
    assert [link for link in re.findall(r"\]\(#([^)]*)\)", SPEC) if link not in anchors] == []


# ---- what the wire may import ---------------------------------------------------------------------------------------

ALLOWED = {
    "builtins", "collections", "contextlib", "dataclasses", "enum", "functools", "hmac", "msgpack", "operator",
    "struct", "threading", "typing", "zlib",
}  # fmt: skip
"""Modules of the standard library without input or output, and msgpack."""


def imported(tree: ast.AST) -> set[str]:
    """The first parts of the names of the modules that are imported; "." for the package itself."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= 1, "nothing from outside the package"
            names.add("." if node.level else str(node.module).split(".")[0])
    return names


@pytest.mark.parametrize("path", WIRE, ids=lambda path: str(path.name))
def test_the_wire_does_no_input_and_no_output(path: Any) -> None:
    tree = ast.parse(path.read_text())
    assert imported(tree) - ALLOWED - {"."} == set()
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & {"open", "print", "input", "exec", "eval", "__import__"}


def test_importing_the_wire_loads_nothing_of_the_rest() -> None:
    script = (
        "import sys, fusepipe.wire\n"
        "heavy = {'trio', 'pyfuse3', 'structlog', 'cffi', 'click'} & set(sys.modules)\n"
        "ours = [m for m in sys.modules if m.startswith('fusepipe.') and not m.startswith('fusepipe.wire')]\n"
        "print(sorted(heavy), ours)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=reference.PROTOCOL.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "[] []\n"
