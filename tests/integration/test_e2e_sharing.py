"""What is shared: chunks between files, snapshots and clients of a domain; nothing across domains.

The stand-alone reader refuses a snapshot whose refs are not exactly what its manifest reaches, so
that a restore with it is the check of both.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.reader_world import READER
from tests.support.roundtrip import reader_store, refs_of, restored_by_reader, unequal
from tests.support.trees import scan
from tests.support.world import World

CLIENT, SIBLING, STRANGER = "shop/web-0", "shop/web-1", "bank/web-0"
LARGE_BYTES = 3 << 20
SMALL_BYTES = 200_000


@dataclass
class Scene:
    """Three clients that look at one volume: two of one domain, one of another."""

    world: World
    volume: Path

    def backup(self, client: str = CLIENT) -> tuple[str, int]:
        """Back the volume up; return the snapshot and the bytes sent, once all checks agree."""
        done = self.world.backup(client)
        assert done["state"] == "Completed"
        snapshot, domain = done["snapshot"], client.partition("/")[0]
        with restored_by_reader(self.world, snapshot, self.volume, domain=domain) as got:
            assert unequal(scan(self.volume), got) == []
        assert self.world.json("verify", snapshot)["state"] == "Completed"
        return snapshot, int(done["bytes_sent"])


@pytest.fixture(scope="module")
def scene(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = Scene(world, tmp_path_factory.mktemp("volume"))
    for client in (CLIENT, SIBLING, STRANGER):
        world.start_agent(client, [made.volume])
    yield made


@pytest.fixture
def volume(scene: Scene) -> Path:
    """Return the volume, empty again."""
    for entry in list(scene.volume.iterdir()):
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return scene.volume


def contents_of(world: World, snapshot: str) -> set[bytes]:
    """Return the ids in a snapshot's refs that are of content; trees have chunks of their own."""
    store = reader_store(world)
    store.index()
    kinds = {chunk: copies[0][1][5] for chunk, copies in store.copies.items()}
    return {chunk for chunk in refs_of(world, snapshot) if kinds[chunk] == READER.CONTENT}


@pytest.mark.parametrize("size", [LARGE_BYTES, SMALL_BYTES], ids=["chunks", "bundles"])
def test_refs_keep_a_shared_chunk_until_its_last_file_goes(
    scene: Scene, volume: Path, size: int
) -> None:
    content = os.urandom(size)
    for name in ("one", "two"):
        (volume / name).write_bytes(content)
    both, sent = scene.backup()
    assert size < sent < size * 1.2, "equal contents are sent once"
    (volume / "one").unlink()
    second, sent = scene.backup()
    assert sent < SMALL_BYTES / 4
    (volume / "two").unlink()
    third, _ = scene.backup()
    held = [contents_of(scene.world, snapshot) for snapshot in (both, second, third)]
    assert held[0] == held[1], "the file that stays still needs its chunks"
    assert held[0]
    assert not held[2], "nobody names them any more"
    # The older snapshots are as good as before.
    for snapshot in (both, second, third):
        assert scene.world.json("verify", snapshot)["state"] == "Completed"


def test_a_sibling_sends_little_of_what_the_domain_has(scene: Scene, volume: Path) -> None:
    for number in range(4):
        (volume / f"large {number}").write_bytes(os.urandom(LARGE_BYTES))
    _, first = scene.backup(CLIENT)
    _, second = scene.backup(SIBLING)
    assert first > 4 * LARGE_BYTES
    assert second < first / 50


def test_another_domain_shares_nothing(scene: Scene, volume: Path) -> None:
    (volume / "large").write_bytes(os.urandom(LARGE_BYTES))
    known, first = scene.backup(CLIENT)
    foreign, second = scene.backup(STRANGER)
    assert second > LARGE_BYTES
    assert abs(first - second) < first / 20
    assert not refs_of(scene.world, known) & refs_of(scene.world, foreign, "bank")


def test_an_unchanged_volume_is_sent_no_second_time(scene: Scene, volume: Path) -> None:
    (volume / "large").write_bytes(os.urandom(LARGE_BYTES))
    for number in range(200):
        (volume / f"small {number}").write_bytes(os.urandom(3_000))
    first, _ = scene.backup()
    second, sent = scene.backup()
    assert sent < 20_000
    assert contents_of(scene.world, first) == contents_of(scene.world, second)
