"""Log lines: one per event, in two formats, nothing below the level."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusepipe import log


@pytest.fixture(autouse=True)
def _settings_as_before() -> Iterator[None]:
    before = log.current()
    yield
    log.apply(before)


Capture = pytest.CaptureFixture[str]


def test_nothing_below_the_level(capfd: Capture) -> None:
    log.configure("warning")
    logger = log.get_logger("server")
    logger.debug("one")
    logger.info("two")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("level", "shown"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_levels(capfd: Capture, level: log.Level, shown: int) -> None:
    logger = log.get_logger("server")
    log.configure(level)  # a logger follows, also one that was made before
    for method in (logger.debug, logger.info, logger.warning, logger.error):
        method("event")
    assert len(capfd.readouterr().err.splitlines()) == shown


def test_text(capfd: Capture) -> None:
    log.configure("info")
    log.get_logger("client").bind(session="ab").warning("it is slow", seconds=1.5, name=b"a\xff b", empty="")
    line = capfd.readouterr().err
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z warning client: it is slow session=ab seconds=1\.5 "
        r'name="a\\\\xff b" empty=""\n',
        line,
    )


def test_json(capfd: Capture) -> None:
    log.configure("info", "json")
    log.get_logger("client").info("began", name=b"a\xff", groups={3, 1})
    event = json.loads(capfd.readouterr().err)
    assert list(event) == ["time", "level", "component", "event", "name", "groups"]
    assert event["level"] == "info"
    assert event["component"] == "client"
    assert event["name"] == "a\\xff"
    assert event["groups"] == [1, 3]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    event=st.text(),
    fields=st.dictionaries(
        st.from_regex(r"[a-z]{3,8}", fullmatch=True).filter(
            lambda name: name not in {"time", "level", "component", "event", "self"}
        ),
        st.one_of(st.text(), st.binary(), st.integers(), st.none()),
        max_size=4,
    ),
    form=st.sampled_from(log.FORMATS),
)
def test_one_line_per_event_whatever_is_in_it(
    capfd: Capture, event: str, fields: dict[str, object], form: log.Format
) -> None:
    capfd.readouterr()
    log.configure("info", form)
    log.get_logger("wire").info(event, **fields)
    data = capfd.readouterr().err
    assert data.count("\n") == 1
    assert data.endswith("\n")
    assert "\r" not in data


def test_an_error_is_one_line_with_its_place(capfd: Capture) -> None:
    log.configure("info")
    try:
        raise ValueError("this\nand that")
    except ValueError as error:
        log.get_logger("server").error("crashed", error=error)
    line = capfd.readouterr().err
    assert line.count("\n") == 1
    assert r'error="ValueError: this\nand that"' in line
    assert "test_log.py:" in line
    assert "Traceback" not in line


def test_at_debug_the_traceback_is_there(capfd: Capture) -> None:
    log.configure("debug", "json")
    try:
        raise ValueError("this")
    except ValueError as error:
        log.get_logger("server").error("crashed", error=error)
    assert "Traceback" in json.loads(capfd.readouterr().err)["error_traceback"]


def test_tracing_is_by_component_and_apart_from_levels(capfd: Capture) -> None:
    log.configure("error", trace=["wire"])
    assert log.tracing("wire")
    assert not log.tracing("client")
    log.get_logger("wire").trace("read", ms=0.25)
    assert re.search(r"Z trace   wire: read ms=0\.25\n$", capfd.readouterr().err)


def test_settings_reach_another_process(capfd: Capture) -> None:
    log.configure("debug", "json", ["server"])
    handed_on = log.current()
    log.configure("error")
    log.apply(handed_on)
    assert log.tracing("server")
    log.get_logger("server").debug("heard")
    assert json.loads(capfd.readouterr().err)["event"] == "heard"


@pytest.mark.parametrize(
    ("level", "form", "trace"),
    [("loud", "text", []), ("info", "xml", []), ("info", "text", ["everything"])],
)
def test_unknown_settings(level: log.Level, form: log.Format, trace: list[str]) -> None:
    with pytest.raises(ValueError, match="known are"):
        log.configure(level, form, trace)


def test_a_copy_of_the_lines(capfd: Capture) -> None:
    reading, writing = os.pipe()
    try:
        log.copy_to(writing)
        log.get_logger("client").error("twice")
        log.copy_to(None)
        log.get_logger("client").error("once")
        copied = os.read(reading, 1000).decode()
    finally:
        os.close(reading)
        os.close(writing)
    assert copied == capfd.readouterr().err.splitlines(keepends=True)[0]


def test_threads_do_not_mix_their_lines(capfd: Capture) -> None:
    log.configure("info")
    logger = log.get_logger("server")

    def speak(number: int) -> None:
        for _ in range(50):
            logger.info("x" * 100, number=number)

    threads = [threading.Thread(target=speak, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 200
    assert all(re.fullmatch(r"\S+Z info    server: x{100} number=\d", line) for line in lines)


def test_a_closed_stderr_is_no_error() -> None:
    code = (
        "import os; from fusepipe import log; os.close(2); log.get_logger('client').error('nobody hears'); print('on')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "on\n"


@pytest.mark.parametrize(
    "code",
    [
        "1 / 0",
        "import threading; t = threading.Thread(target=lambda: 1 / 0, name='worker'); t.start(); t.join()",
        "class C:\n    def __del__(self): 1 / 0\nc = C()\ndel c",
    ],
    ids=["main", "thread", "destructor"],
)
def test_what_nobody_caught_is_one_line(code: str) -> None:
    start = "from fusepipe import log; log.log_uncaught()\n"
    done = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, timeout=60)
    assert done.stderr.count("\n") == 1
    assert "ZeroDivisionError" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_others_bring_about_does_not_fill_a_disk() -> None:
    lines: list[dict[str, Any]] = []
    complain = log.Sparing(lambda event, **fields: lines.append({"event": event, **fields}), burst=3, pause=3600)
    for number in range(1000):
        complain("refused", number=number)
    assert [line["number"] for line in lines] == [0, 1, 2]
    hasty = log.Sparing(lambda event, **fields: lines.append({"event": event, **fields}), burst=1, pause=1e-9)
    hasty("one")
    assert "left_out" not in lines[-1]


def test_lines_that_were_left_out_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(log, "monotonic", lambda: now)
    lines: list[dict[str, Any]] = []
    complain = log.Sparing(lambda event, **fields: lines.append({"event": event, **fields}), burst=2, pause=10.0)
    for _ in range(5):
        complain("refused")
    now += 10.0
    complain("refused")
    assert lines == [{"event": "refused"}, {"event": "refused"}, {"event": "refused", "left_out": 3}]
