"""Replicas through the real commands: what one has stored, the others neither send nor lose."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.reader_world import READER
from tests.support.roundtrip import reader_store, restored_by_reader, unequal
from tests.support.trees import scan
from tests.support.world import World

FILES, SIZE = 450, 20_000
"""More than 8 MiB: below that no relative's tree is fetched."""


@pytest.fixture
def volumes(tmp_path: Path) -> Iterator[list[Path]]:
    """Return three volumes with the same files, but for a few of each that spoil every bundle."""
    made = []
    for number in range(3):
        volume = tmp_path / f"pod-{number}"
        rng = random.Random(number)
        for index in range(FILES):
            path = volume / f"d{index // 50}" / f"f{index:03d}"
            path.parent.mkdir(parents=True, exist_ok=True)
            same = random.Random(f"base {index}").randbytes(SIZE)
            path.write_bytes(rng.randbytes(SIZE) if number and index % 15 == 7 else same)
        made.append(volume)
    yield made


def is_whole(world: World, snapshot: str, volume: Path, domain: str) -> bool:
    """Tell whether the stand-alone reader restores a snapshot as the volume is."""
    with restored_by_reader(world, snapshot, volume, domain=domain) as got:
        return unequal(scan(volume), got) == []


def finished(world: World, job: str) -> dict[str, Any]:
    done = world.wait(job)
    assert done["state"] == "Completed", done
    return dict(done["result"])


def test_replicas_store_once_what_they_share_as_long_as_the_domain_says_so(
    world: World, volumes: list[Path]
) -> None:
    clients = [f"fleet/db-{number}" for number in range(4)]
    for client, volume in zip(clients, [*volumes, volumes[2]], strict=True):
        world.start_agent(client, [volume])
    jobs = [world.detached(client) for client in clients[:2]]
    first, second = (finished(world, job) for job in jobs)
    own = FILES // 15 * SIZE
    assert first["bytes_new"] == FILES * SIZE
    assert second["bytes_new"] == own
    assert second["bytes_sent"] < own * 1.2
    assert is_whole(world, second["snapshot"], volumes[1], "fleet")
    events = world.json("events", "--client", clients[1])
    named = [row["details"]["of"] for row in events if row["kind"] == "reference-granted"]
    assert named == [clients[0]]
    # Their trees are damaged: the third does without them, and loses nothing.
    spoil_trees(world, "fleet")
    third = world.backup(clients[2])
    assert third["state"] == "Completed"
    assert third["bytes_new"] > 2 * own
    assert is_whole(world, third["snapshot"], volumes[2], "fleet")
    # The fourth has the files of the third, and may not look.
    words = ("domain", "set", "fleet", "--share-references", "off")
    shown = world.json(*words, HOLDFAST_KEY_FILE=str(world.domain("fleet")))
    assert shown["share_references"] is False
    (volumes[2] / "d0" / "f000").write_bytes(os.urandom(SIZE))
    fourth = world.backup(clients[3])
    kinds = [row["kind"] for row in world.json("events", "--client", clients[3])]
    assert fourth["bytes_new"] > SIZE
    assert "reference-granted" not in kinds


def spoil_trees(world: World, domain: str) -> None:
    """Flip a byte in every stored tree chunk."""
    store = reader_store(world, domain)
    store.index()
    count = 0
    for copies in store.copies.values():
        for pack, entry in copies:
            if entry[5] == READER.TREE:
                with open(os.path.join(store.root, pack), "r+b") as file:
                    file.seek(entry[2] + entry[3] - 1)
                    last = file.read(1)[0]
                    file.seek(-1, os.SEEK_CUR)
                    file.write(bytes([last ^ 1]))
                count += 1
    assert count
