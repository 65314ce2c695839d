"""fusepipe: a host directory as a POSIX filesystem in a guest, over a pipe."""

__version__: str
"""The version of the installed distribution; "0+unknown" where the sources run without being installed."""


def __getattr__(name: str) -> str:
    """Look up the version when it is first asked for: most processes never ask, and importlib.metadata takes 25 ms."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("fusepipe")
    except PackageNotFoundError:
        found = "0+unknown"
    globals()[name] = found
    return found
