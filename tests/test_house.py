"""The house: who may import whom, and that every operation is there from the specification to the server's handler."""

import ast
import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from fusepipe.wire import ROWS, Op

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "fusepipe"
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))

MAY_IMPORT = {
    "wire": set(),
    "transport": set(),
    "syscalls": set(),
    "device": set(),
    "server": {"wire", "transport", "syscalls", "log"},
    "client": {"device", "wire", "transport", "log"},
    "cli": {"client", "server", "device", "wire", "transport", "syscalls", "log"},
    "posix": set(),
    "log": set(),
    "__init__": set(),
    "__main__": {"cli"},
}
"""The parts of the house, and which other parts each may use.  Client and server never meet below the command line."""

OTHERS = {
    "wire": {"msgpack"},
    "transport": {"trio"},
    "syscalls": {"cffi"},
    "device": {"cffi", "pyfuse3"},
    "server": {"trio", "msgpack"},
    "client": {"trio", "outcome", "pyfuse3"},
    "cli": {"click", "trio", "sdnotify", "pyfuse3"},
    "posix": {"click", "junitparser", "rich", "tap"},
    "log": {"structlog"},
    "__init__": set(),
    "__main__": set(),
}
"""The packages of other people that each part may use."""

NO_INPUT_OUTPUT = {"socket", "os", "io", "select", "selectors", "asyncio", "subprocess", "time", "threading", "random"}
"""What the sans-IO protocol does without: it is handed bytes, clocks, randomness and locks."""


def part_of(path: Path) -> str:
    """The part of the house that a file belongs to."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """The modules that a file imports, wherever in it, with their lines; also by import_module("...")."""
    inside = path.relative_to(REPOSITORY).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, level=0, names=names):
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in names)
            case ast.ImportFrom(module=module, level=level, names=names):
                base = ".".join([*inside[:-level], *([module] if module else [])])
                yield from ((node.lineno, f"{base}.{alias.name}") for alias in names)
            case ast.Call(
                func=ast.Name(id="import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                yield node.lineno, module


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports(path: Path) -> None:
    part = part_of(path)
    wrong = []
    for line, module in imports(path):
        top, *below = module.split(".")
        if top == "fusepipe":
            other = below[0] if below else ""
            allowed = other in {part, "", "__version__"} or other in MAY_IMPORT[part]
        elif top in sys.stdlib_module_names:
            allowed = not (part == "wire" and top in NO_INPUT_OUTPUT and module != "threading.Lock")
        else:
            allowed = top in OTHERS[part]
        if not allowed:
            wrong.append(f"{path.relative_to(REPOSITORY)}:{line} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_every_part_has_its_rule() -> None:
    assert {part_of(path) for path in MODULES} == MAY_IMPORT.keys() == OTHERS.keys()


# ---- every operation is everywhere ----------------------------------------------------------------------------------

SLOT_OPS = [op for op in Op if ROWS[op].channel != "control"]
CONTROL_OPS = [op for op in Op if ROWS[op].channel == "control"]


@cache
def names_used(folder: str, *, called: bool) -> frozenset[str]:
    """The names that the files of a folder or file use; with `called` only those that are called."""
    top = PACKAGE / folder
    names = set()
    for path in [top] if top.is_file() else top.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if called and isinstance(node, ast.Call):
                node = node.func
            elif called:
                continue
            if isinstance(node, ast.Name):
                names.add(node.id)
            elif isinstance(node, ast.Attribute):
                names.add(node.attr)
    return frozenset(names)


@pytest.mark.parametrize("op", Op, ids=lambda op: op.name)
def test_specification_explains(op: Op) -> None:
    headings = re.findall(r"^#+ (.*)$", (REPOSITORY / "protocol/SPEC.md").read_text(), re.M)
    assert any(re.search(rf"\b{op.name}\b", heading) for heading in headings), f"no heading of SPEC.md names {op.name}"


@pytest.mark.parametrize("op", Op, ids=lambda op: op.name)
def test_vectors_show(op: Op) -> None:
    vectors = json.loads((REPOSITORY / "protocol/vectors/messages.json").read_text())["vectors"]
    kinds = {vector["kind"] for vector in vectors if vector["op"] == op.name.lower()}
    assert {"request", "reply"} <= kinds


@pytest.mark.parametrize("op", SLOT_OPS, ids=lambda op: op.name)
def test_client_sends(op: Op) -> None:
    assert ROWS[op].request.__name__ in names_used("client", called=True)


@pytest.mark.parametrize("op", SLOT_OPS, ids=lambda op: op.name)
def test_server_handles(op: Op) -> None:
    from fusepipe.server.handlers import HANDLERS

    assert callable(HANDLERS[op])


@pytest.mark.parametrize("op", CONTROL_OPS, ids=lambda op: op.name)
def test_both_ends_of_the_session_know(op: Op) -> None:
    request = ROWS[op].request.__name__
    assert request in names_used("wire/client_session.py", called=True) | names_used("client", called=True)
    reply = ROWS[op].reply.__name__
    assert {request, reply, op.name} & names_used("wire/server_session.py", called=False)


def test_no_handler_without_an_operation() -> None:
    from fusepipe.server.handlers import HANDLERS

    assert HANDLERS.keys() == set(SLOT_OPS)
