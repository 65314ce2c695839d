"""Runs in the guest: `measuring.py ORDER` runs the programs that ORDER, a JSON object, names, and notes their times.

ORDER has `places` (a name and a directory for each filesystem), `jobs` (a name and a command for each measure, in which
`PLACE` stands for the directory and `NUMBER` for the filesystem's place in the list) and `rounds`.  In each round every
job runs on each place, one right after the other, and each round begins with another place.  Prints one JSON object:
for each job and place the seconds of every round.
"""

import json
import subprocess
import sys
from typing import Any


def seconds(command: list[str], place: str, number: int) -> float:
    """What a program says that it took.  Raises RuntimeError with what it printed where it fails."""
    words = [word.replace("PLACE", place).replace("NUMBER", str(number)) for word in command]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed with {done.returncode}: {done.stderr.strip()}")
    return float(json.loads(done.stdout)["seconds"])


def main(order: dict[str, Any]) -> None:
    places = [(name, place, number) for number, (name, place) in enumerate(order["places"].items())]
    taken: dict[str, dict[str, list[float]]] = {job: {name: [] for name, *_ in places} for job in order["jobs"]}
    for turn in range(order["rounds"]):
        first = turn % len(places)
        for job, command in order["jobs"].items():
            for name, place, number in places[first:] + places[:first]:
                taken[job][name].append(seconds(command, place, number))
    print(json.dumps(taken))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
