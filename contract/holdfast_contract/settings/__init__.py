"""One rule for the settings of all three programs.

A program states its settings once, as a table of `Setting`; the flag `--memory-max`, the variable
`HOLDFAST_MEMORY_MAX` and the key `memory_max` of its TOML file follow from the name. `load` is
pure: flags, environment and file come in as values, and each result remembers where it came from.
Precedence: flag > environment > file > default.
"""

from __future__ import annotations

from holdfast_contract.settings.files import ConfigFile, choose_config_file
from holdfast_contract.settings.kinds import (
    ABSOLUTE_PATH,
    BOOLEAN,
    DURATION,
    PATH,
    SERVER_URL,
    SIZE,
    TEXT,
    Kind,
    bounded,
    choice,
    integer,
    many,
    optional,
    parse_duration,
    parse_server_url,
    parse_size,
)
from holdfast_contract.settings.show import show_json, show_text
from holdfast_contract.settings.table import (
    CONFIG,
    LOG_FORMAT,
    LOG_LEVEL,
    Origin,
    Program,
    Setting,
    Settings,
    Source,
    load,
)

__all__ = [
    "ABSOLUTE_PATH",
    "BOOLEAN",
    "CONFIG",
    "DURATION",
    "LOG_FORMAT",
    "LOG_LEVEL",
    "PATH",
    "SERVER_URL",
    "SIZE",
    "TEXT",
    "ConfigFile",
    "Kind",
    "Origin",
    "Program",
    "Setting",
    "Settings",
    "Source",
    "bounded",
    "choice",
    "choose_config_file",
    "integer",
    "load",
    "many",
    "optional",
    "parse_duration",
    "parse_server_url",
    "parse_size",
    "show_json",
    "show_text",
]
