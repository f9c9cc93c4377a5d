"""Brings the catalog's tables to this version, after a copy of what there was."""

from __future__ import annotations

import errno
import filecmp
import os
import sqlite3
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine

from holdfast_contract.errors import Conflict, NoSpace, StoreFailed

_SCRIPTS: Final = Path(__file__).parent / "migrations"


def alembic_config() -> Config:
    """Return what alembic needs; there is no ini file."""
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def newest_revision() -> str:
    """Return the revision of this version's tables."""
    newest = ScriptDirectory.from_config(alembic_config()).get_current_head()
    assert newest is not None
    return newest


def migrate(engine: Engine, path: Path) -> None:
    """Bring the catalog behind `engine`, which lies in `path`, to this version's tables.

    Where there is something to migrate, `path` is copied to `path.before-REVISION` first. A copy of
    an earlier migration is kept beside it: who went back to it and comes again has two.

    Raises:
        Conflict: a newer version wrote it.
        NoSpace, StoreFailed: the copy could not be made.
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
        _keep(path, path.with_name(f"{path.name}.before-{newest}"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _keep(source: Path, target: Path) -> None:
    """Copy a catalog to `target`; where another copy lies there, to the next free name behind it.

    The same catalog is kept once: a migration that fails at every start leaves one copy.
    """
    partial = target.with_name(f"{target.name}.partial")
    try:
        _copy(source, partial)
        place = _free_place(partial, target)
        if place is None:
            partial.unlink()
        else:
            partial.rename(place)
        _fsync(target.parent)
    except (OSError, sqlite3.Error) as exc:
        partial.unlink(missing_ok=True)
        message = f"the catalog could not be copied before its migration: {exc}"
        if _is_full(exc):
            raise NoSpace(message, hint="the copy needs as much room as the catalog") from exc
        raise StoreFailed(message) from exc


def _copy(source: Path, target: Path) -> None:
    """Copy a catalog as it is now, what stands in its write-ahead log included."""
    target.unlink(missing_ok=True)
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)
    _fsync(target)


def _free_place(made: Path, target: Path) -> Path | None:
    """Return the first free name for a copy, None where the same one is kept already."""
    for number in count(1):
        place = target if number == 1 else target.with_name(f"{target.name}.{number}")
        if not place.exists():
            return place
        if filecmp.cmp(made, place, shallow=False):
            return None
    raise AssertionError("numbers do not end")


def _is_full(exc: OSError | sqlite3.Error) -> bool:
    if isinstance(exc, OSError):
        return exc.errno in (errno.ENOSPC, errno.EDQUOT)
    return getattr(exc, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
