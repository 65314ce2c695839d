"""The target in C: fuzz_native.c, compiled by clang with libFuzzer and the sanitizers for addresses and behaviour."""

import json
import shutil
import subprocess
import tomllib
from pathlib import Path

from fusepipe.wire.messages import ROWS, Field

ROOT = Path(__file__).resolve().parents[2]
WIRE = ROOT / "fusepipe" / "wire"
UNKNOWN = {"[text]", "text", "id", "secret"}
"""Types that no native code reads or writes (protocol/generate_c.py)."""


def messages() -> list[tuple[str, tuple[Field, ...]]]:
    """Every message that C reads and writes, by the name of its functions."""
    made = []
    for op, row in ROWS.items():
        for kind, fields in (("request", row.request_fields), ("reply", row.reply_fields)):
            if not any(field.type in UNKNOWN for field in fields):
                made.append((f"{op.name.lower()}_{kind}", fields))
    return made


def source() -> str:
    """The program's text."""
    table = tomllib.loads((ROOT / "protocol" / "ops.toml").read_text())
    attached = {f"{op['name']}_reply" for op in table["op"] if "attached" in op}
    cases = []
    for number, (name, fields) in enumerate(messages()):
        members = fields or name in attached
        struct, pointer = (f"struct wire_{name} m, n; ", "&m, &n") if members else ("", "")
        one, two = (f", {part}" for part in pointer.split(", ")) if members else ("", "")
        cases.append(
            f"\tcase {number}: {{ {struct}if (!wire_get_{name}(&reader, head.fields{one})) break; "
            f"end = wire_put_{name}(first, head.slot, head.seq{one}); "
            f"head = begin(&reader, first, (size_t)(end - first)); "
            f"if (!wire_get_{name}(&reader, head.fields{two})) abort(); "
            f"again = wire_put_{name}(second, head.slot, head.seq{two}); same(first, end, second, again); break; }}"
        )
    return (Path(__file__).with_name("fuzz_native.c")).read_text().replace("@CASES@", "\n".join(cases))


def compiler() -> str:
    """The clang that is installed.  Raises FileNotFoundError."""
    for name in ("clang", *(f"clang-{version}" for version in range(21, 13, -1))):
        if found := shutil.which(name):
            return found
    raise FileNotFoundError("there is no clang: install Debian's packages clang and libclang-rt-dev")


def build(folder: Path) -> Path:
    """The program, in this folder."""
    text, program = folder / "fuzz_native.c", folder / "fuzz_native"
    text.write_text(source())
    flags = ["-std=gnu11", "-g", "-O1", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run([compiler(), *flags, f"-I{WIRE}", "-o", program, text, WIRE / "native.c"], check=True)
    return program


def corpus() -> list[bytes]:
    """The golden headers, and every prefix."""
    vectors = ROOT / "protocol" / "vectors"
    numbers = {name: number for number, (name, _) in enumerate(messages())}
    made = []
    for vector in json.loads((vectors / "messages.json").read_text())["vectors"]:
        number = numbers.get(f"{vector['op']}_{vector['kind']}")
        if number is not None:
            made.append(bytes([number]) + bytes.fromhex(vector["header"]))
    for vector in json.loads((vectors / "frames.json").read_text())["vectors"]:
        made.append(b"\xff" + bytes.fromhex(vector["bytes"])[:16])
    return made
