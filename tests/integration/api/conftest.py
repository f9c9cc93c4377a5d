"""One server in this process for each test, with the domain `shop`, and its API over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.apiworld import ApiWorld, made, serving
from tests.support.uploads import Served


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[tuple[Served, str]]:
    """Yield a server's data with one domain, and an administrator's token."""
    served, token = made(tmp_path)
    served.domain()
    yield served, token
    served.stop()


@pytest.fixture
async def world(repository: tuple[Served, str]) -> AsyncIterator[ApiWorld]:
    """Yield the server at work."""
    async with serving(*repository) as found:
        yield found
