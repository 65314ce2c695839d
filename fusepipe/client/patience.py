"""Calls that may never return, because they reach a mount whose server is silent."""

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class NoAnswerError(Exception):
    """The call has not returned in time; its thread waits on, and does not keep the process alive."""


def within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` returns or raises, if it does so in time; else raises NoAnswerError."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # it belongs to the caller's thread
            errors.append(error)

    thread = threading.Thread(target=run, name="may wait", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise NoAnswerError
    return results[0]
