"""What a session knows: its inodes, handles and slots, in a memfd that outlives the process which serves them."""

from .locks import HeldLocks
from .ranges import UNLOCK, Range
from .slots import SlotStore
from .tables import Tables, create_memfd

__all__ = ["UNLOCK", "HeldLocks", "Range", "SlotStore", "Tables", "create_memfd"]
