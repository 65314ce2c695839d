"""What a session knows: its inodes, handles and slots, in a memfd that outlives the process which serves them."""

from .ranges import UNLOCK
from .slots import SlotStore
from .tables import Tables, create_memfd

__all__ = ["UNLOCK", "SlotStore", "Tables", "create_memfd"]
