"""For tests on real file systems."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hinted import BASES, DIRECTORIES, HintedBench, hinted_bench, plant


@pytest.fixture
def open_tmp() -> Iterator[Path]:
    """A temporary folder that other users can pass through, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="holdfast-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def quiet() -> Iterator[HintedBench]:
    """A client on ext4 or what the machine has, whose directories are all quiet."""
    with hinted_bench(BASES[1]) as made:
        plant(made.volume)
        made.check()
        assert made.unread() == DIRECTORIES
        yield made
