"""TOML files of settings: which one counts, and what stands in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from holdfast_contract.errors import UsageError

CONFIG_BYTES_MAX = 1 << 20
"""A configuration larger than this is some other file given by mistake."""


@dataclass(frozen=True)
class ConfigFile:
    """A parsed file of settings."""

    path: str
    values: Mapping[str, object] = field(default_factory=dict)


def read_config_bytes(path: str) -> bytes | None:
    """Return the bytes of the file at `path` (at most one more than the limit), None if absent.

    Raises:
        UsageError: it exists and cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return file.read(CONFIG_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise UsageError(f"{path}: cannot be read: {exc.strerror}") from exc


def choose_config_file(
    *,
    flags: Mapping[str, Sequence[str]],
    environ: Mapping[str, str],
    usual_path: str,
    read: Callable[[str], bytes | None] = read_config_bytes,
) -> ConfigFile | None:
    """Return the file that `--config` or `HOLDFAST_CONFIG` names, else the usual one if it exists.

    Raises:
        UsageError: the named file is absent, or the file is unreadable or not TOML.
    """
    given = (flags.get("config") or [environ.get("HOLDFAST_CONFIG", "")])[-1]
    path = given or usual_path
    data = read(path) if path else None
    if data is None:
        if given:
            raise UsageError(f"{given}: no such configuration file")
        return None
    return ConfigFile(path, _parse(path, data))


def _parse(path: str, data: bytes) -> dict[str, object]:
    import tomllib  # only where there is a file: it costs 4 ms of an agent's start

    if len(data) > CONFIG_BYTES_MAX:
        raise UsageError(f"{path}: larger than {CONFIG_BYTES_MAX} bytes: not a configuration")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise UsageError(f"{path}: not TOML: {exc}") from exc
