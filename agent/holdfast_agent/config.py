"""The agent's settings: what its pod decides."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from holdfast_contract.errors import UsageError
from holdfast_contract.protocol.control import Browse, Mode
from holdfast_contract.settings.kinds import (
    ABSOLUTE_PATH,
    PATH,
    SERVER_URL,
    SIZE,
    TEXT,
    bounded,
    choice,
    integer,
    many,
    optional,
)
from holdfast_contract.settings.table import Program, Setting, Settings

VERSION = "0.1.0"
_MIB = 1 << 20


class ChangeHints(StrEnum):
    """Whether events of the kernel spare a backup the reading of directories."""

    AUTO = "auto"
    OFF = "off"


SERVER = Setting(
    "server", optional(SERVER_URL), None, "URL of the server, such as https://backup:9440"
)
CA = Setting(
    "ca", optional(PATH), None, "file with the server's CA certificate; default: the system's"
)
STATE = Setting("state", optional(ABSOLUTE_PATH), None, "directory for identity, journal and cache")
ROOTS: Setting[tuple[Path, ...]] = Setting(
    "roots", many(ABSOLUTE_PATH, separator=":"), (), "all that may ever be read"
)
RESTORE = Setting(
    "restore",
    choice(*Mode),
    Mode.IN_PLACE.value,
    "where a restore may write: the original paths too, only a --target, or nowhere",
)  # fmt: skip
RESTORE_ROOTS: Setting[tuple[Path, ...]] = Setting(
    "restore_roots", many(ABSOLUTE_PATH, separator=":"), (), "all that a restore may ever write",
    default_text="the roots",
)  # fmt: skip
BROWSE = Setting(
    "browse", choice(*Browse), Browse.NAMES.value, "what may be shown through the server: names,"
    " file content too, or nothing",
)  # fmt: skip
KEY_FILE = Setting("key_file", optional(PATH), None, "the domain's key file")
CLIENT = Setting(
    "client", optional(TEXT), None, "name to propose when enrolling", default_text="the host name"
)
ENROL_TOKEN_FILE = Setting(
    "enrol_token_file", optional(PATH), None, "one-time token, read while the state has no identity"
)
WORKERS = Setting("workers", integer(1, 16), 2, "threads that hash, compress and seal")
MEMORY_MAX = Setting(
    "memory_max", bounded(SIZE, 96 * _MIB, 1 << 40), 160 * _MIB, "peak resident size of the process"
)
CHANGE_HINTS = Setting(
    "change_hints", choice(*ChangeHints), ChangeHints.AUTO.value, "auto: leave directories unread"
    " in which nothing has happened since the last backup; off: read all of them, always",
)  # fmt: skip

PROGRAM = Program(
    name="holdfast-agent",
    version=VERSION,
    summary="Backs up and restores this pod's paths on the server's command. Listens on nothing.",
    example=(
        "holdfast-agent --server https://backup:9440 --ca ca.pem --state /var/lib/holdfast"
        " --roots /data --key-file domain.key --enrol-token-file enrol.token"
    ),
    settings=(
        SERVER, CA, STATE, ROOTS, RESTORE, RESTORE_ROOTS, BROWSE, KEY_FILE, CLIENT,
        ENROL_TOKEN_FILE, WORKERS, MEMORY_MAX, CHANGE_HINTS,
    ),
    config_path="/etc/holdfast/agent.toml",
)  # fmt: skip


@dataclass(frozen=True)
class AgentConfig:
    """The settings of one run, complete and checked."""

    server: str
    ca: Path | None
    state: Path
    """Absolute path."""
    roots: tuple[bytes, ...]
    """Absolute paths, at least one."""
    restore: Mode
    restore_roots: tuple[bytes, ...]
    browse: Browse
    key_file: Path
    client: str
    """Name to propose at enrolment: NAME or DOMAIN/NAME."""
    enrol_token_file: Path | None
    workers: int
    memory_max_bytes: int
    has_change_hints: bool


def agent_config(settings: Settings, host_name: str) -> AgentConfig:
    """Return the checked configuration.

    Raises:
        UsageError: something needed is missing.
    """
    server, state, key_file = settings[SERVER], settings[STATE], settings[KEY_FILE]
    for setting, value in ((SERVER, server), (STATE, state), (KEY_FILE, key_file)):
        if value is None:
            raise UsageError(f"{setting.variable} is not set", hint=setting.help)
    if not settings[ROOTS]:
        raise UsageError(f"{ROOTS.variable} is not set", hint=ROOTS.help)
    assert server is not None and state is not None and key_file is not None
    root_paths, restore_paths = settings[ROOTS], settings[RESTORE_ROOTS]
    roots = tuple(os.fsencode(path) for path in root_paths)
    return AgentConfig(
        server=server.rstrip("/"),
        ca=settings[CA],
        state=state,
        roots=roots,
        restore=Mode(settings[RESTORE]),
        restore_roots=tuple(os.fsencode(path) for path in restore_paths) or roots,
        browse=Browse(settings[BROWSE]),
        key_file=key_file,
        client=settings[CLIENT] or host_name,
        enrol_token_file=settings[ENROL_TOKEN_FILE],
        workers=settings[WORKERS],
        memory_max_bytes=settings[MEMORY_MAX],
        has_change_hints=settings[CHANGE_HINTS] == ChangeHints.AUTO.value,
    )
