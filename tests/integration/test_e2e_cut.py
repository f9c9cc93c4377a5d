"""A connection cut, an agent or a server killed, at each step of upload and commit.

Whatever happens in between, a job ends with one snapshot, the same in every record of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.cutting_proxy import CuttingProxy, Moment
from tests.support.roundtrip import reader_store, refs_of, restored_by_reader, unequal
from tests.support.trees import scan
from tests.support.world import World

CLIENT = "shop/web-0"
STEPS = ("session", "have", "packs", "refs", "manifest", "commit", "result")
WITH_BODY = ("have", "packs", "manifest", "commit")
BEFORE, AFTER = Moment.REQUEST, Moment.ANSWER


@dataclass
class Scene:
    """An agent that reaches its server through the proxy only."""

    world: World
    proxy: CuttingProxy
    volume: Path
    snapshots: list[str] = field(default_factory=list)
    """Ids of all that were acknowledged, oldest first."""

    def start_agent(self) -> None:
        self.world.start_agent(CLIENT, [self.volume], wait=False, HOLDFAST_SERVER=self.proxy.url)

    def change(self) -> None:
        """Give the next backup something to send: large, small, and in several chunks."""
        (self.volume / "large").write_bytes(os.urandom(3 << 20))
        (self.volume / f"small {len(self.snapshots)}").write_bytes(os.urandom(9_000))

    def completes(self, job: str) -> None:
        """Wait for the job, and hold every record of its snapshot against the others."""
        done = self.world.wait(job)
        assert done["state"] == "Completed", done["error"]
        snapshot = done["snapshot"]
        assert done["result"]["snapshot"] == snapshot
        listed = [row["id"] for row in self.world.json("snapshots", CLIENT)]
        assert listed == [*self.snapshots, snapshot]
        self.snapshots = listed
        assert self.commits() == len(listed)
        assert refs_of(self.world, snapshot)
        with restored_by_reader(self.world, snapshot, self.volume) as got:
            assert unequal(scan(self.volume), got) == []
        checks = self.world.json("doctor")
        assert {row["state"] for row in checks} == {"ok"}, checks

    def commits(self) -> int:
        """Return the number of commits that the store's own journal tells."""
        journal = reader_store(self.world).journal
        return sum(kind == "commit" for kind, _ in journal)


@pytest.fixture(scope="module")
def scene(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with CuttingProxy(world) as proxy:
        made = Scene(world, proxy, tmp_path_factory.mktemp("volume"))
        made.start_agent()
        world.until_connected(CLIENT)
        yield made
        world.stop_agent(CLIENT)


def cut_once(
    scene: Scene, step: str, moment: Moment, act: Callable[[], None] = lambda: None
) -> str:
    """Start a backup that is cut at `step`; return its job, which goes on."""
    scene.change()
    scene.proxy.cut(step, moment, act)
    job = scene.world.detached(CLIENT)
    assert scene.proxy.was_cut(), f"no request for {step}: {scene.proxy.paths[-20:]}"
    return job


@pytest.mark.parametrize("step", STEPS)
def test_an_answer_that_never_arrives_changes_nothing(scene: Scene, step: str) -> None:
    scene.completes(cut_once(scene, step, Moment.ANSWER))


@pytest.mark.parametrize("step", WITH_BODY)
def test_a_request_cut_in_its_body_is_made_again(scene: Scene, step: str) -> None:
    scene.completes(cut_once(scene, step, Moment.BODY))


@pytest.mark.parametrize(
    ("step", "moment"),
    [("packs", AFTER), ("commit", BEFORE), ("commit", AFTER), ("result", AFTER)],
    ids=["packs-after", "commit-before", "commit-after", "result-after"],
)
def test_an_agent_killed_at_a_step_goes_on_to_one_snapshot(
    scene: Scene, step: str, moment: Moment
) -> None:
    job = cut_once(scene, step, moment, lambda: scene.world.kill_agent(CLIENT))
    scene.start_agent()
    scene.completes(job)


@pytest.mark.parametrize(
    ("step", "moment"),
    [
        ("packs", BEFORE),
        ("refs", AFTER),
        ("commit", BEFORE),
        ("commit", AFTER),
        ("result", AFTER),
    ],
    ids=["packs-before", "refs-after", "commit-before", "commit-after", "result-after"],
)
def test_a_server_killed_at_a_step_goes_on_to_one_snapshot(
    scene: Scene, step: str, moment: Moment
) -> None:
    # A young agent comes back at once; an old one has learnt to wait longer.
    scene.world.kill_agent(CLIENT)
    scene.start_agent()
    job = cut_once(scene, step, moment, scene.world.kill_server)
    scene.world.start_server()
    scene.completes(job)
