"""What a round trip and a byte cost between a guest and its host, beside virtiofs in the same guest.

Only the ratios say something: both filesystems show the same directory in the same guest, and take turns.  Under
emulation everything in the guest takes many times as long as with KVM, and the host's side does not.
"""

import json
import os
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from tests.vm.machine import Machine
from tests.vm.preparing import accelerator

VIRTIOFS = "virtiofs"
SYSTEMS = (VIRTIOFS, "fusepipe --native off", "fusepipe --native auto")
"""What is measured, by the names that the table has; the first is what the others are compared with."""
PORT = 5000
FILE_BYTES = 32 << 20
"""Of the file that is read and written."""


@dataclass(frozen=True)
class Measure:
    """One line of the table: what a program does in the guest; guest/measuring.py says what PLACE and NUMBER are."""

    name: str
    program: str
    mode: str
    threads: int
    count: int
    size: int

    def command(self) -> list[str]:
        words = [f"/host/{self.program}", self.mode, str(self.threads), str(self.count)]
        if self.program == "parbench":
            return [*words, "PLACE/files-NUMBER", str(self.size)]
        return [*words, str(self.size), "PLACE/file"]

    def shown(self, seconds: float) -> str:
        """A time as the table has it: for what moves bytes in MiB/s, else for one of the operations."""
        if self.program == "transfers" and self.size:
            return f"{self.count * self.size / seconds / (1 << 20):.1f} MiB/s"
        return f"{seconds / self.count * 1e6:.0f} µs"


def measures(scale: float = 1.0) -> list[Measure]:
    """The lines, in the order in which they run; `scale` is how much of the usual amount each does."""

    def line(name: str, program: str, mode: str, threads: int, count: int, size: int) -> Measure:
        text = f"{name}, {threads} thread{'s' if threads > 1 else ''}"
        return Measure(text, program, mode, threads, max(threads, int(count * scale)), size)

    lines = []
    for threads in (1, 8):
        lines.append(line("empty round trip (GETATTR)", "transfers", "stat", threads, 2000, 0))
        for size, named, count in ((4096, "4 KiB", 1000), (1 << 20, "1 MiB", 48)):
            for mode in ("read", "write"):
                lines.append(line(f"{mode} {named}", "transfers", mode, threads, count, size))
        for mode in ("create", "read", "stat", "rename", "unlink"):
            lines.append(line(f"parbench {mode}, 4 KiB files", "parbench", mode, threads, 256, 4096))
    return lines


@dataclass(frozen=True)
class Results:
    """Seconds of every round for each measure and system, and where they were taken."""

    lines: list[Measure]
    seconds: dict[str, dict[str, list[float]]]
    where: str

    def table(self) -> str:
        """In Markdown: medians, and how many times as long as virtiofs each takes."""
        _, *others = SYSTEMS
        rows = [["", *SYSTEMS, *(f"{name} : {VIRTIOFS}" for name in others)]]
        rows.append(["---"] * len(rows[0]))
        for line in self.lines:
            medians = {name: statistics.median(self.seconds[line.name][name]) for name in SYSTEMS}
            ratios = [f"{medians[name] / medians[VIRTIOFS]:.2f}" for name in others]
            rows.append([line.name, *(line.shown(medians[name]) for name in SYSTEMS), *ratios])
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def measure(machine: Machine, *, rounds: int, scale: float = 1.0) -> Results:
    """Mount in the guest what `serve` gives as the volume `data` on port PORT and virtiofsd as `host`, and measure.

    Both must show `machine.virtiofs`, a directory on a filesystem that takes O_DIRECT; what is made in it stays there.
    Raises GuestError.
    """
    assert machine.virtiofs is not None
    (machine.virtiofs / "file").write_bytes(os.urandom(1 << 20) * (FILE_BYTES >> 20))
    places = {VIRTIOFS: "/virtiofs", SYSTEMS[1]: "/mnt/off", SYSTEMS[2]: "/mnt/auto"}
    for number in range(len(places)):
        (machine.virtiofs / f"files-{number}").mkdir()
    mounts = ["mount -t virtiofs host /virtiofs", "mkdir -p /mnt/off /mnt/auto"]
    for native in ("off", "auto"):
        mounts.append(f"fusepipe mount vsock:2:{PORT}/data /mnt/{native} --native {native} --daemon")
    lines = measures(scale)
    order = {"places": places, "jobs": {line.name: line.command() for line in lines}, "rounds": rounds}
    try:
        machine.run(" && ".join(mounts), seconds=300)
        said = machine.run("python3", "/host/tests/vm/guest/measuring.py", json.dumps(order), seconds=3600)
        kernel = machine.run("uname -r").strip()
    finally:
        machine.run(f"for p in {' '.join(places.values())}; do ! mountpoint -q $p || umount $p; done", seconds=300)
    return Results(lines, json.loads(said), _where(machine, kernel))


def _where(machine: Machine, kernel: str) -> str:
    how = {"kvm": "KVM", "tcg": "emulation without KVM"}[accelerator()]
    guest = f"guest: Linux {kernel}, {machine.processors} processors, QEMU, {how}"
    host = f"host: Linux {platform.release()}, {os.cpu_count()} processors, {_processor()}"
    return f"{guest}; {host}; load {os.getloadavg()[1]:.1f}; {time.strftime('%Y-%m-%d', time.gmtime())}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
