"""Seeds 150 to 199: bad days of every kind, then calm, then the oracle."""

from __future__ import annotations

import pytest

from tests.simulation.seeds import check_seeds


@pytest.mark.parametrize("first", range(150, 200, 10))
def test_bad_days_lose_nothing(first: int) -> None:
    check_seeds(range(first, first + 10))
