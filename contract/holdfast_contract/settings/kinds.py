"""Kinds of values: how text becomes a value, and how the value is shown again.

Every parser takes one text and raises InvalidInput with a message that says what was expected;
`load` turns that into a UsageError that says where the text came from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from holdfast_contract.errors import InvalidInput

T = TypeVar("T")

_SIZE = re.compile(r"(\d{1,20})(?:([kmgt])(?:ib)?)?", re.IGNORECASE | re.ASCII)
_SIZE_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_DURATION = re.compile(r"(\d{1,12})([smhdw]?)", re.ASCII)
_DURATION_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SECRET_QUERY = re.compile(r"([?&](?:password|secret|token|key)=)[^&]*", re.IGNORECASE)
_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True}
_BOOLEANS |= {"false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True)
class Kind(Generic[T]):
    """How the texts given for a setting become one value of type T."""

    metavar: str
    """What `--help` shows in place of a value; empty: the flag takes none."""
    read: Callable[[Sequence[str]], T]
    """From the texts (one, or several for a list) to the value; raises InvalidInput."""
    plain: Callable[[T], object]
    """From the value to what JSON can hold; without secrets."""
    text: Callable[[T], str]
    """From the value to what a person reads, and could type again; without secrets."""
    separator: str = ""
    """Cuts a list that comes as one text; empty: not a list."""


def _last(parse: Callable[[str], T]) -> Callable[[Sequence[str]], T]:
    return lambda texts: parse(texts[-1])


def _same(value: object) -> object:
    return value


def simple(
    metavar: str,
    parse: Callable[[str], T],
    *,
    plain: Callable[[T], object] = _same,
    text: Callable[[T], str] = str,
) -> Kind[T]:
    """Return the kind of a single value; of a repeated flag the last one counts."""
    return Kind(metavar, _last(parse), plain, text)


def optional(kind: Kind[T]) -> Kind[T | None]:
    """Return `kind` for a setting that may also be absent (its default is None)."""

    def plain(value: T | None) -> object:
        return None if value is None else kind.plain(value)

    def text(value: T | None) -> str:
        return "" if value is None else kind.text(value)

    return Kind(kind.metavar, kind.read, plain, text, kind.separator)


def many(kind: Kind[T], *, separator: str) -> Kind[tuple[T, ...]]:
    """Return the kind of a list: a repeated flag, a TOML list, or one text cut at `separator`."""

    def read(texts: Sequence[str]) -> tuple[T, ...]:
        return tuple(kind.read([text]) for text in texts)

    def plain(values: tuple[T, ...]) -> object:
        return [kind.plain(value) for value in values]

    def text(values: tuple[T, ...]) -> str:
        return separator.join(kind.text(value) for value in values)

    return Kind(f"{kind.metavar}[{separator}...]", read, plain, text, separator)


def bounded(kind: Kind[int], minimum: int, maximum: int) -> Kind[int]:
    """Return `kind` with both bounds allowed, everything outside them refused."""

    def read(texts: Sequence[str]) -> int:
        value = kind.read(texts)
        if not minimum <= value <= maximum:
            bounds = f"{kind.text(minimum)} to {kind.text(maximum)}"
            raise InvalidInput(f"out of bounds: {texts[-1][:120]!r}; allowed is {bounds}")
        return value

    return replace(kind, read=read)


def choice(*allowed: str) -> Kind[str]:
    """Return the kind of one word of `allowed`."""

    def parse(text: str) -> str:
        if text not in allowed:
            raise InvalidInput(f"not one of {', '.join(allowed)}: {text[:120]!r}")
        return text

    return simple("|".join(allowed), parse)


def parse_size(text: str) -> int:
    """Return bytes: a plain integer, or one with K, M, G, T (powers of 1,024): `5M`, `1GiB`.

    Raises:
        InvalidInput: anything else; also `5MB`, which others read as 5,000,000.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidInput(
            f"not a size: {text[:120]!r}; examples: 5M, 800K, 1048576 (powers of 1,024)"
        )
    return int(match[1]) * _SIZE_UNITS[(match[2] or "").lower()]


def size_text(size_bytes: int) -> str:
    """Return the shortest text that `parse_size` reads as exactly `size_bytes`."""
    for unit in ("T", "G", "M", "K"):
        whole, rest = divmod(size_bytes, _SIZE_UNITS[unit.lower()])
        if whole and not rest:
            return f"{whole}{unit}"
    return str(size_bytes)


