"""The tables as migrations make them, and what happens with catalogs of other versions."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from holdfast_contract.errors import Conflict
from holdfast_server.catalog import events, migrate
from holdfast_server.catalog.connection import Catalog, open_catalog
from holdfast_server.catalog.packing import pack
from holdfast_server.catalog.schema import metadata
from tests.support.uploads import TickingClock

LATER = '''"""Later."""
import sqlalchemy as sa
from alembic import op
revision = "9999"
down_revision = "{newest}"
def upgrade():
    op.create_table("later", sa.Column("key", sa.Integer(), primary_key=True))
    {trouble}
'''


def opened(folder: Path) -> Catalog:
    return open_catalog("sqlite:", folder, TickingClock())


def add_migration(folder: Path, patch: pytest.MonkeyPatch, trouble: str = "") -> None:
    """Let the product know of one migration more."""
    scripts = folder / "migrations"
    shutil.copytree(migrate._SCRIPTS, scripts, dirs_exist_ok=True)
    newest = ScriptDirectory.from_config(migrate.alembic_config()).get_current_head()
    text = LATER.format(trouble=trouble, newest=newest)
    (scripts / "versions" / "9999_later.py").write_text(text)
    patch.setattr(migrate, "_SCRIPTS", scripts)


def tables(path: Path) -> set[str]:
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    connection.close()
    return {row[0] for row in rows}


def test_migrations_make_the_tables_that_the_code_uses(tmp_path: Path) -> None:
    catalog = opened(tmp_path)
    with catalog._writer.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    catalog.close()


def test_indexes_and_options_of_tables_are_those_of_the_code(tmp_path: Path) -> None:
    opened(tmp_path).close()
    wanted = {
        "chunks": "WITHOUT ROWID",
        "session_ids": "WITHOUT ROWID",
        "commit_log": "WITHOUT ROWID",
        "leave_log": "WITHOUT ROWID",
        "clients": "AUTOINCREMENT",
        "ix_chunks_damaged": "WHERE state = 4",
        "uq_snapshots_client_key_seq": "UNIQUE",
    }
    connection = sqlite3.connect(tmp_path / "catalog.sqlite")
    found = dict(connection.execute("SELECT name, sql FROM sqlite_master").fetchall())
    connection.close()
    assert {name: option in found[name] for name, option in wanted.items()} == dict.fromkeys(
        wanted, True
    )


def test_the_names_of_the_scripts_are_the_revisions_of_alembic_in_their_order() -> None:
    scripts = ScriptDirectory.from_config(migrate.alembic_config())
    in_order = [script.revision for script in scripts.walk_revisions()][::-1]
    assert migrate.revisions() == in_order
    assert scripts.get_heads() == [migrate.revisions()[-1]]


def test_a_catalog_of_this_version_is_opened_without_alembic(tmp_path: Path) -> None:
    opened(tmp_path).close()
    program = (
        "import sys; from pathlib import Path; from holdfast_contract.clock import SystemClock\n"
        "from holdfast_server.catalog.connection import open_catalog\n"
        "open_catalog('sqlite:', Path(sys.argv[1]), SystemClock()).close()\n"
        "import holdfast_server.runtime\n"
        "sys.exit('alembic' in sys.modules)\n"
    )
    # A constant program on a folder of this test.
    done = subprocess.run([sys.executable, "-c", program, tmp_path], check=False)
    assert done.returncode == 0


def test_a_new_catalog_needs_no_copy(tmp_path: Path) -> None:
    opened(tmp_path).close()
    assert [path.name for path in tmp_path.iterdir()] == ["catalog.sqlite"]


def test_an_older_catalog_is_copied_and_migrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    catalog = opened(data)
    events.add(catalog, "test", "before")
    catalog.close()
    add_migration(tmp_path, monkeypatch)
    catalog = opened(data)
    assert [event.message for event in events.listed(catalog)] == ["before"]
    catalog.close()
    assert "later" in tables(data / "catalog.sqlite")
    assert "later" not in tables(data / "catalog.sqlite.before-9999")
    assert "events" in tables(data / "catalog.sqlite.before-9999")


def test_a_migration_that_fails_leaves_the_catalog_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    opened(data).close()
    add_migration(tmp_path, monkeypatch, trouble="raise ArithmeticError")
    with pytest.raises(ArithmeticError):
        opened(data)
    assert "later" not in tables(data / "catalog.sqlite")
    monkeypatch.undo()
    opened(data).close()


def test_a_newer_catalog_is_refused_and_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    add_migration(tmp_path, monkeypatch)
    opened(data).close()
    monkeypatch.undo()
    with pytest.raises(Conflict, match="newer version"):
        opened(data)
    assert "later" in tables(data / "catalog.sqlite")


def catalog_of_the_first_version(folder: Path, count: int) -> None:
    """Make a catalog with `count` events as the first version left it."""
    path = folder / "catalog.sqlite"
    engine = create_engine(f"sqlite:///{path}")
    config = migrate.alembic_config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    engine.dispose()
    columns = "time_ns, kind, client, job, message, details"
    with sqlite3.connect(path) as old:
        old.executemany(
            f"INSERT INTO events ({columns}) VALUES (?, 'test', 'shop/db-0', '', ?, ?)",
            [(number, f"event {number}", pack({"number": number})) for number in range(count)],
        )
    old.close()


def test_the_events_of_the_first_version_become_a_chain(tmp_path: Path) -> None:
    catalog_of_the_first_version(tmp_path, 3)
    catalog = opened(tmp_path)
    found = events.listed(catalog)
    assert [event.message for event in found] == ["event 0", "event 1", "event 2"]
    assert [event.details for event in found] == [{"number": number} for number in range(3)]
    assert events.trail(catalog) == (3, None)
    assert events.add(catalog, "test", "after") == 4
    assert events.trail(catalog) == (4, None)
    catalog.close()
    copy = sqlite3.connect(tmp_path / "catalog.sqlite.before-0002")
    assert copy.execute("SELECT count(*) FROM events").fetchone() == (3,)
    copy.close()


def test_a_catalog_of_the_first_version_without_events_begins_the_chain(tmp_path: Path) -> None:
    catalog_of_the_first_version(tmp_path, 0)
    catalog = opened(tmp_path)
    assert events.trail(catalog) == (0, None)
    assert events.add(catalog, "test", "first") == 1
    assert events.trail(catalog) == (1, None)
    catalog.close()


def test_a_migrated_catalog_has_the_tables_of_a_new_one(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    catalog_of_the_first_version(old, 2)
    opened(old).close()
    opened(new).close()
    shapes = []
    for folder in (old, new):
        connection = sqlite3.connect(folder / "catalog.sqlite")
        query = "SELECT name, sql FROM sqlite_master WHERE tbl_name = 'events' ORDER BY name"
        shapes.append(connection.execute(query).fetchall())
        connection.close()
    assert shapes[0] == shapes[1]
