"""What a small backup costs the wire and the catalog.

    python tests/bench/wire.py [--data DIR] [--backups 30] [--changed 600]

A real server and agent with a counting proxy between them: bytes both ways of a backup that finds
nothing new, on a live connection, and the pages that the catalog's file grows by for each such
snapshot and for each changed small file. Without `--data` the files are 3,000 of 4 KB; with it,
they stay as they are, and no change is measured.
"""

from __future__ import annotations

import argparse
import random
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.support.counting_proxy import CountingProxy, Passed
from tests.support.world import World

CLIENT = "bench/agent"
FILES = 3000
FILES_IN_A_DIRECTORY = 100
FILE_BYTES = 4000


def small_files(top: Path, rng: random.Random) -> list[Path]:
    """Make the files to be backed up below `top`."""
    files = [top / f"{n // FILES_IN_A_DIRECTORY:03d}" / f"{n:06d}" for n in range(FILES)]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(rng.randbytes(FILE_BYTES))
    return files


def catalog_bytes(data: Path) -> int:
    """Return the size of the catalog of the server whose directory is `data`, all pages in it."""
    with closing(sqlite3.connect(data / "catalog.sqlite")) as db:
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
        return int(pages) * int(size)


def unchanged(world: World, proxy: CountingProxy, backups: int) -> tuple[list[Passed], float]:
    """Back up what has not changed; return what passed each time, and catalog bytes for each."""
    rows = []
    before, size = proxy.settled(), catalog_bytes(world.data)
    for _ in range(backups):
        world.backup(CLIENT)
        now = proxy.settled()
        rows.append(now.since(before))
        before = now
    return rows, (catalog_bytes(world.data) - size) / backups


def changed(
    world: World, files: list[Path], count: int, rng: random.Random, *, backups: int
) -> float:
    """Change `count` of the files and back up, `backups` times; return catalog bytes for each."""
    size = catalog_bytes(world.data)
    for _ in range(backups):
        for file in rng.sample(files, count):
            file.write_bytes(rng.randbytes(FILE_BYTES))
        world.backup(CLIENT)
    return (catalog_bytes(world.data) - size) / (backups * count)


def measure(top: Path, data: Path | None, backups: int, count: int) -> None:
    """Run all of it and print what it costs."""
    rng = random.Random(1)
    files = [] if data else small_files(top / "data", rng)
    world_at = top / "world"
    world_at.mkdir()
    with World(world_at) as world:
        world.start_server()
        with CountingProxy(world.url) as proxy:
            world.start_agent(CLIENT, [data or top / "data"], HOLDFAST_SERVER=proxy.url)
            # The second one lets the connection be kept that later ones go on with.
            for _ in range(2):
                world.backup(CLIENT)
            rows, snapshot_bytes = unchanged(world, proxy, backups)
            print(f"unchanged backup, the median of {backups}, agent to server:")
            print(f"  {median(row.up for row in rows):.0f} bytes up,", end=" ")
            print(f"{median(row.down for row in rows):.0f} down,", end=" ")
            print(f"{median(row.bytes for row in rows):.0f} in all;", end=" ")
            print(f"{median(row.packets for row in rows):.0f} packets,", end=" ")
            print(f"{median(row.bytes_with_heads for row in rows):.0f} bytes with their heads;")
            print(f"  {sum(row.connections for row in rows)} new connections in all of them")
            print(f"catalog: {snapshot_bytes:.0f} bytes for each unchanged snapshot")
            if files:
                each = changed(world, files, count, rng, backups=4)
                print(f"         {each:.1f} bytes for each changed small file ({count} a snapshot)")


def main() -> None:
    """Take the command line."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--data", type=Path, default=None)
    options.add_argument("--backups", type=int, default=30)
    options.add_argument("--changed", type=int, default=600)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="holdfast-wire-") as top:
        measure(Path(top), chosen.data, chosen.backups, chosen.changed)


if __name__ == "__main__":
    main()
