"""What the command prints: JSON for scripts, aligned text for people, never control characters."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec

from holdfast_contract.text import printable


def print_json(value: object, stream: TextIO | None = None) -> None:
    """Print one document on a line."""
    out = stream or sys.stdout
    out.write(msgspec.json.encode(value).decode() + "\n")
    out.flush()


def say(text: str) -> None:
    """Print a line for people."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def warn(text: str) -> None:
    """Print a line beside the output."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Print rows in columns; `right` numbers the columns that are aligned to the right."""
    cells = [list(head), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    for row in cells:
        parts = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        say("  ".join(parts).rstrip())


def facts(rows: Iterable[tuple[str, str]]) -> None:
    """Print one fact a line."""
    given = list(rows)
    width = max(len(name) for name, _ in given)
    for name, value in given:
        say(f"{name.ljust(width)}  {printable(value)}")


def size(count: int) -> str:
    """Return bytes for people, in IEC units."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def moment(text: str | None) -> str:
    """Return an RFC 3339 time as local time with its zone; a dash for none."""
    if not text:
        return "-"
    parsed = datetime.fromisoformat(text).replace(tzinfo=UTC).astimezone()
    return parsed.strftime("%Y-%m-%d %H:%M:%S %Z")


def short(identifier: str | None) -> str:
    """Return the first 12 digits of an id."""
    return identifier[:12] if identifier else "-"


def shown_path(row: dict[str, Any]) -> str:
    """Return the path of a row for people."""
    return printable(str(row.get("path", "")))
