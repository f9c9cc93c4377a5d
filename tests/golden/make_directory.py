"""Wrote the golden data directory of catalog revision 0001, once; it refuses to write it again.

It is what a server and its agents of that day left behind: store, catalog, token, keys, the agents'
state, and what every snapshot has to restore to. Each later version opens, lists, verifies and
restores it; a test that fails on it has found a change that locks people out of their backups.
Only the certificate is left out: it ends one day, and a server without one makes it anew.
Run from the top of the repository, as root: `python -m tests.golden.make_directory`.
"""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import msgspec

from tests.support.golden_directory import ARCHIVE, CLIENTS, Golden
from tests.support.trees import scan
from tests.support.world import World

TOP = Path("/tmp/holdfast-golden")
SOURCE = TOP / "data"
"""Absolute paths are part of a snapshot: restores go below a target."""
DAY_SECONDS = 1_700_000_000


def write(name: str | bytes, content: bytes, *, mode: int = 0o644) -> Path:
    place = SOURCE / os.fsdecode(name)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    place.chmod(mode)
    return place


def large(seed: int) -> bytes:
    """Return 2.5 MiB that are cut into several chunks and take little room."""
    return b"".join(b"%010d" % (number * number % seed) for number in range(262_144))


def first_day() -> None:
    write("readme.txt", b"golden\n")
    write("empty", b"")
    write("script", b"#!/bin/sh\n", mode=0o755)
    write(b"latin \xe9", b"not UTF-8 in its name")
    os.setxattr(write("with xattr", b"x"), "user.comment", b"kept\0for ever")
    for number in range(40):
        write(f"small/{number:02d}", b"%d\n" % number * 50)
    os.link(write("links/one", b"two names"), SOURCE / "links/two")
    (SOURCE / "links/symlink").symlink_to("../readme.txt")
    os.mkfifo(SOURCE / "links/fifo")
    (SOURCE / "bare").mkdir(mode=0o700)
    write("large", large(9973))
    with write("sparse", b"").open("r+b") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"in the middle")
    settle(0)


def second_day() -> None:
    write("readme.txt", b"golden, changed\n")
    write("large", large(9973)[:1_500_000] + b"inserted" + large(9973)[1_500_000:])
    (SOURCE / "empty").unlink()
    write("small/40", b"new\n")
    settle(1)


def settle(day: int) -> None:
    """Give everything times of one day long ago, directories last."""
    for folder, names, files in os.walk(SOURCE, topdown=False):
        for name in sorted(names + files):
            moment = (DAY_SECONDS + day * 86_400 + len(name)) * 10**9
            os.utime(Path(folder) / name, ns=(moment, moment + 7), follow_symlinks=False)
    os.utime(SOURCE, (DAY_SECONDS, DAY_SECONDS))


def make(world: World) -> Golden:
    world.start_server()
    trees: dict[str, Any] = {}
    first_day()
    for client in CLIENTS:
        world.start_agent(client, [SOURCE])
        made = world.backup(client, options=("--tag", "first"))
        trees[made["snapshot"]] = list(scan(SOURCE).items())
    second_day()
    made = world.backup(CLIENTS[0], options=("--tag", "second"))
    trees[made["snapshot"]] = list(scan(SOURCE).items())
    made = world.backup(CLIENTS[0], SOURCE / "small", SOURCE / "links")
    found = dict(scan(SOURCE).items())
    trees[made["snapshot"]] = [
        (path, facts) for path, facts in found.items() if path.startswith((b"small", b"links"))
    ]
    golden = Golden(
        source=str(SOURCE),
        snapshots=world.json("snapshots"),
        clients=[{"name": row["name"]} for row in world.json("clients")],
        jobs=[{"id": row["id"], "state": row["state"]} for row in world.json("jobs")],
        trees=trees,
    )
    assert world.close() == []
    return golden


def archive(world: World, golden: Golden) -> None:
    with tarfile.open(ARCHIVE, "x:xz") as out:
        for name in ("server", "state", "shop.key", "shop.recovery"):
            out.add(world.top / name, name, filter=kept)
        content = msgspec.json.format(msgspec.json.encode(golden), indent=1)
        entry = tarfile.TarInfo("golden.json")
        entry.size = len(content)
        out.addfile(entry, io.BytesIO(content))


def kept(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    name = entry.name.removeprefix("server/")
    return None if name.split("/")[0] in ("tls", "url", "lock") else entry


def main() -> None:
    if ARCHIVE.exists():
        raise SystemExit(f"{ARCHIVE} is golden: it is never written again")
    SOURCE.mkdir(parents=True)
    with World(TOP) as world:
        archive(world, make(world))


if __name__ == "__main__":
    main()
