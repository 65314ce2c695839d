"""The compiled module; operations.h says what its functions do."""

from typing import Any

lib: Any
ffi: Any
