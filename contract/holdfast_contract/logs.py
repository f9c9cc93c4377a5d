"""Structured logs on the standard library: one event, its fields, and what is bound around it.

    _log = get_logger(__name__)
    with bind(request_id=request_id):
        _log.info("pack accepted", object=name, bytes=size)

An event is a constant text, everything that varies is a field. Bound fields live in a context
variable: asyncio tasks inherit them, a new thread begins without any. Secrets are never logged;
should one slip in, fields with such a name and texts that look like a token or a key are masked.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import PurePath
from typing import TextIO

from holdfast_contract.clock import rfc3339
from holdfast_contract.errors import HoldfastError
from holdfast_contract.text import printable

MASK = "***"

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

_SECRET_NAMES = frozenset(
    {"authorization", "cookie", "key", "password", "passphrase", "secret", "token"}
)
_SECRET_TEXT = re.compile(r"\bhf[aec]_[A-Za-z0-9_-]{16,}|\bholdfast-key-1 .*|\bBearer \S+")
_OWN_NAMES = frozenset({"time", "level", "event", "logger", "exception"})
_COLOURS = {"DEBUG": "\x1b[2m", "WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m"}
_PLAIN_VALUE = re.compile(r"[^\s\"'=\\]+")

_bound: ContextVar[Mapping[str, object]] = ContextVar("holdfast_log_fields")


class Logger:
    """A named logger whose calls take fields."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, event: str, /, **fields: object) -> None:
        """Log what only somebody who hunts a defect wants to see."""
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        """Log what an administrator wants to be able to look up."""
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """Log what an administrator should look at some time."""
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        """Log what an administrator must look at."""
        self._write(logging.ERROR, event, fields)

    def exception(self, event: str, /, **fields: object) -> None:
        """Log an error with the traceback of the exception that is being handled."""
        self._write(logging.ERROR, event, fields, with_traceback=True)

    def _write(
        self, level: int, event: str, fields: dict[str, object], *, with_traceback: bool = False
    ) -> None:
        if self._logger.isEnabledFor(level):
            merged = {**_bound.get({}), **fields}
            # The event is no format string: a percent sign in it stays one.
            extra = {"holdfast_event": event, "holdfast_fields": merged}
            self._logger.log(level, "%s", event, extra=extra, exc_info=with_traceback)


def get_logger(name: str) -> Logger:
    """Return the logger of a module; call it with `__name__`."""
    return Logger(logging.getLogger(name))


@contextmanager
def bind(**fields: object) -> Iterator[None]:
    """Add `fields` to every event logged inside the block, in this task or thread."""
    token = _bound.set({**_bound.get({}), **fields})
    try:
        yield
    finally:
        _bound.reset(token)


def bound_fields() -> Mapping[str, object]:
    """Return what is bound here, to bind it again in a worker thread."""
    return _bound.get({})


def wants_colour(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Tell whether `stream` is a terminal whose user has not set NO_COLOR to anything."""
    return not environ.get("NO_COLOR") and environ.get("TERM") != "dumb" and stream.isatty()


def configure_logs(
    *, level: str, log_format: str, stream: TextIO, colour: bool = False
) -> logging.Handler:
    """Send every log record of the process to `stream`; return the handler.

    Handlers that were there before are taken off, so a second call reconfigures.

    Args:
        level: a key of `LEVELS`.
        log_format: `json` (one object a line) or `text`.
        stream: usually standard error.
        colour: for `text` only; see `wants_colour`.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter(colour=colour))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(LEVELS[level])
    # aiohttp's and asyncio's own chatter at debug level says nothing about backups.
    for noisy in ("asyncio", "aiohttp"):
        logging.getLogger(noisy).setLevel(max(LEVELS[level], logging.INFO))
    return handler


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time`, `level`, `event`, `logger`, then the fields; ASCII only."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "event": _masked(_event(record)),
            "logger": record.name,
        }
        for name, value in _fields(record).items():
            line[f"{name}_" if name in _OWN_NAMES else name] = value
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = _masked(self.formatException(record.exc_info))
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """`TIME LEVEL event name=value`: for people; nothing in it can act on a terminal."""

    def __init__(self, *, colour: bool = False) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line, with a traceback below it where there is one."""
        parts = [_time(record), f"{record.levelname:<7}", printable(_masked(_event(record)))]
        parts += [f"{printable(name)}={_quoted(value)}" for name, value in _fields(record).items()]
        line = "  ".join(parts)
        start = _COLOURS.get(record.levelname)
        if self._colour and start:
            line = f"{start}{line}\x1b[0m"
        if record.exc_info and record.exc_info[0] is not None:
            trace = _masked(self.formatException(record.exc_info))
            line = "\n".join([line, *("    " + printable(row) for row in trace.splitlines())])
        return line


def _time(record: logging.LogRecord) -> str:
    return rfc3339(round(record.created * 1_000_000) * 1000)


def _event(record: logging.LogRecord) -> str:
    event = getattr(record, "holdfast_event", None)
    return event if isinstance(event, str) else record.getMessage()


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields = getattr(record, "holdfast_fields", None)
    if fields is None:  # a record of a library, logged without our logger
        fields = _bound.get({})
    return {name: MASK if _is_secret(name) else _plain(value) for name, value in fields.items()}


def _is_secret(name: str) -> bool:
    return name.lower().rpartition("_")[2] in _SECRET_NAMES


def _masked(text: str) -> str:
    return _SECRET_TEXT.sub(MASK, text)


def _plain(value: object) -> object:
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else str(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex()
    if isinstance(value, HoldfastError):
        return _masked(f"{value.code}: {value.message}")
    if isinstance(value, BaseException):
        return _masked(f"{type(value).__name__}: {value}")
    if isinstance(value, Mapping):
        return {
            str(name): MASK if _is_secret(str(name)) else _plain(item)
            for name, item in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    return _masked(str(value) if isinstance(value, (str, PurePath)) else repr(value))


def _quoted(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    if not isinstance(value, str) or _PLAIN_VALUE.fullmatch(text):
        return printable(text)
    return '"' + printable(text).replace('"', '\\"') + '"'
