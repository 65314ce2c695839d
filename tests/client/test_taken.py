"""Requests that the filter takes: their tasks, and their answers."""

import errno
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pyfuse3
import pytest
import trio
import trio.testing

from fusepipe.client.taken import Taken
from fusepipe.device import CurrentRequest, TakenRequest
from fusepipe.device.structures import LseekIn

OPCODE = 200


class Kernel:
    """A filter that notes what it is told, and refuses answers as the kernel would."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.answers: list[tuple[int, int, bytes]] = []
        self.refusals: list[int] = []

    def take(self, opcodes: Any) -> None:
        self.taken += opcodes

    def answer(self, unique: int, error: int, body: bytes) -> None:
        self.answers.append((unique, error, body))
        if self.refusals:
            raise OSError(self.refusals.pop(0), "refused")


async def operation(current: CurrentRequest, arguments: bytes) -> bytes:
    if arguments == b"fail":
        raise pyfuse3.FUSEError(errno.EDQUOT)
    if arguments == b"wait":
        await trio.sleep(100)
    return arguments


def run(test: Callable[[Kernel, Callable[[int, bytes], None]], Awaitable[None]]) -> None:
    async def main() -> None:
        kernel: Any = Kernel()
        taken = Taken({OPCODE: operation})
        taken.use(kernel)
        assert kernel.taken == [OPCODE]
        async with trio.open_nursery() as nursery:
            taken.start(nursery)
            arrive = lambda unique, text: taken.arrived(TakenRequest(CurrentRequest(unique, opcode=OPCODE), text))  # noqa: E731 - a name for it would say no more
            await test(kernel, arrive)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))


def test_each_is_answered_once_whoever_ends_first() -> None:
    async def test(kernel: Kernel, arrive: Callable[[int, bytes], None]) -> None:
        for unique, text in ((2, b"wait"), (4, b"body"), (6, b"fail"), (8, b"")):
            arrive(unique, text)
        await trio.sleep(1)
        assert sorted(kernel.answers) == [(4, 0, b"body"), (6, errno.EDQUOT, b""), (8, 0, b"")]
        await trio.sleep(100)
        assert kernel.answers[-1] == (2, 0, b"wait")

    run(test)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENODEV])
def test_nobody_waits_after_an_abort(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    async def test(kernel: Kernel, arrive: Callable[[int, bytes], None]) -> None:
        kernel.refusals = [number]
        arrive(2, b"body")
        await trio.sleep(1)
        assert kernel.answers == [(2, 0, b"body")]

    run(test)
    assert capfd.readouterr().err == ""


def test_who_waits_for_an_answer_that_the_kernel_refuses_gets_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    async def test(kernel: Kernel, arrive: Callable[[int, bytes], None]) -> None:
        kernel.refusals = [errno.EINVAL]
        arrive(2, b"body")
        await trio.sleep(1)
        assert kernel.answers == [(2, 0, b"body"), (2, errno.EIO, b"")]

    run(test)
    assert "does not take an answer" in capfd.readouterr().err


def test_arguments_may_be_longer_than_what_is_known() -> None:
    arguments = (7).to_bytes(8, "little") + (9).to_bytes(8, "little") + bytes([os.SEEK_HOLE]) + bytes(7)
    assert LseekIn.read(arguments) == LseekIn.read(arguments + b"later") == LseekIn(7, 9, os.SEEK_HOLE)
