"""The agent's ceiling: peak resident size while it backs up and restores far more than that."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.roundtrip import unequal
from tests.support.trees import scan
from tests.support.world import World, under

CLIENT = "shop/web-0"
MIB = 1 << 20
CEILING_BYTES = 160 * MIB
MARGIN_BYTES = 8 * MIB
"""The least that must be left: peaks differ by several MiB from run to run."""
SMALL_FILES = 8_000


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """About 300 MB: two large files, one compressible, one sparse, and thousands of small ones."""
    top = tmp_path_factory.mktemp("mixed") / "volume"
    rng = random.Random(300)
    for folder in range(SMALL_FILES // 500):
        place = top / f"small {folder}"
        place.mkdir(parents=True)
        for number in range(500):
            (place / f"file {number}").write_bytes(rng.randbytes(rng.randrange(10_000)))
    for name in ("one", "two"):
        with (top / f"random {name}").open("wb") as file:
            for _ in range(10):
                file.write(rng.randbytes(9 * MIB))
    line = rng.randbytes(30).hex().encode()
    (top / "text").write_bytes(b"".join(b"%d %s\n" % (n, line) for n in range(1_000_000)))
    with (top / "sparse").open("wb") as file:
        file.truncate(4096 * MIB)
        file.seek(2048 * MIB)
        file.write(rng.randbytes(5 * MIB))
    yield top
    shutil.rmtree(top.parent)


def peak_bytes(process: int) -> int:
    """Return the peak resident size of a running process."""
    status = Path(f"/proc/{process}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def test_backup_and_restore_stay_below_the_ceiling(
    own_world: World, volume: Path, record_property: Callable[[str, object], None]
) -> None:
    world = own_world
    target = volume.parent / "target"
    roots = [volume, target]
    target.mkdir()
    agent = world.start_agent(CLIENT, roots, HOLDFAST_MEMORY_MAX="160M")
    done = world.backup(CLIENT, volume)
    assert done["bytes"] - 4096 * MIB > 250 * MIB
    at_backup = peak_bytes(agent.popen.pid)
    # A process of its own for the restore: a peak never goes down again.
    world.stop_agent(CLIENT)
    agent = world.start_agent(CLIENT, roots, HOLDFAST_MEMORY_MAX="160M")
    world.restore(done["snapshot"], "--target", target)
    at_restore = peak_bytes(agent.popen.pid)
    record_property("peak_mib", (at_backup // MIB, at_restore // MIB))
    assert unequal(scan(volume), scan(under(target, volume))) == []
    assert at_backup < CEILING_BYTES - MARGIN_BYTES
    assert at_restore < CEILING_BYTES - MARGIN_BYTES


SPARSE_BYTES = 200 << 30
RUNS = 300


def test_one_sparse_file_of_200_gib_stays_below_the_ceiling_and_sparse(
    own_world: World, tmp_path: Path
) -> None:
    volume, target = tmp_path / "volume", tmp_path / "target"
    volume.mkdir()
    target.mkdir()
    draw = random.Random(200)
    runs = {
        place * (SPARSE_BYTES // RUNS): draw.randbytes(draw.randrange(1, 64 << 10))
        for place in range(RUNS)
    }
    with (volume / "sparse").open("wb") as file:
        file.truncate(SPARSE_BYTES)
        for offset, data in runs.items():
            file.seek(offset)
            file.write(data)
    agent = own_world.start_agent(CLIENT, [volume, target], HOLDFAST_MEMORY_MAX="160M")
    done = own_world.backup(CLIENT, volume)
    assert (done["state"], done["bytes"]) == ("Completed", SPARSE_BYTES)
    assert done["bytes_sent"] < 64 * MIB
    own_world.restore(done["snapshot"], "--target", target)
    assert peak_bytes(agent.popen.pid) < CEILING_BYTES - MARGIN_BYTES
    restored = under(target, volume) / "sparse"
    assert restored.stat().st_size == SPARSE_BYTES
    assert restored.stat().st_blocks * 512 < 64 * MIB
    with restored.open("rb") as file:
        for offset, data in runs.items():
            file.seek(offset)
            assert file.read(len(data) + 8) == data + bytes(8)
