"""Disks that fail to sync, once and for ever, below the real programs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.programs import fail_once, failing, programs
from tests.support.world import World, log_tail, under

CLIENT = "sick/a-0"
# The store syncs files and folders with fsync; SQLite's log is synced with fdatasync.
STORE, CATALOG = "posix/io/sync/fsync", "posix/io/sync/fdatasync"


class Sick:
    """A server whose disks fail on demand, and one client with its volume."""

    def __init__(self, top: Path) -> None:
        self.bin = programs(top / "bin", unfit_seconds=2.0, faulty="holdfast-server")
        self.world = World(top / "world", bin=self.bin)
        self.world.top.mkdir()
        self.source, self.out = top / "source", top / "out"
        self.source.mkdir()

    def start(self) -> None:
        self.world.start_server()
        self.world.start_agent(CLIENT, [self.source], HOLDFAST_RESTORE_ROOTS=str(self.out))

    @property
    def server(self) -> int:
        assert self.world.server is not None
        return self.world.server.popen.pid

    def change(self, name: str) -> None:
        (self.source / name).write_bytes(os.urandom(3 << 20))

    def log(self) -> str:
        return log_tail(self.world.agents[CLIENT].log)

    def check(self, snapshot: str) -> None:
        target = self.out / snapshot[:8]
        assert self.world.restore(snapshot, "--target", target)["state"] == "Completed"
        got = under(target, self.source)
        for path in got.iterdir():
            assert path.read_bytes() == (self.source / path.name).read_bytes()


@pytest.fixture(scope="module")
def sick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sick]:
    made = Sick(tmp_path_factory.mktemp("sick"))
    try:
        made.start()
        yield made
    finally:
        unclean = made.world.close()
    assert unclean == []


def test_a_sync_that_fails_once_costs_the_pack_which_is_sent_again(sick: Sick) -> None:
    sick.change("one")
    fail_once(sick.bin, sick.server, STORE)
    done = sick.world.backup(CLIENT)
    assert done["state"] == "Completed"
    assert "store-failed" in sick.log(), "it was said, and repeated"
    assert done["bytes_sent"] > 6 << 20, "the whole pack came again: its first file is gone"
    sick.check(done["snapshot"])


def test_syncs_of_the_store_that_always_fail_fail_the_job_and_the_next_one_is_whole(
    sick: Sick,
) -> None:
    world = sick.world
    before = [row["id"] for row in world.json("snapshots", CLIENT)]
    sick.change("two")
    with failing(sick.bin, sick.server, STORE):
        failed = world.run("backup", CLIENT, "--json")
        assert failed.returncode == 1, failed.stdout + failed.stderr
        assert b"store-failed" in failed.stdout + failed.stderr
        assert [row["id"] for row in world.json("snapshots", CLIENT)] == before
        if before:
            sick.check(before[-1])
    done = world.backup(CLIENT)
    assert done["state"] == "Completed"
    sick.check(done["snapshot"])
    store = [path for path in (world.data / "store").rglob("*") if path.is_file()]
    assert not [path for path in store if ".incoming" in path.parts], "what failed was dropped"


def test_a_catalog_that_cannot_sync_acknowledges_nothing_and_recovers(sick: Sick) -> None:
    world = sick.world
    sick.change("three")
    before = [row["id"] for row in world.json("snapshots", CLIENT)]
    with failing(sick.bin, sick.server, CATALOG):
        failed = world.run("backup", CLIENT, "--json")
        assert failed.returncode == 1, failed.stdout + failed.stderr
        assert b"store-failed" in failed.stdout + failed.stderr
    assert [row["id"] for row in world.json("snapshots", CLIENT)] == before
    world.until_connected(CLIENT)
    done = world.backup(CLIENT)
    assert done["state"] == "Completed"
    sick.check(done["snapshot"])
    world.kill_server()
    world.start_server()
    world.until_connected(CLIENT)
    assert [row["id"] for row in world.json("snapshots", CLIENT)] == [*before, done["snapshot"]]
