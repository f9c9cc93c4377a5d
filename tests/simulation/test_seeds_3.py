"""Seeds 100 to 149: bad days of every kind, then calm, then the oracle."""

from __future__ import annotations

import pytest

from tests.simulation.seeds import check_seeds


@pytest.mark.parametrize("first", range(100, 150, 10))
def test_bad_days_lose_nothing(first: int) -> None:
    check_seeds(range(first, first + 10))
