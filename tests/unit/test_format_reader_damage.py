"""The stand-alone reader tells every damage and every forgery, and restores what is left."""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest
from blake3 import blake3

from tests.support.store_builder import Node, StoreBuilder, folder
from tests.support.store_bytes import (
    CONTENT,
    FIFO,
    SYMLINK,
    TREE,
    Keyring,
    block_of,
    padme,
    page_of,
    refs_of,
    set_hash,
)
from tests.unit.test_format_reader import CLIENT, GROUP, World, contents, data_folder

FOLDERS = ("domains", "identities", "manifests", "refs", "packs", "journal")
NODES = data_folder(
    Node(b"a", content=(b"first",)),
    Node(b"b", content=(b"second",)),
    Node(b"c", content=(b"third" * 1000,), xattrs=((b"user.a", b"1"),), xattrs_in_blocks=True),
    folder(b"d", Node(b"e", content=(b"fifth",)), Node(b"f", content=(b"z" * 5000,), spill=2)),
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Return a store with two snapshots of one client, the second a difference."""
    made = World(tmp_path)
    made.store.page_entries, made.store.tree_chunk_bytes = 2, 100
    return made


def stored(world: World) -> None:
    """Write two snapshots."""
    first = world.store.snapshot(CLIENT, data_folder(Node(b"a", content=(b"first",))))
    world.store.snapshot(CLIENT, NODES, base=first)


@pytest.mark.parametrize("folder_name", FOLDERS)
def test_every_flipped_byte_is_told_and_no_wrong_byte_restored(
    world: World, folder_name: str
) -> None:
    stored(world)
    wanted = World.restore(world, *newest(world))[1]
    right = contents(wanted)
    assert len(right) == 5
    path = world.objects(folder_name)[-1]
    good = path.read_bytes()
    step = max(1, len(good) // 150)
    for at in [*range(min(80, len(good))), *range(80, len(good), step), len(good) - 1]:
        path.write_bytes(good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :])
        code, target = world.restore(*newest(world))
        assert code == 13, f"byte {at} of {len(good)}"
        found = contents(target) if target.exists() else {}
        assert found.items() <= right.items(), f"byte {at} of {len(good)}"


def newest(world: World) -> tuple[Any]:
    """Return the newest snapshot of the client."""
    return (world.store._heads[CLIENT],)


@pytest.mark.parametrize("folder_name", FOLDERS)
def test_a_truncated_or_missing_object_is_told(world: World, folder_name: str) -> None:
    stored(world)
    path = world.objects(folder_name)[-1]
    good = path.read_bytes()
    for length in (0, 1, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:length])
        assert world.restore(*newest(world))[0] == 13, length
    path.write_bytes(good + b"\0")
    assert world.restore(*newest(world))[0] == 13
    path.unlink()
    code = world.restore(*newest(world))[0]
    assert code == (10 if folder_name == "journal" else 13)  # the journal's end cannot be missed
