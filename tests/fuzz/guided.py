"""Coverage-guided fuzzing in this process, which libFuzzer ends: `python -m tests.fuzz` starts it.

python -m tests.fuzz.guided TARGET [OPTION OR FOLDER OF libFuzzer]...
"""

import importlib
import sys

import atheris

TARGETS = {"wire": "tests.fuzz.fuzz_wire", "requests": "tests.fuzz.fuzz_requests"}


def main() -> None:
    with atheris.instrument_imports(include=["fusepipe"]):
        target = importlib.import_module(TARGETS[sys.argv[1]])
    refused = target.RemoteProtocolError

    def one(data: bytes) -> None:
        try:
            target.one(data)
        except refused:
            return

    if prepare := getattr(target, "prepare", None):
        prepare()
    atheris.Setup(sys.argv[:1] + sys.argv[2:], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
