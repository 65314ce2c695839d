"""Runs the collected cases in several processes at once, which start as copies of this one after collection.

So a job costs a fork and not a start of pytest, and hundreds of them are affordable.  Each has its own helper processes
and its own fixtures; it sends its reports through a pipe, and this process shows them.
"""

import json
import os
import selectors
import traceback
from typing import Any

import pytest


class Jobs:
    """The plugin."""

    def __init__(self, number: int) -> None:
        self._number = number

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Takes the place of pytest's own loop."""
        if session.config.option.collectonly or session.testsfailed:
            return None
        with selectors.DefaultSelector() as selector:
            for job in range(min(self._number, len(session.items))):
                reading, writing = os.pipe()
                pid = os.fork()
                if pid == 0:
                    _work(session, session.items[job :: self._number], writing)
                os.close(writing)
                selector.register(reading, selectors.EVENT_READ, (pid, bytearray()))
            died = self._collect(session, selector)
        if died:
            raise session.Failed(f"{died} jobs did not come to their end; what they said stands above")
        return True

    @staticmethod
    def _collect(session: pytest.Session, selector: selectors.BaseSelector) -> int:
        died = 0
        while selector.get_map():
            for key, _ in selector.select():
                pid, received = key.data
                data = os.read(key.fd, 1 << 16)
                received += data
                *lines, rest = bytes(received).split(b"\n")
                received[:] = rest
                for line in lines:
                    _show(session.config, json.loads(line))
                if not data:
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    died += os.waitpid(pid, 0)[1] != 0
        return died


def _show(config: pytest.Config, data: Any) -> None:
    report = config.hook.pytest_report_from_serializable(config=config, data=data)
    if isinstance(report.longrepr, list):
        report.longrepr = tuple(report.longrepr)  # of a skipped case; JSON knows no tuples
    if report.when == "setup":
        config.hook.pytest_runtest_logstart(nodeid=report.nodeid, location=report.location)
    config.hook.pytest_runtest_logreport(report=report)
    if report.when == "teardown":
        config.hook.pytest_runtest_logfinish(nodeid=report.nodeid, location=report.location)


class _Reporter:
    """Stands in a job for what shows reports."""

    def __init__(self, config: pytest.Config, writing: int) -> None:
        self._config = config
        self._writing = writing

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        line = memoryview(json.dumps(data).encode() + b"\n")
        while line:
            line = line[os.write(self._writing, line) :]


def _work(session: pytest.Session, items: list[pytest.Item], writing: int) -> None:
    """What runs in a job.  Never returns."""
    status = 1
    try:
        plugins = session.config.pluginmanager
        plugins.unregister(name="terminalreporter")
        plugins.register(_Reporter(session.config, writing))
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
