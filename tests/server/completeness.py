"""The server's half of the check that every row of the table of operations is covered."""

from fusepipe.server.handlers import HANDLERS
from fusepipe.wire import ROWS, Op


def without_handler() -> set[Op]:
    """Operations that take a slot and have no handler.  (Control messages are answered by the wire itself.)"""
    return {op for op, row in ROWS.items() if row.channel != "control"} - set(HANDLERS)


def handlers_of_nothing() -> set[Op]:
    """Handlers that no message can reach."""
    return {op for op in HANDLERS if op not in ROWS or ROWS[op].channel == "control"}
