"""Extended attributes."""

from ...wire import Buffer
from ...wire import messages as m
from ..tables import Tables
from .handler import NOTHING, Reply


def getxattr(tables: Tables, request: m.GetxattrRequest, _: Buffer) -> Reply:
    """GETXATTR.  Concurrent with everything."""
    return m.GetxattrReply(tables.tree.getxattr(request.node, request.name)), NOTHING


def setxattr(tables: Tables, request: m.SetxattrRequest, _: Buffer) -> Reply:
    """SETXATTR, with the flags of setxattr(2), so that create and replace are one step.  Concurrent with everything."""
    tables.tree.setxattr(request.node, request.name, request.value, request.flags)
    return m.SetxattrReply(), NOTHING


def listxattr(tables: Tables, request: m.ListxattrRequest, _: Buffer) -> Reply:
    """LISTXATTR.  Concurrent with everything."""
    return m.ListxattrReply(tables.tree.listxattr(request.node)), NOTHING


def removexattr(tables: Tables, request: m.RemovexattrRequest, _: Buffer) -> Reply:
    """REMOVEXATTR.  Concurrent with everything."""
    tables.tree.removexattr(request.node, request.name)
    return m.RemovexattrReply(), NOTHING
