"""A server's repository on a store in memory, for each test that asks for one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.uploads import Pod, Served


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Served]:
    """Yield a repository without a domain."""
    made = Served(tmp_path)
    yield made
    made.stop()


@pytest.fixture
def served(empty: Served) -> Served:
    """Return a repository with the domain `shop`."""
    empty.domain()
    return empty


@pytest.fixture
def pod(served: Served) -> Pod:
    """Return a client of that domain."""
    return served.pod()
