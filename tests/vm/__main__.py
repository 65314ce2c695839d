"""`python -m tests.vm prepare`, `python -m tests.vm run COMMAND...` and `python -m tests.vm measure`."""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.support.program import Programs
from tests.vm import measure
from tests.vm.debian import PrepareError
from tests.vm.machine import SYSTEMD, GuestError, Machine
from tests.vm.places import KERNELS
from tests.vm.preparing import payload, prepare


def main() -> int:
    """The exit code: of the command in the guest, 1 for a guest that failed, 2 for what could not be prepared."""
    parser = argparse.ArgumentParser(prog="python -m tests.vm", description="A Linux guest to test fusepipe in.")
    commands = parser.add_subparsers(dest="what", required=True)
    preparing = commands.add_parser("prepare", help="make what is needed to boot; quick when it is there")
    preparing.add_argument("--kernel", choices=KERNELS, action="append", help="one of the suites' kernels (all)")
    running = commands.add_parser("run", help="boot, run a command, print what it prints, power off")
    _machine_options(running)
    running.add_argument("--systemd", action="store_true", help="with systemd as the guest's init")
    running.add_argument("--seconds", type=float, default=600, help="the command's time limit")
    running.add_argument(
        "--virtiofs", type=Path, metavar="DIR", help="a directory for `mount -t virtiofs host /virtiofs`"
    )
    running.add_argument("command", nargs="+", help="one word is a line for the shell")
    measuring = commands.add_parser("measure", help="round trips and throughput beside virtiofs, as a table")
    _machine_options(measuring)
    measuring.add_argument("--rounds", type=int, default=5, metavar="N", help="how often everything is measured (5)")
    measuring.add_argument("--scale", type=float, default=1.0, metavar="X", help="how much at a time (1.0)")
    measuring.add_argument(
        "--place", type=Path, default=Path("/dev/shm"), metavar="DIR", help="where the served directory is (/dev/shm)"
    )
    chosen = parser.parse_args()
    try:
        if chosen.what == "prepare":
            prepare(chosen.kernel or KERNELS)
            return 0
        prepare([chosen.kernel])
        return _run(chosen) if chosen.what == "run" else _measure(chosen)
    except (PrepareError, GuestError) as error:
        print(f"vm: {error}", file=sys.stderr)
        return 1 if isinstance(error, GuestError) else 2


def _machine_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kernel", choices=KERNELS, default="trixie")
    parser.add_argument("--memory", type=int, default=1024, metavar="MIB")
    parser.add_argument("--processors", type=int, default=2, metavar="N")


def _run(chosen: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="fusepipe-vm-") as name:
        folder = Path(name)
        disk = payload(folder, {})
        with Machine(
            chosen.kernel,
            folder,
            disk,
            processors=chosen.processors,
            memory=chosen.memory,
            virtiofs=chosen.virtiofs,
            init=SYSTEMD if chosen.systemd else None,
        ) as machine:
            print(f"vm: guests reach {machine.vsock}_PORT as vsock:2:PORT", file=sys.stderr)
            outcome = machine.begin(*chosen.command, seconds=chosen.seconds).result()
            print(outcome.output, end="")
            return 124 if outcome.status is None else outcome.status % 256


def _measure(chosen: argparse.Namespace) -> int:
    with (
        tempfile.TemporaryDirectory(prefix="fusepipe-vm-") as name,
        tempfile.TemporaryDirectory(prefix="fusepipe-vm-", dir=chosen.place) as shared,
    ):
        folder = Path(name)
        volume = Path(shared)
        disk = payload(folder, {})
        machine = Machine(
            chosen.kernel, folder, disk, processors=chosen.processors, memory=chosen.memory, virtiofs=volume
        )
        programs = Programs(folder)
        try:
            listen = f"firecracker:{machine.vsock}:{measure.PORT}"
            programs("serve", "--listen", listen, "--volume", f"data={volume}").ready()
            with machine:
                results = measure.measure(machine, rounds=chosen.rounds, scale=chosen.scale)
            programs.finish()
        finally:
            programs.kill()
        print(f"{results.where}\n\n{results.table()}")
        return 0


if __name__ == "__main__":
    raise SystemExit(main())
