"""The command that measures, with small amounts: that it works.  Its figures are in docs/firecracker.md."""

import pytest

from tests.support.program import Programs
from tests.vm.machine import Machine
from tests.vm.measure import PORT, SYSTEMS, measure

pytestmark = pytest.mark.timeout(1800)


def test_beside_virtiofs(guest: Machine, program: Programs) -> None:
    """Every measure has a time on each filesystem, and a line in the table."""
    server = program("serve", "--listen", f"firecracker:{guest.vsock}:{PORT}", "--volume", f"data={guest.virtiofs}")
    server.ready()
    results = measure(guest, rounds=1, scale=0.02)
    assert {name for taken in results.seconds.values() for name in taken} == set(SYSTEMS)
    assert all(len(rounds) == 1 and rounds[0] > 0 for taken in results.seconds.values() for rounds in taken.values())
    table = results.table().splitlines()
    assert len(table) == 2 + len(results.lines)
    assert [line.split(" | ")[0].removeprefix("| ") for line in table[2:]] == [line.name for line in results.lines]
    assert server.stop() == 0
