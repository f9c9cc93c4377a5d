"""What is large in one way, once each: through real processes, and through the reader."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.generate import Flavour, Kind, Node, Piece, plan_tree
from tests.support.materialise import materialise
from tests.support.roundtrip import restored_by_reader, unequal
from tests.support.trees import Tree, scan
from tests.support.world import World, under

CLIENT = "shop/web-0"
ENTRIES = 100_000
RANGES = 4_000
RANGE_STRIDE_BYTES = 128 * 1024
ENTRY_BYTES_INLINE = 64 * 1024
"""What describes one entry beyond this size lies in blocks of its own (docs/format.md)."""


@pytest.fixture(scope="module")
def volume(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    top = tmp_path_factory.mktemp("extremes")
    (top / "volume").mkdir()
    world.start_agent(CLIENT, [top])
    yield top / "volume"
    shutil.rmtree(top)


def comes_back(world: World, folder: Path) -> Tree:
    """Back `folder` up, restore it both ways, and return its facts."""
    want = scan(folder)
    done = world.backup(CLIENT, folder)
    assert done["state"] == "Completed", done["skipped"]
    target = folder.parent.parent / f"target of {folder.name}"
    assert world.restore(done["snapshot"], "--target", target)["not_exact"] == []
    assert unequal(want, scan(under(target, folder))) == []
    with restored_by_reader(world, done["snapshot"], folder) as got:
        assert unequal(want, got) == []
    shutil.rmtree(target)
    return want


def test_a_tree_with_every_special_case_comes_back(world: World, volume: Path) -> None:
    folder = volume / "every case"
    materialise(plan_tree(20_260, complete=True), folder)
    want = comes_back(world, folder)
    assert max(len(os.fsencode(folder) + path) for path in want) > 4096
    assert max(len(name) for path in want for name in path.split(b"/")) == 255
    over = [facts for facts in want.values() if facts.size > 2**32]
    assert over
    assert all(sum(end - start for start, end in facts.data) < 2**20 for facts in over)


def test_a_directory_of_100_000_entries_comes_back(world: World, volume: Path) -> None:
    folder = volume / "crowded"
    folder.mkdir()
    here = os.open(folder, os.O_DIRECTORY)
    for number in range(ENTRIES):
        name = b"%06d of many entries in one directory" % number
        if number % 10:
            os.symlink(b"%d" % number, name, dir_fd=here)
        else:
            file = os.open(name, os.O_CREAT | os.O_WRONLY, 0o640, dir_fd=here)
            os.write(file, b"%d\n" % number * (number % 7))
            os.close(file)
    os.close(here)
    assert len(comes_back(world, folder)) == ENTRIES + 1


def test_a_file_of_thousands_of_ranges_comes_back(world: World, volume: Path) -> None:
    folder = Node(Kind.DIRECTORY, mode=0o755)
    pieces = tuple(
        Piece(number * RANGE_STRIDE_BYTES, 4096, Flavour.RANDOM, number) for number in range(RANGES)
    )
    size = RANGES * RANGE_STRIDE_BYTES
    folder.children[b"comb"] = Node(Kind.FILE, size=size, pieces=pieces)
    materialise(folder, volume / "ranges")
    want = comes_back(world, volume / "ranges")
    assert len(want[b"comb"].data) == RANGES


def test_as_many_extended_attributes_as_the_file_system_takes_come_back(
    world: World, volume: Path
) -> None:
    folder = volume / "attributes"
    folder.mkdir()
    for place in (folder / "file", folder / "directory"):
        place.touch() if place.name == "file" else place.mkdir()
        fill_with_attributes(place)
    want = comes_back(world, folder)
    assert all(len(want[name].xattrs) > 3 for name in (b"file", b"directory"))


def fill_with_attributes(place: Path) -> None:
    """Set attributes until the kernel refuses, at most twice what an entry holds inline."""
    for number in range(2 * ENTRY_BYTES_INLINE // 512):
        try:
            os.setxattr(place, f"user.number {number}", os.urandom(512))
        except OSError as error:
            assert error.errno in (errno.ENOSPC, errno.E2BIG)
            return
