"""A seed is a run: the same trace here, in another process, and with other hashes of names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation import seeds
from tests.simulation.seeds import check_seeds
from tests.simulation.world import run_seed, world_of

TOP = Path(__file__).resolve().parents[2]
SEEDS = (3, 4, 6, 13)
"""Of four themes: the garbage collector, strangers, change hints, races."""


def test_a_seed_gives_the_same_trace_in_every_process() -> None:
    here = [run_seed(seed) for seed in SEEDS]
    code = f"from tests.simulation.world import run_seed; print(*map(run_seed, {SEEDS}))"
    for hashes in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=TOP,
            env=os.environ | {"PYTHONHASHSEED": hashes},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        assert done.stdout.split() == here


def test_seeds_differ() -> None:
    assert run_seed(SEEDS[0]) != run_seed(SEEDS[0] + 7)


def test_a_failure_names_its_seed_and_how_to_replay_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(seed: int) -> str:
        raise AssertionError("a snapshot is gone")

    monkeypatch.setattr(seeds, "run_seed", fails)
    with pytest.raises(AssertionError, match=r"seed 7: a snapshot is gone\n.*tests.simulation 7"):
        check_seeds([7])


def test_a_trace_tells_what_happened() -> None:
    with world_of(SEEDS[0], keeps_trace=True) as world:
        world.run()
    text = "\n".join(world.lines)
    assert "server is up" in text and "acknowledged" in text and "calm" in text
