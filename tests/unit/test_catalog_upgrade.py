"""From every older revision to today's tables: rows stay, and what there was is kept beside."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from holdfast_contract.errors import NoSpace, StoreFailed
from holdfast_server.catalog import migrate
from holdfast_server.catalog.connection import Catalog, open_catalog
from holdfast_server.catalog.migrate import alembic_config, newest_revision
from tests.support.golden_directory import unpack
from tests.support.uploads import TickingClock

Rows = dict[str, list[dict[str, Any]]]
LATER = '''"""Later."""
import sqlalchemy as sa
from alembic import op
revision = "9999"
down_revision = "{newest}"
def upgrade():
    op.create_table("later", sa.Column("key", sa.Integer(), primary_key=True))
    {trouble}
'''


def revisions() -> list[str]:
    """Return every revision of the repository, oldest first."""
    scripts = ScriptDirectory.from_config(alembic_config())
    return [script.revision for script in scripts.walk_revisions()][::-1]


def opened(folder: Path) -> Catalog:
    return open_catalog("sqlite:", folder, TickingClock())


def golden_catalog(folder: Path) -> Path:
    """Return a catalog of revision 0001 with rows in it, alone in a folder of its own."""
    unpacked = folder / "unpacked"
    unpacked.mkdir()
    unpack(unpacked)
    data = folder / "data"
    data.mkdir()
    return Path(shutil.copy(unpacked / "server" / "catalog.sqlite", data))


def raise_to(catalog: Path, revision: str) -> None:
    """Migrate a catalog as the version of that revision would have."""
    engine = create_engine(f"sqlite:///{catalog}")
    config = alembic_config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()


def rows(catalog: Path) -> Rows:
    """Return every row of every table but alembic's own."""
    with closing(sqlite3.connect(catalog)) as connection:
        connection.row_factory = sqlite3.Row
        tables = [row["name"] for row in connection.execute(TABLES)]
        return {
            table: [dict(row) for row in connection.execute(f'SELECT * FROM "{table}"')]
            for table in tables
        }


TABLES = (
    "SELECT name FROM sqlite_master WHERE type = 'table'"
    " AND name NOT LIKE 'sqlite_%' AND name <> 'alembic_version'"
)


def lost(before: Rows, after: Rows) -> Iterator[str]:
    """Yield what is no longer as it was: tables, rows, values of columns that both have."""
    for table, wanted in before.items():
        found = after.get(table)
        if found is None or len(found) != len(wanted):
            yield f"{table}: {None if found is None else len(found)} rows, {len(wanted)} before"
            continue
        for old, new in zip(wanted, found, strict=True):
            yield from (
                f"{table}.{column}: {new[column]!r}, {value!r} before"
                for column, value in old.items()
                if column in new and new[column] != value
            )


