"""What a backup costs the wire and the catalog stays within its bounds; `tests/bench/wire.py`
measures it."""

from __future__ import annotations

import random
from pathlib import Path

from tests.bench.wire import CLIENT, changed, small_files, unchanged
from tests.support.counting_proxy import CountingProxy
from tests.support.world import World

WIRE_BYTES_MAX = 6_000
SNAPSHOT_BYTES_MAX = 4_000
FILE_BYTES_MAX = 80


def test_small_backups_cost_wire_and_catalog_little(world: World, tmp_path: Path) -> None:
    rng = random.Random(1)
    files = small_files(tmp_path / "data", rng)
    with CountingProxy(world.url) as proxy:
        world.start_agent(CLIENT, [tmp_path / "data"], HOLDFAST_SERVER=proxy.url)
        for _ in range(2):
            world.backup(CLIENT)
        rows, snapshot_bytes = unchanged(world, proxy, 4)
        # A job that takes seconds tells of its progress meanwhile: the quickest one counts.
        assert min(row.bytes for row in rows) <= WIRE_BYTES_MAX
        assert not any(row.connections for row in rows), "the connection is not kept"
        # The file grows by pages of 4,096 bytes.
        assert snapshot_bytes <= SNAPSHOT_BYTES_MAX + 4_096 / 4
        assert changed(world, files, 600, rng, backups=1) <= FILE_BYTES_MAX
        world.stop_agent(CLIENT)