def parse_duration(text: str) -> int:
    """Return seconds: a plain integer, or one with s, m, h, d, w: `90`, `30m`, `1h`, `7d`.

    Raises:
        InvalidInput: anything else.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise InvalidInput(f"not a duration: {text[:120]!r}; examples: 30s, 10m, 1h, 7d")
    return int(match[1]) * _DURATION_UNITS[match[2]]


def duration_text(seconds: int) -> str:
    """Return the shortest text that `parse_duration` reads as exactly `seconds`."""
    for unit in ("d", "h", "m"):
        whole, rest = divmod(seconds, _DURATION_UNITS[unit])
        if whole and not rest:
            return f"{whole}{unit}"
    return f"{seconds}s"


def parse_boolean(text: str) -> bool:
    """Return the truth of true/yes/on/1 or false/no/off/0, in any case.

    Raises:
        InvalidInput: anything else.
    """
    value = _BOOLEANS.get(text.strip().lower())
    if value is None:
        raise InvalidInput(f"neither true nor false: {text[:120]!r}")
    return value


def parse_path(text: str) -> Path:
    """Return `text` as a path, relative ones left as they are.

    Raises:
        InvalidInput: it is empty or holds a NUL.
    """
    if not text or "\0" in text:
        raise InvalidInput("a path is empty or holds a NUL")
    return Path(text)


def parse_absolute_path(text: str) -> Path:
    """Return `text` as a path that begins with a slash and has no `..` in it.

    Raises:
        InvalidInput: it is not of that form.
    """
    path = parse_path(text)
    if not path.is_absolute() or ".." in path.parts:
        raise InvalidInput(f"not an absolute path without '..': {text[:120]!r}")
    return path


def parse_text(text: str) -> str:
    """Return `text` as it is.

    Raises:
        InvalidInput: it is empty.
    """
    if not text:
        raise InvalidInput("the value is empty")
    return text


def parse_server_url(text: str) -> str:
    """Return the server's address `https://HOST[:PORT]` without a slash at the end.

    Plain http is accepted only to this machine: a token must not cross a network in clear.

    Raises:
        InvalidInput: another scheme, or a path, user, query or fragment in it.
    """
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise InvalidInput(f"not a server URL: {text[:120]!r}") from exc
    if parts.username is not None or parts.password is not None:
        # Not quoted: what stands before the @ may be a password.
        raise InvalidInput("a server URL holds no user or password; give a token file")
    if not host or parts.path not in ("", "/") or parts.query or parts.fragment or port == 0:
        raise InvalidInput(f"not a server URL: {text[:120]!r}; expected https://HOST:PORT")
    if parts.scheme == "http" and not _is_loopback(host):
        raise InvalidInput("plain http is allowed to this machine only; use https")
    if parts.scheme not in ("http", "https"):
        raise InvalidInput(f"not a server URL: {text[:120]!r}; it begins with https://")
    return f"{parts.scheme}://{parts.netloc}"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def masked_url(url: str) -> str:
    """Return `url` with passwords in its user part and query replaced by `***`."""
    url = _SECRET_QUERY.sub(r"\1***", url)
    head, at, tail = url.rpartition("@")
    scheme, slashes, user = head.partition("//")
    if not at or not slashes or ":" not in user:
        return url
    return f"{scheme}//{user.partition(':')[0]}:***@{tail}"


def integer(minimum: int, maximum: int) -> Kind[int]:
    """Return the kind of a plain integer within both bounds."""

    def parse(text: str) -> int:
        if re.fullmatch(r"-?\d{1,18}", text.strip(), re.ASCII) is None:
            raise InvalidInput(f"not a whole number: {text[:120]!r}")
        return int(text)

    return bounded(simple("N", parse), minimum, maximum)


def _truth(value: bool) -> str:
    return "true" if value else "false"


TEXT: Kind[str] = simple("TEXT", parse_text)
URL: Kind[str] = simple("URL", parse_text, plain=masked_url, text=masked_url)
SERVER_URL: Kind[str] = simple("URL", parse_server_url)
SIZE: Kind[int] = simple("SIZE", parse_size, text=size_text)
DURATION: Kind[int] = simple("DURATION", parse_duration, text=duration_text)
BOOLEAN: Kind[bool] = simple("", parse_boolean, text=_truth)
PATH: Kind[Path] = simple("PATH", parse_path, plain=str)
ABSOLUTE_PATH: Kind[Path] = simple("PATH", parse_absolute_path, plain=str)

AnyKind = Kind[Any]
