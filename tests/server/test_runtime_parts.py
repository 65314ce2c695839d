"""The parts of the runtime by themselves: threads, interrupts, the control socket."""

import os
import threading
from functools import partial
from typing import Any

import pytest

from fusepipe import log
from fusepipe.server import Policy, ServerOptions, control
from fusepipe.server.interrupts import Interrupts
from fusepipe.server.sandbox import Missing, Prepared, Report
from fusepipe.server.threads import Threads
from fusepipe.wire import ServerLimits

PATIENCE = 20.0
LOGGER = log.get_logger("server")


# ---- threads ----


def wait(gate: threading.Event) -> None:
    assert gate.wait(PATIENCE)


def test_who_became_idle_last_works_next() -> None:
    threads = Threads("test", lambda error: None, LOGGER)
    names: list[str] = []
    gates = [threading.Event() for _ in range(3)]
    done = threading.Semaphore(0)

    def note() -> None:
        names.append(threading.current_thread().name)
        done.release()

    for gate in gates:
        assert threads.run(partial(wait, gate))
    assert len(threads) == 3
    for gate, idle in zip(reversed(gates), (1, 2, 3), strict=True):
        gate.set()
        while len(threads._idle) != idle:
            threading.Event().wait(0.001)
    for _ in range(5):
        assert threads.run(note)
        assert done.acquire(timeout=PATIENCE)
        while len(threads._idle) != 3:
            threading.Event().wait(0.001)
    assert names == ["test 1"] * 5
    assert threads.stop(PATIENCE)
    assert not threads.run(note)


def test_what_a_job_raises_does_not_end_its_thread() -> None:
    errors: list[BaseException] = []
    threads = Threads("test", errors.append, LOGGER)

    def fail() -> None:
        raise KeyError("x")

    for count in (1, 2):
        threads.run(fail)
        while len(errors) != count or not threads._idle:
            threading.Event().wait(0.001)
    assert len(threads) == 1
    assert threads.stop(PATIENCE)


def test_stop_does_not_wait_for_ever() -> None:
    threads = Threads("test", lambda error: None, LOGGER)
    gate = threading.Event()
    threads.run(partial(wait, gate))
    assert not threads.stop(0.01)
    gate.set()
    assert threads.stop(PATIENCE)


# ---- interrupts ----


def interrupts(slots: int = 4) -> Interrupts:
    return Interrupts([threading.Lock() for _ in range(slots)], 0)


def test_only_the_next_request_of_a_slot_can_be_interrupted_early() -> None:
    kept = interrupts()
    kept.interrupt(1, 8, last_seq=7)
    kept.interrupt(2, 9, last_seq=7)
    kept.interrupt(3, 7, last_seq=7)
    assert not kept.start(1, 8)
    assert kept.running() == []
    assert kept.start(2, 8) and kept.start(3, 8) and kept.start(1, 9)
    assert kept.running() == [1, 2, 3]


def test_signals_go_on_until_the_request_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    signals: list[tuple[int, int]] = []
    enough = threading.Event()
    locks = [threading.Lock() for _ in range(2)]
    sending = Interrupts(locks, 12)

    def kill(thread: int, number: int) -> None:
        signals.append((thread, number))
        if len(signals) == 4:
            enough.set()

    monkeypatch.setattr("fusepipe.server.interrupts.signal.pthread_kill", kill)
    thread = threading.Thread(target=sending.run)
    thread.start()
    with locks[1]:
        assert sending.start(1, 5)
        sending.interrupt(1, 5, last_seq=5)
        sending.interrupt(0, 3, last_seq=3)  # over already
    assert enough.wait(PATIENCE)
    with locks[1]:
        sending.stop(1)
        count = len(signals)
    while sending._wanted:
        threading.Event().wait(0.001)
    assert len(signals) == count
    assert set(signals) == {(threading.get_ident(), 12)}
    sending.close()
    thread.join(PATIENCE)


# ---- the control socket ----


def test_what_a_launcher_says_arrives_with_its_descriptors(tmp_path: Any) -> None:
    options = ServerOptions(limits=ServerLimits(request_slots=7), fd_budget=99, drain=1.5)
    settings = log.Settings("debug", "json", frozenset({"server", "wire"}))
    policy = Policy(True, False, ((0, 100000, 1000), (5000, 5, 1)), ((0, 7, 1),), True)
    prepared = Prepared(b"\0program", no_processes="no right")
    begin = control.Begin(b"i" * 16, "name\udcff", True, policy, options, settings, prepared)
    ours, theirs = control.pair()
    with ours, theirs:
        read, write = os.pipe()
        control.send(ours, begin, [read, write])
        control.send(ours, control.Give(b"\0frame", True), [write])
        os.close(write)
        os.close(read)
        message, fds = control.receive(theirs) or (None, [])
        assert message == begin
        assert not any(os.get_inheritable(fd) for fd in fds)
        os.write(fds[1], b"through")
        assert os.read(fds[0], 100) == b"through"
        given, more = control.receive(theirs) or (None, [])
        assert given == control.Give(b"\0frame", True)
        for fd in [*fds, *more]:
            os.close(fd)
        ours.close()
        assert control.receive(theirs) is None


def test_a_session_process_that_hangs_is_not_waited_for() -> None:
    ours, theirs = control.pair()
    with ours, theirs, pytest.raises(BlockingIOError):
        while True:
            control.send(ours, control.Give(bytes(30_000), False), [])


def test_a_launcher_that_goes_without_listening_is_gone() -> None:
    ours, theirs = control.pair()
    with ours, theirs:
        report = Report(("mounts",), (Missing("calls", "no library", "install it"),))
        control.send(theirs, report, [])
        control.send(theirs, report, [])
        assert control.receive(ours) == (report, [])
        ours.close()
        assert control.receive(theirs) is None
        assert control.receive(theirs) is None
