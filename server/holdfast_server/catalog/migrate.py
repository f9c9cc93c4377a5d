"""Brings the catalog's tables to this version, after a copy of what there was.

Alembic is imported only where there is something to migrate: it costs 8 MB and a quarter of the
start.
"""

from __future__ import annotations

import errno
import filecmp
import os
import sqlite3
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import Engine, inspect

from holdfast_contract.errors import Conflict, NoSpace, StoreFailed

if TYPE_CHECKING:
    from alembic.config import Config

_SCRIPTS: Final = Path(__file__).parent / "migrations"


def alembic_config() -> Config:
    """Return what alembic needs; there is no ini file."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def newest_revision() -> str:
    """Return the revision of this version's tables."""
    return revisions()[-1]


def migrate(engine: Engine, path: Path) -> None:
    """Bring the catalog behind `engine`, which lies in `path`, to this version's tables.

    Where there is something to migrate, `path` is copied to `path.before-REVISION` first. A copy of
    an earlier migration is kept beside it: who went back to it and comes again has two.

    Raises:
        Conflict: a newer version wrote it.
        NoSpace, StoreFailed: the copy could not be made.
    """
    known = revisions()
    found = _revision_of(engine)
    newest = newest_revision()
    if found == newest:
        return
    if found is not None and found not in known:
        raise Conflict(
            f"the catalog was written by a newer version (revision {found})",
            hint="install that version again, or restore the copy that it made before it migrated",
        )
    if found is not None:
        _keep(path, path.with_name(f"{path.name}.before-{newest}"))
    _upgrade(engine)


def revisions() -> list[str]:
    """Return the revisions that this version knows, oldest first: how its scripts' names begin."""
    scripts = (_SCRIPTS / "versions").glob("[0-9]*_*.py")
    return sorted(script.name.partition("_")[0] for script in scripts)


def _revision_of(engine: Engine) -> str | None:
    """Return the revision that wrote the catalog; None where there are no tables yet."""
    with engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        row = connection.exec_driver_sql("SELECT version_num FROM alembic_version").one_or_none()
    return None if row is None else str(row[0])


def _upgrade(engine: Engine) -> None:
    from alembic import command

    config = alembic_config()
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
