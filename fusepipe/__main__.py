"""`python -m fusepipe` is the command `fusepipe`."""

from fusepipe.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
