"""What a source and its restored copies are held against: equality, and the reader's opinion."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.support.reader_world import READER
from tests.support.trees import Aspect, Range, Tree, compare, scan
from tests.support.world import World, under

HOLE_UNIT_BYTES = 64 * 1024
"""A snapshot keeps holes by units of this size; file systems keep them by blocks."""


def unequal(want: Tree, got: Tree) -> list[str]:
    """Return a line for each difference that a restore must not leave.

    A hole stays one wherever it covers a whole unit; allocated zeros may become one.
    """
    widened = {path: replace(facts, data=_by_units(facts.data)) for path, facts in want.items()}
    return compare(widened, got, ignore=(Aspect.ALLOCATION,))


def _by_units(data: tuple[Range, ...]) -> tuple[Range, ...]:
    unit = HOLE_UNIT_BYTES
    return tuple((start // unit * unit, -(-end // unit) * unit) for start, end in data)


@contextmanager
def restored_by_reader(
    world: World, snapshot: str, source: Path, *, domain: str = "shop"
) -> Iterator[Tree]:
    """Restore with docs/format_reader.py alone and give what came back of `source`.

    Raises:
        AssertionError: the reader found anything at all to complain about.
    """
    target = world.top / f"read-{snapshot[:16]}"
    key = world.keys[domain]
    code = READER.main([str(world.data / "store"), str(key), "restore", snapshot, str(target)])
    try:
        assert code == 0, f"the reader ends with {code}"
        yield scan(under(target, source))
    finally:
        shutil.rmtree(target)


def reader_store(world: World, domain: str = "shop") -> Any:
    """Return the reader's `Store` of a world's store: manifests and refs, checked."""
    keys = READER.Keys(world.keys[domain].read_text())
    return READER.Store(os.fspath(world.data / "store"), keys)


def refs_of(world: World, snapshot: str, domain: str = "shop") -> set[bytes]:
    """Return the chunk ids of the refs object that the journal names for a snapshot."""
    store = reader_store(world, domain)
    _, commit = store.snapshots()[snapshot]
    found: set[bytes] = store.refs(store.name("refs", commit["refs"]))
    return found
