"""fio writes at random places with checksums and reads them back: buffered, direct, and through a mapping."""

from __future__ import annotations

import json

from tests.workload.jobs import Context, check


def run(job: Context) -> dict[str, object]:
    """Two jobs per engine, each verifying every block that it wrote."""
    ways = {"buffered": ("psync", 0), "direct": ("psync", 1), "mapped": ("mmap", 0)}
    for name, (engine, direct) in ways.items():
        directory = job.work / f"fio-{name}"
        directory.mkdir()
        out = job.run(
            "fio",
            f"--name={name}",
            f"--directory={directory}",
            "--rw=randwrite",
            "--bs=4k",
            f"--size={job.size.disk_mib}m",
            f"--ioengine={engine}",
            f"--direct={direct}",
            "--numjobs=2",
            "--randseed=1",
            "--verify=crc32c",
            "--do_verify=1",
            "--verify_fatal=1",
            "--verify_dump=0",
            "--output-format=json",
            cwd=directory,
        )
        errors = [part["error"] for part in json.loads(out[out.index("{") :])["jobs"]]
        check(errors == [0, 0], f"fio {name}: errors {errors}")
    return {"mib": 2 * job.size.disk_mib * len(ways)}