@pytest.mark.parametrize("revision", revisions())
def test_rows_of_every_revision_are_in_place_at_the_newest(tmp_path: Path, revision: str) -> None:
    catalog = golden_catalog(tmp_path)
    raise_to(catalog, revision)
    before = rows(catalog)
    filled = {table for table, found in before.items() if found}
    assert filled >= {"snapshots", "chunks", "objects", "clients", "events", "jobs", "tokens"}
    opened(tmp_path / "data").close()
    assert list(lost(before, rows(catalog))) == []
    kept = catalog.with_name(f"catalog.sqlite.before-{newest_revision()}")
    assert kept.exists() == (revision != newest_revision())
    if kept.exists():
        assert rows(kept) == before
        with closing(sqlite3.connect(kept)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            assert found == (revision,)


def test_revisions_are_one_line_that_begins_with_the_golden_one() -> None:
    scripts = ScriptDirectory.from_config(alembic_config())
    assert len(scripts.get_heads()) == 1
    assert revisions()[0] == "0001"


def test_what_a_migration_loses_is_noticed(tmp_path: Path) -> None:
    catalog = golden_catalog(tmp_path)
    before = rows(catalog)
    with closing(sqlite3.connect(catalog)) as connection:
        connection.execute("UPDATE snapshots SET files = files + 1 WHERE seq = 1")
        connection.execute("DELETE FROM tokens")
        connection.commit()
    found = list(lost(before, rows(catalog)))
    assert any(line.startswith("snapshots.files") for line in found)
    assert any(line.startswith("tokens: 0 rows") for line in found)


# --- the copy


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory with an older catalog: this version has one migration more."""
    catalog = golden_catalog(tmp_path)
    raise_to(catalog, "head")
    add_later(tmp_path, monkeypatch)
    return tmp_path / "data"


def add_later(folder: Path, patch: pytest.MonkeyPatch, trouble: str = "") -> None:
    newest = newest_revision()
    scripts = folder / "migrations"
    shutil.copytree(migrate._SCRIPTS, scripts, dirs_exist_ok=True)
    text = LATER.format(newest=newest, trouble=trouble)
    (scripts / "versions" / "9999_later.py").write_text(text)
    patch.setattr(migrate, "_SCRIPTS", scripts)


def copies(data: Path) -> list[str]:
    return sorted(path.name for path in data.glob("catalog.sqlite.before-*"))


def test_who_goes_back_to_the_copy_and_comes_again_has_both(data: Path) -> None:
    first = rows(data / "catalog.sqlite")
    opened(data).close()
    shutil.copy(data / "catalog.sqlite.before-9999", data / "catalog.sqlite")
    with closing(sqlite3.connect(data / "catalog.sqlite")) as connection:
        connection.execute("UPDATE clients SET version = 'a month of the older version'")
        connection.commit()
    second = rows(data / "catalog.sqlite")
    opened(data).close()
    assert copies(data) == ["catalog.sqlite.before-9999", "catalog.sqlite.before-9999.2"]
    assert rows(data / "catalog.sqlite.before-9999") == first
    assert rows(data / "catalog.sqlite.before-9999.2") == second


def test_a_migration_that_fails_at_every_start_leaves_one_copy(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows(data / "catalog.sqlite")
    script = tmp_path / "migrations" / "versions" / "9999_later.py"
    sound = script.read_text()
    script.write_text(sound + "    raise ArithmeticError\n")
    for _ in range(3):
        with pytest.raises(ArithmeticError):
            opened(data)
        assert rows(data / "catalog.sqlite") == before
    assert copies(data) == ["catalog.sqlite.before-9999"]
    script.write_text(sound)
    opened(data).close()
    assert copies(data) == ["catalog.sqlite.before-9999"]


def test_rows_that_stand_only_in_the_log_are_in_the_copy(data: Path) -> None:
    with closing(sqlite3.connect(data / "catalog.sqlite")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("UPDATE clients SET version = 'in the log'")
        connection.commit()
        # As a kill leaves it: nothing of the log has been brought into the catalog.
        for suffix in ("", "-wal"):
            shutil.copy(f"{data}/catalog.sqlite{suffix}", f"{data}/killed{suffix}")
    for suffix in ("", "-wal"):
        (data / f"killed{suffix}").rename(data / f"catalog.sqlite{suffix}")
    opened(data).close()
    found = rows(data / "catalog.sqlite.before-9999")["clients"]
    assert {row["version"] for row in found} == {"in the log"}


@pytest.mark.parametrize(
    ("trouble", "error"),
    [(OSError(28, "No space left on device"), NoSpace), (OSError(5, "I/O error"), StoreFailed)],
)
def test_without_a_copy_nothing_is_migrated(
    data: Path, monkeypatch: pytest.MonkeyPatch, trouble: OSError, error: type[Exception]
) -> None:
    before = rows(data / "catalog.sqlite")

    def broken(path: Path) -> None:
        raise trouble

    monkeypatch.setattr(migrate, "_fsync", broken)
    with pytest.raises(error, match="could not be copied"):
        opened(data)
    assert rows(data / "catalog.sqlite") == before
    assert sorted(path.name for path in data.iterdir()) == ["catalog.sqlite"]
