"""`python -m tests.workload`."""

from tests.workload.script import main

if __name__ == "__main__":
    raise SystemExit(main())
