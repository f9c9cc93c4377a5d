"""The table of a program's settings, and how flags, environment and file fill it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from holdfast_contract.errors import InvalidInput, UsageError
from holdfast_contract.settings.files import ConfigFile
from holdfast_contract.settings.kinds import PATH, Kind, choice, optional

T = TypeVar("T")

PREFIX = "HOLDFAST_"
"""Every variable of the product begins so."""


@dataclass(frozen=True, eq=False)
class Setting(Generic[T]):
    """One setting: its name, how it is read, and what holds when nobody says anything."""

    name: str
    """As in the file: lower case, words joined by `_`."""
    kind: Kind[T]
    default: T
    help: str
    """One line: what it does; unit and reason where they are not plain."""
    default_text: str = ""
    """Shown instead of a default that is derived from other settings."""
    in_file: bool = True
    """False for what cannot stand in the file, such as the file's own name."""

    @property
    def flag(self) -> str:
        """`--memory-max` for `memory_max`."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """`HOLDFAST_MEMORY_MAX` for `memory_max`."""
        return PREFIX + self.name.upper()


CONFIG: Setting[Path | None] = Setting(
    "config", optional(PATH), None, "TOML file to read instead of the usual one", in_file=False
)
LOG_LEVEL: Setting[str] = Setting(
    "log_level", choice("debug", "info", "warning", "error"), "info", "least severe level logged"
)
LOG_FORMAT: Setting[str] = Setting(
    "log_format", choice("text", "json"), "text", "log lines for people or for machines"
)


@dataclass(frozen=True)
class Program:
    """What one executable can be told."""

    name: str
    version: str
    summary: str
    """One line for the top of `--help`."""
    example: str
    """A command that works, for the end of `--help`."""
    settings: tuple[Setting[Any], ...]
    """Its own settings; `CONFIG`, `LOG_LEVEL` and `LOG_FORMAT` are added."""
    config_path: str
    """The TOML file that is read if it exists and `--config` does not name another."""

    @property
    def table(self) -> tuple[Setting[Any], ...]:
        """Return all settings, the common ones last; no name twice."""
        table = (*self.settings, CONFIG, LOG_LEVEL, LOG_FORMAT)
        assert len({setting.name for setting in table}) == len(table)
        return table


class Source(Enum):
    """Where a value came from, strongest first."""

    FLAG = "flag"
    ENVIRONMENT = "environment"
    FILE = "file"
    DEFAULT = "default"


@dataclass(frozen=True)
class Origin:
    """Where one value came from."""

    source: Source
    location: str = ""
    """The flag, the variable, or the file's path; empty for a default."""

    def __str__(self) -> str:
        """Return it for a person: `environment HOLDFAST_DATA`."""
        return f"{self.source.value} {self.location}".rstrip()


class Settings:
    """The values of one run, by setting, each with its origin."""

    def __init__(
        self,
        values: Mapping[str, tuple[object, Origin]],
        table: tuple[Setting[Any], ...],
        unknown_variables: tuple[str, ...] = (),
    ) -> None:
        self._values = dict(values)
        self.table = table
        self.unknown_variables = unknown_variables
        """Names (never values) of `HOLDFAST_*` variables that are no setting of this program."""

    def __getitem__(self, setting: Setting[T]) -> T:
        return cast("T", self._values[setting.name][0])

    def origin(self, setting: Setting[Any]) -> Origin:
        """Return where the value of `setting` came from."""
        return self._values[setting.name][1]


def load(
    table: tuple[Setting[Any], ...],
    *,
    flags: Mapping[str, Sequence[str]],
    environ: Mapping[str, str],
    file: ConfigFile | None = None,
) -> Settings:
    """Return every value of `table` by precedence flag > environment > file > default.

    `flags` maps names of settings to the texts given, in order. An empty variable counts as
    absent, as an optional reference in a pod's template leaves it.

    Raises:
        UsageError: a value that its setting cannot read; an unknown key in the file.
    """
    if file is not None:
        _refuse_unknown_keys(table, file)
    values = {setting.name: _value(setting, flags, environ, file) for setting in table}
    known = {setting.variable for setting in table}
    unknown = sorted(name for name in environ if name.startswith(PREFIX) and name not in known)
    return Settings(values, table, tuple(unknown))


def _value(
    setting: Setting[Any],
    flags: Mapping[str, Sequence[str]],
    environ: Mapping[str, str],
    file: ConfigFile | None,
) -> tuple[object, Origin]:
    if flags.get(setting.name):
        texts = _cut(setting.kind, flags[setting.name])
        return _read(setting, texts, Origin(Source.FLAG, setting.flag))
    if environ.get(setting.variable):
        texts = _cut(setting.kind, [environ[setting.variable]])
        return _read(setting, texts, Origin(Source.ENVIRONMENT, setting.variable))
    if file is not None and setting.name in file.values:
        origin = Origin(Source.FILE, file.path)
        return _read(setting, _file_texts(setting, file), origin)
    return setting.default, Origin(Source.DEFAULT)


def _cut(kind: Kind[Any], texts: Iterable[str]) -> list[str]:
    if not kind.separator:
        return list(texts)
    return [part for text in texts for part in text.split(kind.separator) if part]


def _file_texts(setting: Setting[Any], file: ConfigFile) -> list[str]:
    value = file.values[setting.name]
    if isinstance(value, list) and setting.kind.separator:
        # Items of a list are not cut: this is how a path with a separator in it can be given.
        return [_scalar_text(setting, file, item) for item in value]
    return _cut(setting.kind, [_scalar_text(setting, file, value)])


def _scalar_text(setting: Setting[Any], file: ConfigFile, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int)):
        return str(value)
    raise UsageError(
        f"{file.path}: {setting.name}: a {type(value).__name__} cannot stand here",
        hint=setting.help,
    )


def _read(setting: Setting[Any], texts: list[str], origin: Origin) -> tuple[object, Origin]:
    where = str(origin)
    if origin.source is Source.FILE:
        where += f": {setting.name}"
    try:
        return setting.kind.read(texts), origin
    except InvalidInput as exc:
        raise UsageError(f"{where}: {exc.message}", hint=setting.help) from exc


def _refuse_unknown_keys(table: tuple[Setting[Any], ...], file: ConfigFile) -> None:
    known = [setting.name for setting in table if setting.in_file]
    for key in file.values:
        if key not in known:
            import difflib  # only on the way out: it costs 3 ms of every start

            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
            raise UsageError(f"{file.path}: unknown key {key[:120]!r}", hint=hint)
