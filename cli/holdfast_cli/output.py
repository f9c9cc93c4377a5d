"""What the command prints: JSON for scripts, aligned text for people, never control characters."""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import chain, islice
from typing import Any, TextIO

import msgspec

from holdfast_contract.text import printable


def print_json(value: object, stream: TextIO | None = None) -> None:
    """Print one document on a line."""
    out = stream or sys.stdout
    out.write(msgspec.json.encode(value).decode() + "\n")
    out.flush()


def print_json_rows(rows: Iterable[object]) -> None:
    """Print rows as one JSON array, each as it comes: a tree may have millions of them.

    Nothing is printed where the first row cannot be had; an error later leaves the array open.
    """
    given = iter(rows)
    first = list(islice(given, 1))
    out = sys.stdout
    out.write("[")
    for number, row in enumerate(chain(first, given)):
        out.write((",\n" if number else "") + msgspec.json.encode(row).decode())
    out.write("]\n")
    out.flush()


def print_error(
    code: str, message: str, hint: str, exit_code: int, *, job: str = "", details: object = None
) -> None:
    """Print an error as one JSON document on standard error."""
    row: dict[str, object] = {"type": "error", "code": code, "message": message}
    row |= {"hint": hint, "exit": exit_code}
    if job:
        row["job"] = job
    if details:
        row["details"] = details
    print_json(row, sys.stderr)


def say(text: str) -> None:
    """Print a line for people."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def say_lines(lines: Iterable[str]) -> None:
    """Print lines as they come: at once on a terminal, otherwise in blocks."""
    out = sys.stdout
    is_watched = out.isatty()
    for line in lines:
        out.write(line + "\n")
        if is_watched:
            out.flush()
    out.flush()


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
    found = datetime.fromisoformat(text).replace(tzinfo=UTC)
    try:
        found = found.astimezone()
    except (OverflowError, OSError, ValueError):
        # A file's time may be at the very end of what can be told; UTC tells it.
        found = found.replace(tzinfo=UTC)
    return f"{found.replace(tzinfo=None).isoformat(' ', 'seconds')} {found.tzname()}"


def short(identifier: str | None) -> str:
    """Return the first 12 digits of an id."""
    return identifier[:12] if identifier else "-"


def shown_path(row: dict[str, Any]) -> str:
    """Return the path of a row for people: nothing in it acts on a terminal."""
    return shown_name(str(row.get("path", "")), row.get("path_b64"))


def shown_name(text: str, encoded: str | None) -> str:
    """Return a name for people; `encoded` has its bytes (base64) where they are not UTF-8."""
    if encoded is not None:
        text = os.fsdecode(base64.b64decode(encoded))
    return printable(text)
