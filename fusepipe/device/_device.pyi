"""The compiled module; the C headers beside this file say what its functions do."""

from typing import Any

lib: Any
ffi: Any
