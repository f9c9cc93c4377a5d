"""For tests on real file systems."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_agent.restore.target import Target
from tests.support.backup_bench import BackupBench
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


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    """A folder to restore into."""
    (tmp_path / "top").mkdir()
    with Target.open(os.fsencode(tmp_path / "top"), run="run1") as opened:
        yield opened


@pytest.fixture
def bench(tmp_path: Path) -> BackupBench:
    """A client with an empty volume."""
    return BackupBench(tmp_path)
