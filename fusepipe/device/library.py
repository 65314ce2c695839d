"""Loads the compiled filter into the global scope of symbols, before pyfuse3, and says when that does not work.

pyfuse3 makes its session by calling `fuse_session_new` or `fuse_session_new_versioned`; the dynamic linker gives it
those of our module only if they are in the global scope when pyfuse3 is loaded (dlopen(3), RTLD_GLOBAL).
"""

import os
import sys
from types import ModuleType


def _load() -> tuple[ModuleType | None, str]:
    late = "pyfuse3" in sys.modules
    before = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
    try:
        from fusepipe.device import _device
    except ImportError as error:
        return None, f"its compiled part cannot be loaded: {error}"
    finally:
        sys.setdlopenflags(before)
    return (None, "pyfuse3 was loaded before it: import fusepipe.device first") if late else (_device, "")


def _libraries() -> set[str]:
    """Paths of the libfuse 3 libraries that this process has loaded."""
    with open("/proc/self/maps") as maps:
        return {line.split()[-1] for line in maps if "/libfuse3.so" in line}


MODULE, _REASON = _load()


def unavailable() -> str:
    """Why the filter cannot be used in this process, or "" where it can, as far as can be said before mounting.

    Loads pyfuse3.
    """
    if _REASON:
        return _REASON
    import pyfuse3  # noqa: F401 - which libfuse it brings is the question

    if len(found := _libraries()) > 1:
        return f"pyfuse3 and fusepipe were built for different versions of libfuse: {', '.join(sorted(found))}"
    return ""
