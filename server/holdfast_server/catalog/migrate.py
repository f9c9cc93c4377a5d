"""Brings the catalog's tables to this version, after a copy of what there was."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine

from holdfast_contract.errors import Conflict, StoreFailed

_SCRIPTS: Final = Path(__file__).parent / "migrations"


def alembic_config() -> Config:
    """Return what alembic needs; there is no ini file."""
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def migrate(engine: Engine, path: Path) -> None:
    """Bring the catalog behind `engine`, which lies in `path`, to this version's tables.

    Where there is something to migrate, `path` is copied to `path.before-REVISION` first.

    Raises:
        Conflict: a newer version wrote it.
        StoreFailed: the copy could not be made.
    """
    config = alembic_config()
    scripts = ScriptDirectory.from_config(config)
    newest = scripts.get_current_head()
    with engine.connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    if found == newest:
        return
    known = {script.revision for script in scripts.walk_revisions()}
    if found is not None and found not in known:
        raise Conflict(
            f"the catalog was written by a newer version (revision {found})",
            hint="install that version again, or restore the copy that it made before it migrated",
        )
    if found is not None:
        _copy(path, path.with_name(f"{path.name}.before-{newest}"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _copy(source: Path, target: Path) -> None:
    """Copy a catalog, what stands in its write-ahead log included; an older copy is kept."""
    if target.exists():
        return
    partial = target.with_name(f"{target.name}.partial")
    try:
        partial.unlink(missing_ok=True)
        with sqlite3.connect(source) as old, sqlite3.connect(partial) as new:
            old.backup(new)
        old.close()
        new.close()
        _fsync(partial)
        partial.rename(target)
        _fsync(target.parent)
    except (OSError, sqlite3.Error) as exc:
        raise StoreFailed(f"the catalog could not be copied before its migration: {exc}") from exc


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
