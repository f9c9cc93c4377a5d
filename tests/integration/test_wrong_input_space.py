"""A server whose store is full: jobs wait, then fail with 14; nothing that was sent is lost."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.disks import fill, make_room, small_disk
from tests.support.programs import programs
from tests.support.world import World, log_tail

CLIENT = "full/a-0"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[World]:
    """A server whose store lies on a file system of 64 MiB, 16 MiB of it reserved."""
    store = tmp_path / "store"
    store.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64M", "t", store], check=True)
    # A minute is asked for by a unit test of the agent's patience.
    world = World(tmp_path / "world", bin=programs(tmp_path / "bin", unfit_seconds=10.0))
    world.top.mkdir()
    try:
        world.start_server("--store", f"file:{store}")
        yield world
        assert world.close() == []
    finally:
        world.close()
        subprocess.run(["umount", "-l", store], check=True)


def test_a_full_store_fails_the_job_with_14_and_the_next_one_reuses_what_was_sent(
    small: World, tmp_path: Path
) -> None:
    world = small
    source = tmp_path / "source"
    source.mkdir()
    (source / "small").write_bytes(b"small")
    world.start_agent(CLIENT, [source], HOLDFAST_RESTORE_ROOTS=str(tmp_path / "out"))
    kept = world.backup(CLIENT)["snapshot"]
    ballast = tmp_path / "store" / "ballast"
    ballast.write_bytes(bytes(24 << 20))
    for number in range(6):
        (source / f"big{number}").write_bytes(os.urandom(5 << 20))
    job = world.detached(CLIENT)
    log = world.agents[CLIENT].log
    world.until(lambda: "no-space" in log_tail(log), "the agent says that it waits for room")
    assert world.job(job)["state"] in ("Running", "Finalizing")
    row = world.wait(job)
    assert row["state"] == "Failed", row
    assert row["error"]["code"] == "no-space"
    assert world.run("job", "wait", job).returncode == 14
    sent = row["progress"]["bytes_sent"]
    assert sent > 10 << 20
    assert world.get("/healthz") in (200, 503)
    assert [r["id"] for r in world.json("snapshots")] == [kept], "nothing half is shown"
    back = world.restore(kept, "--target", tmp_path / "out")
    assert back["state"] == "Completed", "what is kept can be restored while the store is full"
    ballast.unlink()
    done = world.backup(CLIENT)
    assert done["state"] == "Completed"
    assert done["bytes_sent"] < 30 << 20, "what was uploaded before is not sent again"
    again = world.restore(done["snapshot"], "--target", tmp_path / "out", "--verify")
    assert again["state"] == "Completed"


def test_a_full_catalog_is_said_keeps_what_stands_and_goes_on_with_room(tmp_path: Path) -> None:
    world = World(tmp_path / "world", bin=programs(tmp_path / "bin", unfit_seconds=4.0))
    world.top.mkdir()
    source, catalog = tmp_path / "source", tmp_path / "catalog"
    source.mkdir()
    (source / "file").write_bytes(os.urandom(100_000))
    with small_disk(catalog, mebibytes=4):
        try:
            world.start_server("--catalog", f"sqlite:{catalog}/catalog.sqlite")
            world.start_agent(CLIENT, [source], HOLDFAST_RESTORE_ROOTS=str(tmp_path / "out"))
            kept = world.backup(CLIENT)["snapshot"]
            fill(catalog)
            refused = world.run("backup", CLIENT, "--json")
            for _ in range(20):
                # Pages that the catalog's files have already may still take a few jobs.
                if refused.returncode == 14:
                    break
                refused = world.run("backup", CLIENT, "--json")
            assert refused.returncode == 14, refused.stdout + refused.stderr
            assert b"full" in refused.stderr
            standing = [row["id"] for row in world.json("snapshots")]
            assert kept in standing, "what stands is shown and can be read"
            make_room(catalog)
            world.until_connected(CLIENT)
            done = world.backup(CLIENT)
            assert done["state"] == "Completed"
            rows = [row["id"] for row in world.json("snapshots")]
            assert rows[: len(standing)] == standing
            assert rows[-1] == done["snapshot"]
            assert world.restore(kept, "--target", tmp_path / "out")["state"] == "Completed"
            assert world.close() == []
        finally:
            world.close()
