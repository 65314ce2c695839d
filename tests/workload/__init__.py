"""What people do in a directory, as one script: clone, build, install, query, archive, copy, and write with checks.

    python -m tests.workload --size full --bind

runs it on a directory mounted by `fusepipe bind`; `--help` says what else it can do.
"""
