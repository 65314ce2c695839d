"""The dispatcher: every operation has a handler, and what is logged shows shapes and no contents."""

import json
from typing import Any

import pytest

from fusepipe import log
from fusepipe.server.dispatcher import dispatcher, shapes
from fusepipe.wire import Attr, Op
from fusepipe.wire.messages import CleanupRequest, GetattrReply, GetattrRequest, SetxattrRequest, WriteRequest
from fusepipe.wire.server_session import Arrived
from tests.server.completeness import handlers_of_nothing, without_handler

LOGGER = log.get_logger("server")


def test_every_operation_has_a_handler() -> None:
    assert without_handler() == set()
    assert handlers_of_nothing() == set()


def test_shapes_are_types_and_lengths() -> None:
    assert shapes(SetxattrRequest(7, b"user.x", b"value", 0)) == "node=int, name=bytes[6], value=bytes[5], flags=int"
    assert shapes(CleanupRequest((1, 2), (), ())) == "forgets=tuple[2], handles=tuple[0], untaken=tuple[0]"
    assert shapes(WriteRequest(1, 0, 0), b"data") == "handle=int, offset=int, flags=int, payload=bytes[4]"


def test_single_requests_are_traced_on_demand(capfd: pytest.CaptureFixture[str]) -> None:
    def handler(_context: object, request: GetattrRequest, _payload: Any) -> Any:
        return GetattrReply(Attr(*[request.node] * 15)), b""

    event = Arrived(3, 9, Op.GETATTR, GetattrRequest(5, 0), memoryview(b""), 10, 10)
    before = log.current()
    dispatcher(None, {Op.GETATTR: handler}, LOGGER)(event)
    assert capfd.readouterr().err == ""
    try:
        log.configure("error", "json", {"server"})
        traced = dispatcher(None, {Op.GETATTR: handler}, LOGGER)
        assert traced(event) == dispatcher(None, {Op.GETATTR: handler}, LOGGER)(event)
    finally:
        log.apply(before)
    line = json.loads(capfd.readouterr().err.splitlines()[0])
    assert (line["event"], line["slot"], line["seq"], line["received"]) == ("getattr", 3, 9, 10)
    assert line["ms"] >= 0
