"""A real Linux guest, booted by QEMU, that mounts what fusepipe serves on the host over vsock.

`python -m tests.vm prepare` makes what is needed and keeps it, `pytest tests/vm` runs the tests, and
`python -m tests.vm run COMMAND...` runs one command in a guest, by hand.
"""
