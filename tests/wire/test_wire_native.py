"""The C codec of fusepipe/wire/native.h, by a small program under the address and undefined-behaviour sanitizers."""

import random
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from . import reference

WIRE = reference.PROTOCOL.parent / "fusepipe" / "wire"
UNKNOWN = {"[text]", "text", "id", "secret"}
"""Types that no native code reads or writes."""

PROGRAM = """
#include "native_messages.h"

#include <stdio.h>
#include <stdlib.h>

static unsigned char *given;
static size_t given_size;

static void show(const unsigned char *data, size_t size)
{
	for (size_t i = 0; i < size; i++)
		printf("%02x", data[i]);
	printf("\\n");
	fflush(stdout);
}

static void again(const char *what)
{
	unsigned char *to = malloc(2 * given_size + 64), *end = NULL;
	struct wire_reader place = { given, given + given_size, false }, *reader = &place;
	const struct wire_head head = wire_take_head(reader);
	(void)what;
@CASES@
	if (end)
		show(to, end - to);
	else
		printf("bad\\n"), fflush(stdout);
	free(to);
}

int main(void)
{
	static char what[64];
	static unsigned size;

	while (scanf("%63s %u", what, &size) == 2) {
		given_size = size;
		given = malloc(size); /* exactly as long, so that the sanitizer sees a read behind its end */
		for (unsigned i = 0; i < size; i++) {
			unsigned byte;
			if (scanf("%2x", &byte) != 1)
				return 1;
			given[i] = (unsigned char)byte;
		}
		if (!strcmp(what, "crc"))
			printf("%u\\n", wire_crc32(0, given, size)), fflush(stdout);
		else
			again(what);
		free(given);
	}
	return 0;
}
"""


def _cases() -> Iterator[tuple[str, str]]:
    """(message, C code that reads and writes it)."""
    for name, row in reference.OPS.items():
        for kind in ("request", "reply"):
            if any(field[1] in UNKNOWN for field in row[kind]):
                continue
            what = f"{name}_{kind}"
            has_members = row[kind] or (kind == "reply" and row.get("attached"))
            struct, pointer = (f"struct wire_{what} m; ", ", &m") if has_members else ("", "")
            yield (
                what,
                (
                    f'	if (!strcmp(what, "{what}")) {{ {struct}'
                    f"if (wire_get_{what}(reader, head.fields{pointer})) "
                    f"end = wire_put_{what}(to, head.slot, head.seq{pointer}); }}"
                ),
            )


NATIVE = dict(_cases())
VECTORS = [
    vector
    for vector in reference.vectors("messages")
    if vector["slot"] is not None and f"{vector['op']}_{vector['kind']}" in NATIVE
]


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, bytes], str]]:
    """codec(message, header): the header as C wrote it after C has read it, in hex; "bad" where it was refused."""
    folder = tmp_path_factory.mktemp("native")
    source = folder / "codec.c"
    source.write_text(PROGRAM.replace("@CASES@", "\n".join(NATIVE.values())))
    flags = [
        "-std=gnu11",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover",
    ]
    program = folder / "codec"
    subprocess.run(["cc", *flags, f"-I{WIRE}", "-o", program, source, Path(WIRE, "native.c")], check=True)
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout

        def ask(what: str, header: bytes) -> str:
            assert process.stdin and process.stdout
            process.stdin.write(f"{what} {len(header)} {header.hex()}\n")
            process.stdin.flush()
            line = process.stdout.readline()
            assert line, "the codec has died"
            return line.strip()

        yield ask
        process.stdin.close()
        assert process.wait(30) == 0


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: f"{vector['op']}-{vector['kind']}-{vector['seq']}")
def test_a_golden_header_is_read_and_written_as_it_was(codec: Callable[[str, bytes], str], vector: Any) -> None:
    header = bytes.fromhex(vector["header"])
    assert codec(f"{vector['op']}_{vector['kind']}", header) == vector["header"]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: f"{vector['op']}-{vector['kind']}-{vector['seq']}")
