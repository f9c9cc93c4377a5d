"""Mistakes planted one at a time are found; the same seeds are clean without them."""

from __future__ import annotations

import pytest

from tests.simulation.mistakes import MISTAKES, finding_seed
from tests.simulation.seeds import check_seeds, replay

TRIES = 40
"""The pinned seed first. Whatever changes the order of steps moves what a seed meets: then another
one of the same theme has to find it, and `python -m tests.simulation --pins` pins anew."""


@pytest.mark.parametrize("name", MISTAKES)
def test_planted_mistake_is_found(name: str) -> None:
    seed = finding_seed(MISTAKES[name], TRIES)
    assert seed is not None, (
        f"{TRIES} runs such as `{replay(MISTAKES[name].seed, name)}` saw nothing"
    )
    check_seeds([seed])
