"""A data directory of catalog revision 0001, written once: today's version takes it over whole."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_server.catalog.migrate import newest_revision
from tests.golden import make_directory
from tests.support.golden_directory import ARCHIVE, CLIENTS, Golden, unpack
from tests.support.roundtrip import reader_store, restored_by_reader, unequal
from tests.support.trees import Aspect, Tree, scan
from tests.support.world import BIN, World, under

IS_ROOT = os.geteuid() == 0
RESTORED = 0 if IS_ROOT else 3
"""Who may not give files away is told so: the golden files are root's."""


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Golden]]:
    """The golden directory, served by today's server."""
    world = World(tmp_path_factory.mktemp("golden"))
    found = unpack(world.top)
    world.keys["shop"] = world.top / "shop.key"
    try:
        world.start_server()
        yield world, found
    finally:
        world.close()


def wrong(wanted: Tree, got: Tree) -> list[str]:
    """Return differences between what was backed up then and what came back now."""
    if IS_ROOT:
        return unequal(wanted, got)
    return [line for line in unequal(wanted, got) if f": {Aspect.OWNER}:" not in line]


def restored(target: Path, golden: Golden, snapshot: str) -> Tree:
    """Return what was restored of the golden source; of single paths without what is above."""
    wanted, found = golden.tree(snapshot), scan(under(target, Path(golden.source)))
    return {path: facts for path, facts in found.items() if b"." in wanted or path != b"."}


def test_it_lists_what_it_listed_then(golden: tuple[World, Golden]) -> None:
    world, then = golden
    shown = world.json("snapshots")
    now = {row["id"]: row for row in shown}
    for row in then.snapshots:
        # Fields may be added, never renamed, and none changes its value.
        assert {key: now[row["id"]][key] for key in row} == row
    assert [row["id"] for row in then.snapshots] == [
        row["id"] for row in shown if row["id"] in then.trees
    ]
    names = {row["name"] for row in world.json("clients")}
    assert names >= {row["name"] for row in then.clients}
    jobs = {row["id"]: row["state"] for row in world.json("jobs")}
    assert then.jobs, "it remembers jobs"
    assert all(jobs[row["id"]] == row["state"] for row in then.jobs)


def test_its_references_by_time_mean_the_same(golden: tuple[World, Golden]) -> None:
    world, then = golden
    older, _ = [row for row in then.snapshots if row["client"] == CLIENTS[0]][:2]
    assert world.json("snapshot", "show", f"{CLIENTS[0]}@{older['time']}")["id"] == older["id"]


def test_every_snapshot_is_restored_without_an_agent(golden: tuple[World, Golden]) -> None:
    world, then = golden
    for snapshot in then.trees:
        target = world.top / f"local-{snapshot[:12]}"
        key = ("--key-file", world.keys["shop"])
        world.restore(snapshot, "--local", target, *key, expect=RESTORED)
        assert wrong(then.tree(snapshot), restored(target, then, snapshot)) == []


def test_every_snapshot_is_restored_by_the_reader_alone(golden: tuple[World, Golden]) -> None:
    world, then = golden
    assert set(reader_store(world).snapshots()) >= set(then.trees)
    for snapshot in then.trees:
        with restored_by_reader(world, snapshot, Path(then.source)) as found:
            wanted = then.tree(snapshot)
            if b"." not in wanted:
                del found[b"."]
            assert wrong(wanted, found) == []


def test_its_agents_go_on_from_the_state_that_they_had(golden: tuple[World, Golden]) -> None:
    world, then = golden
    place = world.top / "place"
    place.mkdir()
    for client in CLIENTS:
        world.start_agent(client, [place])
        newest = [row for row in then.snapshots if row["client"] == client][-1]
        assert world.json("verify", newest["id"])["state"] == "Completed"
    newest = [row for row in then.snapshots if row["client"] == CLIENTS[0]][1]
    target = place / "target"
    world.restore(newest["id"], "--target", target, expect=RESTORED)
    assert wrong(then.tree(newest["id"]), restored(target, then, newest["id"])) == []
    # What is there already is found again: the keys, ids and chunks are the same.
    source = under(target, Path(then.source))
    done = world.backup(CLIENTS[1], source)
    assert (done["state"], done["files_new"]) == ("Completed", done["files"])
    assert done["bytes_sent"] < done["bytes"] / 20
    assert done["bytes_new"] < done["bytes"] / 20


def test_the_catalog_that_there_was_is_kept_beside_the_new_one(
    golden: tuple[World, Golden], tmp_path: Path
) -> None:
    world, _ = golden
    unpack(tmp_path)
    kept = list(world.data.glob("catalog.sqlite.before-*"))
    if newest_revision() == "0001":
        assert kept == []
        return
    assert [path.name for path in kept] == [f"catalog.sqlite.before-{newest_revision()}"]
    assert _dump(kept[0]) == _dump(tmp_path / "server" / "catalog.sqlite")


def _dump(catalog: Path) -> list[str]:
    connection = sqlite3.connect(catalog)
    try:
        return list(connection.iterdump())
    finally:
        connection.close()


def test_a_catalog_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    unpack(tmp_path)
    catalog = tmp_path / "server" / "catalog.sqlite"
    connection = sqlite3.connect(catalog)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    before = _files(tmp_path / "server")
    done = subprocess.run(
        [str(BIN / "holdfast-server"), "--data", str(tmp_path / "server")],
        env={"PATH": os.environ["PATH"]},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 11, done.stderr
    said = done.stderr.decode()
    assert "newer version" in said
    assert "9999" in said
    assert "Traceback" not in said
    assert _files(tmp_path / "server") == before


def _files(folder: Path) -> dict[str, bytes]:
    """Return what must not change: all but locks and the write-ahead log's own files."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("lock", ".lock", "pid")
    }


def test_the_golden_directory_is_never_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ARCHIVE.exists()
    monkeypatch.setattr(make_directory, "TOP", Path("/nonexistent"))
    with pytest.raises(SystemExit, match="never written again"):
        make_directory.main()
