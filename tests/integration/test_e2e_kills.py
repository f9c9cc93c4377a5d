"""kill -9 of agents and of the server at random moments, while one agent backs up and one restores.

Each round kills both agents once and the server once, at moments drawn from a seed. The rounds go
on in one world: what an earlier round acknowledged must survive all later ones.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.roundtrip import restored_by_reader, unequal
from tests.support.trees import Tree, scan
from tests.support.world import World, under

WRITER, RESTORER = "shop/web-0", "shop/web-1"
ROUNDS = 15
ROUNDS_OF_SOAK = 2_000
RATE = "5M"
LARGE_BYTES = 8_000_000
"""At that rate a job lasts longer than the moments of a kill are apart."""
MEMORY_MAX = "96M"
"""So little that a restore fetches a large file in several batches, half written between them."""
KILL_SECONDS_MAX = 1.6
TEMPORARY = b".holdfast-"


@dataclass
class Scene:
    """Two clients of one domain: one changes and is backed up, one gets a snapshot restored."""

    world: World
    volume: Path
    target: Path
    acknowledged: dict[str, Tree] = field(default_factory=dict)
    """What every snapshot so far must bring back, oldest first."""

    def start_agents(self, *, wait: bool) -> None:
        for client, root in ((WRITER, self.volume), (RESTORER, self.target)):
            memory = {"HOLDFAST_MEMORY_MAX": MEMORY_MAX}
            self.world.start_agent(client, [root], wait=wait, **memory)

    def kill_agents(self) -> None:
        for client in (WRITER, RESTORER):
            self.world.kill_agent(client)

    def change(self, rng: random.Random) -> Tree:
        """Renew most of the volume: small files, hard links, two files of several chunks."""
        shutil.rmtree(self.volume / "data", ignore_errors=True)
        for folder in ("data/few", "data/many/below"):
            (self.volume / folder).mkdir(parents=True)
        for number in range(60):
            size = rng.choice([0, 100, 4_000, 30_000])
            place = self.volume / f"data/many/below/file {number}"
            place.write_bytes(rng.randbytes(size))
        for number, size in enumerate((LARGE_BYTES, 700_000)):
            place = self.volume / f"data/few/large {number}"
            place.write_bytes(rng.randbytes(size))
            (self.volume / f"data/many/link {number}").hardlink_to(place)
        (self.volume / "data/few/symlink").symlink_to("large 0")
        return scan(self.volume)

    def restore(self, snapshot: str) -> str:
        """Start a restore of `snapshot` on the other client and return its job.

        Nothing but the restore itself may remove what a killed one left: no `--delete`.
        """
        options = ("--target", self.target / "out", "--overwrite", "always")
        where = ("--to", RESTORER, "--limit-download", RATE, "--detach")
        return str(self.world.json("restore", snapshot, *options, *where)["job"])

    def restored(self) -> Tree:
        """Return what lies in the target now, {} before the first entry."""
        place = under(self.target / "out", self.volume)
        return scan(place) if place.parent.exists() else {}


@pytest.fixture(scope="module")
def scene(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    top = tmp_path_factory.mktemp("kills")
    made = Scene(world, top / "volume", top / "target")
    made.volume.mkdir()
    made.target.mkdir()
    made.start_agents(wait=True)
    want = made.change(random.Random("first"))
    made.acknowledged[world.backup(WRITER)["snapshot"]] = want
    yield made
    shutil.rmtree(top)


def half_written(want: Tree, got: Tree, before: Tree) -> list[bytes]:
    """Return the files that have their final names and neither their old nor their new content."""
    contents = {
        path: {tree[path].digest for tree in (want, before) if path in tree}
        for path in want.keys() | before.keys()
    }
    return [
        path
        for path, facts in got.items()
        if facts.type == "file"
        and not path.rpartition(b"/")[2].startswith(TEMPORARY)
        and facts.digest not in contents.get(path, set())
    ]


def check_round(scene: Scene, seed: int) -> None:
    rng, world = random.Random(f"kills {seed}"), scene.world
    snapshot, wanted = list(scene.acknowledged.items())[-1]
    want, before = scene.change(rng), scene.restored()
    backup = world.detached(WRITER, "--limit-upload", RATE)
    restore = scene.restore(snapshot)
    # The moments are the test's input: a sleep of random length, not a wait for anything.
    time.sleep(rng.uniform(0, KILL_SECONDS_MAX))
    scene.kill_agents()
    assert half_written(wanted, scene.restored(), before) == []
    scene.start_agents(wait=False)
    time.sleep(rng.uniform(0, 2 * KILL_SECONDS_MAX))
    world.kill_server()
    world.start_server()
    done = world.wait(backup)
    assert done["state"] == "Completed", done["error"]
    back = world.wait(restore)
    assert back["state"] == "Completed", back["error"]
    assert unequal(wanted, scene.restored()) == []
    scene.acknowledged[done["snapshot"]] = want
    check_history(scene, rng)


def check_history(scene: Scene, rng: random.Random) -> None:
    """Every acknowledged snapshot stands, no other; the youngest and any other one restore."""
    listed = [row["id"] for row in scene.world.json("snapshots", WRITER)]
    assert listed == list(scene.acknowledged)
    for snapshot in {listed[-1], rng.choice(listed)}:
        with restored_by_reader(scene.world, snapshot, scene.volume) as got:
            assert unequal(scene.acknowledged[snapshot], got) == []
    scene.world.until(lambda: health(scene) == {"ok"}, "holdfast doctor finds everything well")


def health(scene: Scene) -> set[str]:
    return {row["state"] for row in scene.world.json("doctor")}


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_killed_jobs_complete_and_nothing_acknowledged_is_lost(scene: Scene, seed: int) -> None:
    check_round(scene, seed)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(ROUNDS, ROUNDS + ROUNDS_OF_SOAK))
def test_thousands_of_kills_lose_nothing(scene: Scene, seed: int) -> None:
    check_round(scene, seed)
