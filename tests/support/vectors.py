"""Golden vectors: where they lie, and how values are written in their JSON."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

FOLDER = Path(__file__).resolve().parents[1] / "golden" / "v1"


def jsonable(value: object) -> Any:
    """Return `value` as JSON values: bytes as hex, structs as objects of their fields."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, msgspec.Struct):
        return jsonable(msgspec.structs.asdict(value))
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return jsonable(value._asdict())
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return value


@cache
def recorded() -> dict[str, Any]:
    """Return what vectors.json says."""
    found: dict[str, Any] = json.loads((FOLDER / "vectors.json").read_text())
    return found


def stored(name: str) -> bytes:
    """Return the bytes of `name`.bin."""
    return (FOLDER / f"{name}.bin").read_bytes()
