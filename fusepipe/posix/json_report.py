"""The run as JSON: everything that is known, for programs."""

import json
from dataclasses import asdict
from typing import Any

from fusepipe.posix.results import FileResult, Outcome, RunResult


def as_json(run: RunResult) -> str:
    """One object: `totals`, and under `files` every file with every assertion.  docs/posix-upstream.md explains it."""
    return json.dumps(
        {
            "upstream": run.upstream,
            "target": run.target,
            "jobs": run.jobs,
            "started": run.started,
            "seconds": round(run.seconds, 3),
            "totals": {
                "files": len(run.files),
                **{outcome.value.replace(" ", "_"): run.count(outcome) for outcome in Outcome},
                "not_run": len(run.not_run),
                "assertions": run.assertions,
                "failures": run.failures,
            },
            "files": [_file(file) for file in run.files],
            "not_run": list(run.not_run),
        },
        indent=1,
    )


def _file(file: FileResult) -> dict[str, Any]:
    return {
        "name": file.name,
        "outcome": file.outcome.value,
        "seconds": round(file.seconds, 3),
        "planned": file.planned,
        "failures": len(file.failures),
        "problems": list(file.problems),
        "reason": file.reason,
        "assertions": [asdict(assertion) for assertion in file.assertions],
        "output": file.output if file.outcome.bad else "",
    }
