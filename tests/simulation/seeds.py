"""Running seeds for tests: a failure names its seed and the command that replays it."""

from __future__ import annotations

from collections.abc import Iterable

from tests.simulation.world import run_seed


def check_seeds(seeds: Iterable[int]) -> None:
    """Run seeds; the first that goes wrong is told with the way to see it again."""
    for seed in seeds:
        try:
            run_seed(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error}\nreplay it: {replay(seed)}") from error


def replay(seed: int, mistake: str = "") -> str:
    """Return the command that shows one run step by step."""
    planted = f" --mistake {mistake}" if mistake else ""
    return f".venv/bin/python -m tests.simulation {seed}{planted}"
