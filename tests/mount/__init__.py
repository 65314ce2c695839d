"""Real FUSE mounts, made by the command itself and used as programs use them."""
