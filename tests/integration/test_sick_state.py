"""An agent whose state directory is full or read-only still backs up, slower, and says so."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.disks import fill, make_room, remount, small_disk
from tests.support.world import World, log_tail, under

CLIENT = "ill/a-0"
FILES = 700
"""With 2,000 bytes each they fill more than one bundle, wherever the key has the first one end."""
SENT_BYTES_MAX = 1_100_000
"""Of 4.5 MB: not the large file, and not the first bundle."""


@pytest.fixture
def ill(tmp_path: Path) -> Iterator[World]:
    """A server, and the place for an agent's state: a file system of 8 MiB."""
    world = World(tmp_path / "world")
    world.top.mkdir()
    with small_disk(world.top / "state", mebibytes=8):
        try:
            world.start_server()
            yield world
            assert world.close() == []
        finally:
            world.close()


def start(world: World, source: Path) -> None:
    out = str(world.top / "out")
    world.start_agent(CLIENT, [source], HOLDFAST_RESTORE_ROOTS=out)


def check(world: World, source: Path, snapshot: str) -> None:
    target = world.top / "out" / snapshot[:8]
    assert world.restore(snapshot, "--target", target)["state"] == "Completed"
    got = under(target, source)
    names = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    assert names == {path.relative_to(got) for path in got.rglob("*") if path.is_file()}
    assert all((source / name).read_bytes() == (got / name).read_bytes() for name in names)


def test_a_full_and_then_read_only_state_costs_time_and_no_backup(
    ill: World, tmp_path: Path
) -> None:
    world, state, rng = ill, ill.top / "state", random.Random(4)
    source = tmp_path / "source"
    for number in range(FILES):
        folder = source / f"d{number % 5}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"f{number}").write_bytes(rng.randbytes(2000))
    (source / "big").write_bytes(rng.randbytes(3 << 20))
    start(world, source)
    world.backup(CLIENT)
    for round_number in range(2):
        fill(state)
        (source / f"new {round_number}").write_bytes(rng.randbytes(20_000))
        done = world.backup(CLIENT)
        assert (done["state"], done["files"]) == ("Completed", FILES + 2 + round_number), done
        assert done["bytes_sent"] < SENT_BYTES_MAX, "all of it is read, not all is sent"
    check(world, source, done["snapshot"])
    log = log_tail(world.agents[CLIENT].log)
    assert "the journal cannot keep" in log
    assert "the tree cache cannot be kept" in log or "no tree cache" in log
    assert "defect" not in log
    # A restart on a state that cannot be written at all.
    assert world.stop_agent(CLIENT) == 0
    make_room(state)
    remount(state, "ro")
    start(world, source)
    (source / "new 2").write_bytes(rng.randbytes(20_000))
    done = world.backup(CLIENT)
    assert (done["state"], done["files"]) == ("Completed", FILES + 4)
    check(world, source, done["snapshot"])
    assert world.stop_agent(CLIENT) == 0
    # Everything is as it was once there is room: the parent's tree is fetched, nothing is read.
    remount(state, "rw")
    start(world, source)
    again = world.backup(CLIENT)
    assert again["files_unmodified"] == again["files"] == FILES + 4
    assert again["bytes_sent"] < 100_000
    assert world.backup(CLIENT)["bytes_sent"] < 10_000
