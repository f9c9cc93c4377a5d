"""A hundred thousand seeds."""

from __future__ import annotations

import pytest

from tests.simulation.seeds import check_seeds


@pytest.mark.soak
@pytest.mark.parametrize("first", range(200, 100_200, 500))
def test_many_bad_days_lose_nothing(first: int) -> None:
    check_seeds(range(first, first + 500))
