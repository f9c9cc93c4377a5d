"""Change hints of a real agent: a backup right after a change has it, and so has its restore."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.trees import differences
from tests.support.world import World, under

CLIENT = "hints/web-0"
FOLDERS = 24


@dataclass
class Pod:
    """One agent and its volume, the target of restores beside it."""

    world: World
    volume: Path
    target: Path

    def start(self, hints: str = "auto") -> None:
        roots = [self.volume, self.target]
        self.world.start_agent(CLIENT, roots, HOLDFAST_CHANGE_HINTS=hints)

    def backup(self) -> dict[str, Any]:
        done: dict[str, Any] = self.world.backup(CLIENT, self.volume)
        return done

    def is_restored(self, done: dict[str, Any]) -> bool:
        shutil.rmtree(self.target)
        self.target.mkdir()
        self.world.json("restore", done["snapshot"], "--target", self.target)
        return differences(self.volume, under(self.target, self.volume)) == []


@pytest.fixture
def pod(world: World, tmp_path: Path) -> Iterator[Pod]:
    made = Pod(world, tmp_path / "volume", tmp_path / "target")
    made.target.mkdir()
    for number in range(FOLDERS):
        folder = made.volume / f"{number:02d}"
        folder.mkdir(parents=True)
        for name in ("empty", "other"):
            (folder / name).touch()
        (folder / "text").write_text(f"{number}")
    yield made
    if world.client_state(CLIENT) == "connected":
        world.stop_agent(CLIENT)


def test_a_backup_at_once_after_a_change_has_it(pod: Pod) -> None:
    pod.start()
    assert pod.backup()["dirs_unread"] == 0
    assert pod.backup()["dirs_unread"] == FOLDERS + 1
    for number in range(2):
        (pod.volume / "07" / "empty").write_text(f"no longer: {number}")
        os.rename(pod.volume / "11", pod.volume / f"11 {number}")
        os.rename(pod.volume / f"11 {number}", pod.volume / "11")
        done = pod.backup()
        # The top, 07 and 11 were told; 11 lies where it lay.
        assert done["dirs_unread"] == FOLDERS - 2
        assert pod.is_restored(done)
    os.rename(pod.volume / "20", pod.volume / "between")
    os.rename(pod.volume / "21", pod.volume / "20")
    os.rename(pod.volume / "between", pod.volume / "21")
    assert pod.is_restored(pod.backup())
    assert pod.backup()["dirs_unread"] == FOLDERS + 1
    events = {row["kind"] for row in pod.world.json("events")}
    assert "hints-missed" not in events


def test_a_restore_into_the_volume_is_a_change_as_any_other(pod: Pod) -> None:
    pod.start()
    first = pod.backup()
    assert pod.backup()["dirs_unread"] == FOLDERS + 1
    (pod.volume / "20" / "text").write_text("unwanted")
    pod.backup()
    pod.world.json("restore", first["snapshot"], "--in-place", "--overwrite", "always")
    done = pod.backup()
    assert done["dirs_unread"] < FOLDERS + 1
    assert (pod.volume / "20" / "text").read_text() == "20"
    assert pod.is_restored(done)


def test_an_agent_that_was_killed_reads_everything(pod: Pod) -> None:
    pod.start()
    pod.backup()
    assert pod.backup()["dirs_unread"] == FOLDERS + 1
    pod.world.kill_agent(CLIENT)
    (pod.volume / "15" / "text").write_text("while nobody listened")
    pod.start()
    done = pod.backup()
    assert done["dirs_unread"] == 0
    assert pod.is_restored(done)
    assert pod.backup()["dirs_unread"] == FOLDERS + 1


def test_a_storm_of_changes_between_backups_is_taken_in(pod: Pod) -> None:
    """More than the queue holds, in all directories; watches end with the first event of each."""
    pod.start()
    pod.backup()
    pod.backup()
    for turn in range(320):
        for number in range(FOLDERS - 1):
            (pod.volume / f"{number:02d}" / "text").write_text(f"{turn}")
    done = pod.backup()
    assert done["dirs_unread"] <= 2
    assert pod.is_restored(done)
    assert pod.backup()["dirs_unread"] == FOLDERS + 1


def watched(pod: Pod) -> int:
    """Return how many directories the kernel watches for the agent."""
    top = Path(f"/proc/{pod.world.agents[CLIENT].popen.pid}/fdinfo")
    return sum(place.read_text().count("\ninotify wd:") for place in top.iterdir())


def test_an_idle_agent_takes_in_what_changes(pod: Pod) -> None:
    pod.start()
    assert watched(pod) == 0, "nothing is watched before there is a backup"
    pod.backup()
    assert watched(pod) == FOLDERS + 1
    for number in range(5):
        (pod.volume / f"{number:02d}" / "text").write_text("changed")
    pod.world.until(lambda: watched(pod) == FOLDERS + 1 - 5, "the first events ended five watches")
    assert pod.backup()["dirs_unread"] == FOLDERS + 1 - 5
    assert watched(pod) == FOLDERS + 1


def test_hints_can_be_turned_off(pod: Pod) -> None:
    pod.start("off")
    assert [pod.backup()["dirs_unread"] for _ in range(3)] == [0, 0, 0]
