"""Generated trees through real processes, a day of edits between two backups.

Each snapshot comes back equal twice: through server and agent, and through the stand-alone reader
that knows nothing but docs/format.md, the store's directory and the key file.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.generate import plan_tree
from tests.support.materialise import materialise
from tests.support.mutate import mutate
from tests.support.roundtrip import restored_by_reader, unequal
from tests.support.trees import Tree, scan
from tests.support.world import World, under

CLIENT = "shop/web-0"
TREES_EACH = 6
BATCHES = 10
BATCHES_OF_SOAK = 834
"""With six trees each: 60 trees in every run, 5,004 in the soak."""


@dataclass
class Lane:
    """One client whose volume holds one batch of trees after the other."""

    world: World
    volume: Path
    target: Path

    def backup(self, folder: Path) -> tuple[str, Tree]:
        """Back `folder` up; return the snapshot and the facts that it must bring back."""
        want = scan(folder)
        done = self.world.backup(CLIENT, folder)
        assert done["state"] == "Completed", done["skipped"]
        assert (done["files"], done["dirs"]) == number_of(want)
        return str(done["snapshot"]), want

    def check(self, snapshot: str, want: Tree, folder: Path, *options: object) -> None:
        """Restore both ways and compare."""
        done = self.world.restore(snapshot, "--target", self.target, *options)
        assert done["not_exact"] == []
        assert unequal(want, scan(under(self.target, folder))) == []
        assert_counted(done, want)
        with restored_by_reader(self.world, snapshot, folder) as got:
            assert unequal(want, got) == []


def number_of(tree: Tree) -> tuple[int, int]:
    directories = sum(facts.type == "directory" for facts in tree.values())
    return len(tree) - directories, directories


def assert_counted(done: dict[str, Any], want: Tree) -> None:
    assert done["files"] == number_of(want)[0]
    by_inode = {facts.inode or path: facts.size for path, facts in want.items()}
    assert done["bytes"] == sum(by_inode.values())


@pytest.fixture(scope="module")
def lane(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lane]:
    top = tmp_path_factory.mktemp("lane")
    made = Lane(world, top / "volume", top / "target")
    made.volume.mkdir()
    made.target.mkdir()
    world.start_agent(CLIENT, [made.volume, made.target])
    yield made
    # By descriptors: paths in here are longer than the kernel takes.
    shutil.rmtree(top)


def check_batch(lane: Lane, batch: int) -> None:
    folder = lane.volume / f"batch {batch}"
    folder.mkdir()
    trees = [(folder / f"tree {n}", batch * TREES_EACH + n) for n in range(TREES_EACH)]
    for tree, seed in trees:
        materialise(plan_tree(seed), tree)
    first, before = lane.backup(folder)
    for tree, seed in trees:
        mutate(tree, seed)
    second, after = lane.backup(folder)
    assert unequal(before, after), "a day of edits leaves its mark"
    lane.check(first, before, folder)
    # Over what the older snapshot left there: the younger one takes over in place.
    lane.check(second, after, folder, "--overwrite", "always", "--delete", "--yes")
    shutil.rmtree(folder)
    shutil.rmtree(lane.target)
    lane.target.mkdir()


@pytest.mark.parametrize("batch", range(BATCHES))
def test_generated_trees_and_their_next_day_come_back_equal(lane: Lane, batch: int) -> None:
    check_batch(lane, batch)


@pytest.mark.soak
@pytest.mark.parametrize("batch", range(BATCHES, BATCHES_OF_SOAK))
def test_thousands_of_generated_trees_come_back_equal(lane: Lane, batch: int) -> None:
    check_batch(lane, batch)
