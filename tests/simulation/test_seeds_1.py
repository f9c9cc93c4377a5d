"""Seeds 0 to 49: bad days of every kind, then calm, then the oracle."""

from __future__ import annotations

import pytest

from tests.simulation.seeds import check_seeds


@pytest.mark.parametrize("first", range(0, 50, 10))
def test_bad_days_lose_nothing(first: int) -> None:
    check_seeds(range(first, first + 10))
