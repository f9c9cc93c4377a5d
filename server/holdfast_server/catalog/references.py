"""Refs objects of committed snapshots, and the chains in which differences stand."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import bindparam, insert, select

from holdfast_server.catalog.connection import Tx
from holdfast_server.catalog.schema import SnapshotState, objects, refs_objects, snapshots


class RefsRow(NamedTuple):
    """A refs object; `depth` differences lie below it, 0 in a full list."""

    object_key: int
    ulid: str
    refs_set: bytes
    ids: int
    """Number of ids of the whole list."""
    base_key: int | None
    depth: int


_ROW = (
    refs_objects.c.object_key,
    objects.c.ulid,
    refs_objects.c.refs_set,
    refs_objects.c.count,
    refs_objects.c.base_key,
    refs_objects.c.depth,
)


def add(
    tx: Tx, *, object_key: int, refs_set: bytes, count: int, base_key: int | None, depth: int
) -> None:
    """Insert the refs of a snapshot that is being committed."""
    tx.execute(
        insert(refs_objects).values(
            object_key=object_key, refs_set=refs_set, count=count, base_key=base_key, depth=depth
        )
    )


_BY_KEY = (
    select(*_ROW)
    .join(objects, objects.c.key == refs_objects.c.object_key)
    .where(refs_objects.c.object_key == bindparam("key"))
)
"""Made once: to make a query anew costs three times what SQLite needs for it."""


def by_key(tx: Tx, key: int) -> RefsRow:
    """Return a refs object."""
    return RefsRow(*tx.execute(_BY_KEY, {"key": key}).one())


def chain(tx: Tx, key: int) -> list[RefsRow]:
    """Return the refs object and what lies below it, the full list last."""
    found = [by_key(tx, key)]
    while (base := found[-1].base_key) is not None:
        found.append(by_key(tx, base))
        assert found[-1].depth == found[-2].depth - 1
    return found


def of_own_snapshot(tx: Tx, ulid: str, client_key: int) -> RefsRow | None:
    """Return the refs object `ulid` if it is that of a standing snapshot of this client."""
    query = (
        select(*_ROW)
        .join(objects, objects.c.key == refs_objects.c.object_key)
        .join(snapshots, snapshots.c.refs_key == refs_objects.c.object_key)
        .where(
            objects.c.ulid == ulid,
            snapshots.c.client_key == client_key,
            snapshots.c.state == SnapshotState.STANDING,
        )
        .limit(1)
    )
    row = tx.execute(query).one_or_none()
    return None if row is None else RefsRow(*row)
