"""Who calls.  Numbers only: none of these users has to exist."""

from .process import Identity

ROOT = Identity("root", 0, 0)
OWNER = Identity("owner", 65533, 65533)
OTHER = Identity("other", 65532, 65532)
THIRD = Identity("third", 65531, 65531)
MEMBER = Identity("member", 65530, 65533)
"""Has the owner's group as his primary group."""
SUPPLEMENTARY = Identity("supplementary", 65529, 65529, (65526, 65533))
"""Has the owner's group among his supplementary groups."""
JOINED = Identity("joined", 65533, 65533, (65528, 65527))
"""The owner, who is in two more groups."""
STRANGE_GROUP = 65525
"""A group that nobody is in."""
