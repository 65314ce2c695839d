"""Fuzzes for as long as one wants.

    python -m tests.fuzz wire --seconds 3600
    python -m tests.fuzz requests --seconds 3600 --keep
    python -m tests.fuzz native --seconds 3600

`--keep` adds what led into code that nothing else led into to tests/fuzz/corpus/.  A failure prints the input's file,
which stays in the current directory; `python -m tests.fuzz TARGET --input FILE` runs it again.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.fuzz import running


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", choices=running.TARGETS)
    parser.add_argument("--seconds", type=int, default=60, help="how long (default: 60)")
    parser.add_argument("--seed", type=int, default=1, help="of the random choices (default: 1)")
    parser.add_argument("--keep", action="store_true", help="add to the corpus what led further")
    parser.add_argument("--input", type=Path, help="run this input alone")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = running.Fuzzer(options.target, Path(folder))
        if options.input is not None:
            return fuzzer.run(str(options.input.absolute())).returncode
        code = fuzzer.fuzz(options.seconds, options.seed, artifacts=Path.cwd()).returncode
        if options.keep and not code:
            print(f"{fuzzer.keep()} inputs are kept in {running.kept(options.target)}")
        return code


if __name__ == "__main__":
    sys.exit(main())
