"""What `config show` prints: each value, and where it came from. Secrets are files: paths show."""

from __future__ import annotations

from typing import Any

from holdfast_contract.settings.table import Program, Setting, Settings, Source
from holdfast_contract.text import printable


def show_json(program: Program, settings: Settings) -> dict[str, object]:
    """Return all values as one JSON document; sizes in bytes, durations in seconds."""
    return {
        "program": program.name,
        "version": program.version,
        "settings": [_json_row(settings, setting) for setting in settings.table],
        "unknown_variables": list(settings.unknown_variables),
    }


def _json_row(settings: Settings, setting: Setting[Any]) -> dict[str, object]:
    origin = settings.origin(setting)
    return {
        "name": setting.name,
        "value": setting.kind.plain(settings[setting]),
        "source": origin.source.value,
        "location": origin.location,
        "flag": setting.flag,
        "variable": setting.variable,
    }


def show_text(program: Program, settings: Settings) -> str:
    """Return all values as a table for people, ending with a line break."""
    rows = [("SETTING", "VALUE", "FROM")]
    rows += [_text_row(settings, setting) for setting in settings.table]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [
        f"{name:<{widths[0]}}  {value:<{widths[1]}}  {origin}".rstrip()
        for name, value, origin in rows
    ]
    if settings.unknown_variables:
        names = ", ".join(printable(name) for name in settings.unknown_variables)
        lines += ["", f"not a setting of {program.name}: {names}"]
    return "\n".join(lines) + "\n"


def _text_row(settings: Settings, setting: Setting[Any]) -> tuple[str, str, str]:
    origin = settings.origin(setting)
    value = settings[setting]
    text = setting.kind.text(value)
    if origin.source is Source.DEFAULT:
        text = setting.default_text or text
    return setting.name, printable(text) or "-", printable(str(origin))