def test_a_header_that_is_cut_or_too_long_is_refused(codec: Callable[[str, bytes], str], vector: Any) -> None:
    header = bytes.fromhex(vector["header"])
    what = f"{vector['op']}_{vector['kind']}"
    for size in range(min(len(header), 200)):
        assert codec(what, header[:size]) == "bad"
    assert codec(what, header + b"\0") == "bad"


def test_what_a_later_minor_adds_is_passed_over(codec: Callable[[str, bytes], str]) -> None:
    fields = [3, 4, 0, [5], {"a": 1}, "text", b"bytes", -7, None, True, 1 << 40, [[1], [2, [3]]]]
    header = reference.pack([field for field in fields if not isinstance(field, dict)])
    assert codec("fsync_reply", header) == reference.pack([3, 4, 0]).hex()


@pytest.mark.parametrize("op", ["unlink", "rmdir", "rename", "create"])
def test_what_is_attached_is_read_and_written(codec: Callable[[str, bytes], str], op: str) -> None:
    attr = [7, 0o40755, 2, 0, 0, 0, 4096, 4096, 8, 1, 2, -3, 4, 5, 6]
    fields = [[16, attr], 5, 2] if op == "create" else []
    for count in range(len(reference.OPS[op]["attached"]) + 1):
        header = reference.pack([3, 4, 0, *fields, *[attr] * count])
        assert codec(f"{op}_reply", header) == header.hex()
    most = reference.pack([3, 4, 0, *fields, *[attr] * count])
    assert codec(f"{op}_reply", reference.pack([3, 4, 0, *fields, *[attr] * count, None, "more"])) == most.hex()
    assert codec(f"{op}_reply", reference.pack([3, 4, 0, *fields, 1])) == "bad"


def test_the_end_of_a_directory_is_read_and_written(codec: Callable[[str, bytes], str]) -> None:
    for attached in ([], [False], [True]):
        header = reference.pack([3, 4, 0, 7, *attached])
        assert codec("readdir_reply", header) == header.hex()
    more = reference.pack([3, 4, 0, 7, True, None, "more"])
    assert codec("readdir_reply", more) == reference.pack([3, 4, 0, 7, True]).hex()
    assert codec("readdir_reply", reference.pack([3, 4, 0, 7, 1])) == "bad"


def test_every_form_of_a_number_is_read(codec: Callable[[str, bytes], str]) -> None:
    shortest = reference.pack([1, 2, 48, 5, 6, False, *([0] * (len(reference.OPS["open"]["request"]) - 3))])
    for form in ("05", "cc05", "cd0005", "ce00000005", "cf0000000000000005", "d005", "d10005", "d200000005"):
        longer = shortest[:4] + bytes.fromhex(form) + shortest[5:]
        assert codec("open_request", longer) == shortest.hex()
    for wrong in ("d0ff", "ff", "c0", "c3", "ca00000000", "c40105", "9105", "a105"):
        assert codec("open_request", shortest[:4] + bytes.fromhex(wrong) + shortest[5:]) == "bad"


def test_any_bytes_are_understood_or_refused(codec: Callable[[str, bytes], str]) -> None:
    chance = random.Random(7)
    for _ in range(3000):
        vector = chance.choice(VECTORS)
        header = bytearray.fromhex(vector["header"])
        for _ in range(chance.randint(1, 4)):
            header[chance.randrange(len(header))] = chance.randrange(256)
        codec(f"{vector['op']}_{vector['kind']}", bytes(header))


def test_the_checksum_is_that_of_zlib(codec: Callable[[str, bytes], str]) -> None:
    chance = random.Random(7)
    for size in [*range(40), 1000, 4096]:
        data = chance.randbytes(size)
        assert codec("crc", data) == str(zlib.crc32(data))
