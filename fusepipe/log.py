"""Log lines: one line per event on stderr, as text or as JSON.

`configure` is called once at start-up by the command; loggers made before it follow it.  A call below the level in
force costs one comparison.  Single requests are traced by component: code on the hot path asks `tracing(component)`
once at start-up and calls `Logger.trace` only where that was true.

A line is one write(2) to fd 2, so lines of several processes that share a stderr do not mix as long as they are shorter
than PIPE_BUF (pipe(7)) or go to a file.  Everything here may be called from any thread.
"""

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Final, Literal, cast

from structlog import BoundLoggerBase

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["text", "json"]

LEVELS: Final[tuple[Level, ...]] = ("debug", "info", "warning", "error")
FORMATS: Final[tuple[Format, ...]] = ("text", "json")
TRACEABLE: Final = ("client", "wire", "server")

_RANK: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_STDERR: Final = 2


@dataclass(frozen=True)
class Settings:
    """What is logged and how.  A process hands them on to the processes that it starts (`current`, `apply`)."""

    level: Level = "warning"
    format: Format = "text"
    trace: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"unknown log level {self.level!r}: known are {', '.join(LEVELS)}")
        if self.format not in FORMATS:
            raise ValueError(f"unknown log format {self.format!r}: known are {', '.join(FORMATS)}")
        if unknown := self.trace.difference(TRACEABLE):
            raise ValueError(f"cannot trace {', '.join(sorted(unknown))}: known are {', '.join(TRACEABLE)}")


class _State:
    """The settings in force, with the level as a number for a quick comparison."""

    settings = Settings()
    rank = _RANK["warning"]
    copy_to: int | None = None


class Logger(BoundLoggerBase):
    """A structlog bound logger: `bind(**fields)` gives one that adds these fields to each line.

    `error=EXCEPTION` among the fields of an event shows the exception's type, text and place on the same line, and its
    whole traceback where the level is debug.
    """

    def debug(self, event: str, **fields: Any) -> None:
        """For who develops fusepipe: what was decided and why."""
        if _State.rank <= 10:
            self._proxy_to_logger("debug", event, **fields)

    def info(self, event: str, **fields: Any) -> None:
        """What happens in an ordinary life: a session begins, a session ends."""
        if _State.rank <= 20:
            self._proxy_to_logger("info", event, **fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Something is not as it should be, and the work goes on."""
        if _State.rank <= 30:
            self._proxy_to_logger("warning", event, **fields)

    def error(self, event: str, **fields: Any) -> None:
        """Something was lost: a request failed that should not, a session broke."""
        self._proxy_to_logger("error", event, **fields)

    def trace(self, event: str, **fields: Any) -> None:
        """One step of one request, whatever the level; call it only where `tracing` said yes at start-up."""
        self._proxy_to_logger("trace", event, **fields)


def configure(level: Level, format: Format = "text", trace: Iterable[str] = ()) -> None:
    """Set what is logged and how, for all loggers of this process.  Raises ValueError for an unknown value."""
    apply(Settings(level, format, frozenset(trace)))


def apply(settings: Settings) -> None:
    """Like `configure`, with the settings of another process."""
    _State.settings = settings
    _State.rank = _RANK[settings.level]


def current() -> Settings:
    """The settings in force, to hand on to a process that is started."""
    return _State.settings


def copy_to(fd: int | None) -> None:
    """Write each line to this file descriptor as well, until called with None.  The caller keeps it open meanwhile."""
    _State.copy_to = fd


def tracing(component: str) -> bool:
    """Whether single requests are to be traced in `component` (one of TRACEABLE).  To be asked once at start-up."""
    return component in _State.settings.trace


def get_logger(component: str) -> Logger:
    """A logger whose lines carry the name of a component: "client", "wire", "server", "cli" ..."""
    return Logger(_Lines(), [_complete, _render], {"component": component})


class _Lines:
    """Where rendered lines go."""

    def msg(self, line: str) -> None:
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        _write(_STDERR, data)
        if _State.copy_to is not None:
            _write(_State.copy_to, data)

    debug = info = warning = error = trace = msg


def _write(fd: int, data: bytes) -> None:
    """Write a line whole; a stderr that nobody reads any more must not become an error of the work that logged."""
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError:
        return


def _complete(_logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    done: dict[str, Any] = {"time": now, "level": method, "component": event.pop("component")}
    done["event"] = event.pop("event")
    for name, value in event.items():
        if isinstance(value, BaseException):
            done |= _described(name, value)
        else:
            done[name] = value
    return done


def _described(name: str, error: BaseException) -> dict[str, str]:
    fields = {name: f"{type(error).__name__}: {error}"}
    if frames := traceback.extract_tb(error.__traceback__, limit=-1):
        fields[f"{name}_at"] = f"{os.path.basename(frames[0].filename)}:{frames[0].lineno} {frames[0].name}"
    if _State.settings.level == "debug":
        fields[f"{name}_traceback"] = "".join(traceback.format_exception(error))
    return fields


def _render(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
    if _State.settings.format == "json":
        return json.dumps(event, default=_plain, ensure_ascii=False)
    head = f"{event.pop('time')} {event.pop('level'):<7} {event.pop('component')}: {_one_line(event.pop('event'))}"
    return "".join([head, *(f" {name}={_quoted(value)}" for name, value in event.items())])


def _plain(value: object) -> object:
    """What JSON has no form for: names are bytes, and sets and paths are common."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, set | frozenset):
        return sorted(cast("Iterable[Any]", value), key=str)
    return str(value)


def _one_line(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def _quoted(value: object) -> str:
    text = str(_plain(value) if isinstance(value, bytes | set | frozenset) else value)
    if text and text.isprintable() and not any(c in text for c in " \"'="):
        return text
    return json.dumps(text)


class Sparing:
    """Logs what somebody else can bring about as often as he likes: at first each time, then now and then.

    A line that follows others that were left out says how many (`left_out`).  Safe to use from any thread.
    """

    def __init__(self, log: Callable[..., None], *, burst: int = 20, pause: float = 10.0) -> None:
        """`log` is a logger's method; `burst` lines come at once, and each `pause` seconds allow one more."""
        self._log = log
        self._burst = burst
        self._pause = pause
        self._lock = threading.Lock()
        self._spent = 0.0
        self._at = monotonic()
        self._left_out = 0

    def __call__(self, event: str, **fields: Any) -> None:
        """Log this, or leave it out."""
        with self._lock:
            now = monotonic()
            self._spent = max(0.0, self._spent - (now - self._at) / self._pause)
            self._at = now
            if self._spent + 1 > self._burst:
                self._left_out += 1
                return
            self._spent += 1
            left_out, self._left_out = self._left_out, 0
        self._log(event, **fields, **({"left_out": left_out} if left_out else {}))


def log_uncaught() -> None:
    """From now on an exception that nobody caught, in any thread or destructor, is one log line and no traceback."""
    logger = get_logger("python")

    def in_thread(args: threading.ExceptHookArgs) -> None:
        name = args.thread.name if args.thread else "a thread"
        logger.error(f"unexpected error in {name}", error=args.exc_value)

    def unraisable(args: "sys.UnraisableHookArgs") -> None:
        logger.error(args.err_msg or "unexpected error in a destructor", error=args.exc_value, object=repr(args.object))

    sys.excepthook = lambda _kind, error, _frames: logger.error("unexpected error", error=error)
    threading.excepthook = in_thread
    sys.unraisablehook = unraisable
