"""A C program of many files with a configure script, built in parallel, run, and built again."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.workload.jobs import Context, check

CONFIGURE = """#!/bin/sh
# Finds out what the compiler can do and writes config.h and Makefile, as configure scripts do.
set -eu
: "${CC:=cc}"
try() {
    printf 'checking for %s... ' "$1"
    printf '%s\\n' "$2" > conftest.c
    if $CC -o conftest conftest.c 2> conftest.log && ./conftest; then
        echo yes
        echo "#define HAVE_$1 1" >> config.h.new
    else
        echo no
        echo "/* #undef HAVE_$1 */" >> config.h.new
    fi
    rm -f conftest conftest.c conftest.log
}
rm -f config.h.new
try STDINT_H '#include <stdint.h>
int main(void) { return sizeof(uint64_t) != 8; }'
try MMAP '#include <sys/mman.h>
int main(void) { return MAP_SHARED == 0; }'
try NO_SUCH_HEADER '#include <no/such/header.h>
int main(void) { return 0; }'
mv config.h.new config.h
sed "s|@CC@|$CC|" Makefile.in > Makefile
echo configured
"""

MAKEFILE = """CC = @CC@
OBJECTS := $(patsubst %.c,%.o,$(wildcard *.c))
program: libparts.a main.o
	$(CC) -o $@ main.o -L. -lparts
libparts.a: $(filter-out main.o,$(OBJECTS))
	rm -f $@
	ar rcs $@ $^
%.o: %.c config.h parts.h
	$(CC) -O0 -MMD -c -o $@ $<
clean:
	rm -f *.o *.d *.a program
-include $(wildcard *.d)
"""


def make_program(directory: Path, count: int) -> int:
    """Write a program of `count` C files; returns the number that it must print."""
    directory.mkdir()
    (directory / "configure").write_text(CONFIGURE)
    (directory / "configure").chmod(0o755)
    (directory / "Makefile.in").write_text(MAKEFILE)
    parts = range(count - 1)
    declarations = "".join(f"int part{i}(int);\n" for i in parts)
    (directory / "parts.h").write_text(f'#include "config.h"\n{declarations}')
    for i in parts:
        lines = "".join(f"    x = (x * {i + k + 3} + {k}) % 65521;\n" for k in range(20))
        (directory / f"part{i}.c").write_text(f'#include "parts.h"\nint part{i}(int x) {{\n{lines}    return x;\n}}\n')
    calls = "".join(f"    x = part{i}(x);\n" for i in parts)
    (directory / "main.c").write_text(
        '#include <stdio.h>\n#include "parts.h"\n#if !defined(HAVE_STDINT_H) || defined(HAVE_NO_SUCH_HEADER)\n#error'
        f' configure was wrong\n#endif\nint main(void) {{\n    int x = 1;\n{calls}    printf("%d\\n", x);\n'
        "    return 0;\n}\n"
    )
    x = 1
    for i in parts:
        for k in range(20):
            x = (x * (i + k + 3) + k) % 65521
    return x


def run(job: Context) -> dict[str, object]:
    """configure, make -j4, run; make again does nothing; a touched file is compiled alone."""
    directory = job.work / "program"
    expected = make_program(directory, job.size.sources)
    job.run("./configure", cwd=directory)
    job.run("make", "-j4", cwd=directory)
    found = job.run("./program", cwd=directory).strip()
    check(found == str(expected), f"the program printed {found} instead of {expected}")
    check("up to date" in job.run("make", "-j4", cwd=directory), "make found something to do in a finished build")
    later = time.time() + 2
    os.utime(directory / "part0.c", (later, later))
    compiled = job.run("make", "-j4", cwd=directory).count(" -c ")
    check(compiled == 1, f"{compiled} files were compiled after one was touched")
    job.run("make", "clean", cwd=directory)
    left = [name for name in os.listdir(directory) if name.endswith((".o", ".a", ".d"))]
    check(not left, f"make clean left {left[:3]}")
    return {"files": job.size.sources}
