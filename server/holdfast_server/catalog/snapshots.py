"""Snapshots: one small row each, shown only when its journal record is durable."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, RowMapping, Select, bindparam, func, insert, select

from holdfast_contract.ids import ClientName, DomainId, SnapshotId
from holdfast_server.catalog.batches import IDS_MAX
from holdfast_server.catalog.connection import Tx
from holdfast_server.catalog.packing import pack, unpack
from holdfast_server.catalog.schema import (
    SnapshotState,
    clients,
    domains,
    objects,
    refs_objects,
    server_state,
    snapshots,
)
from holdfast_server.catalog.scopes import EVERYWHERE, Scope

_Blob = bytes


class SnapshotRecord(NamedTuple):
    """A snapshot. `number` orders all snapshots of a server and pages lists; objects by ULID."""

    key: int
    id: SnapshotId
    domain_key: int
    domain: DomainId
    domain_name: str
    client_key: int
    client: ClientName
    seq: int
    prev: _Blob
    parent: _Blob
    dataset: _Blob
    lineage: _Blob
    identity: _Blob
    manifest_key: int
    manifest: str
    manifest_bytes: int
    refs_key: int
    refs: str
    refs_bytes: int
    refs_depth: int
    """Differences below the refs object; 0: it is a full list."""
    number: int
    state: SnapshotState
    pinned: bool
    time_ns: int
    started_ns: int
    result: str
    consistency: str
    epoch_min: int
    epoch_new: int
    files: int
    dirs: int
    bytes: int
    bytes_new: int
    chunks: int
    refs_set: _Blob
    paths: list[_Blob]
    tags: list[str]


_manifests = objects.alias("manifests")
_refs = objects.alias("refs")


@cache
def _select() -> Select[Any]:
    return (
        select(
            snapshots,
            clients.c.name.label("client"),
            domains.c.domain_id,
            domains.c.name.label("domain_name"),
            _manifests.c.ulid.label("manifest"),
            _manifests.c.length.label("manifest_bytes"),
            _refs.c.ulid.label("refs"),
            _refs.c.length.label("refs_bytes"),
            refs_objects.c.depth.label("refs_depth"),
        )
        .join(clients, clients.c.key == snapshots.c.client_key)
        .join(domains, domains.c.key == snapshots.c.domain_key)
        .join(_manifests, _manifests.c.key == snapshots.c.manifest_key)
        .join(_refs, _refs.c.key == snapshots.c.refs_key)
        .join(refs_objects, refs_objects.c.object_key == snapshots.c.refs_key)
    )


@cache
def _is_durable() -> ColumnElement[bool]:
    return snapshots.c.record <= select(server_state.c.record_durable).scalar_subquery()


@cache
def _is_shown() -> ColumnElement[bool]:
    return _is_durable() & (snapshots.c.state == SnapshotState.STANDING)


def _snapshot(row: RowMapping) -> SnapshotRecord:
    values = {name: value for name, value in row.items() if name != "state_ns"}
    values["id"] = SnapshotId(values.pop("snapshot"))
    values["domain"] = DomainId(values.pop("domain_id"))
    values["client"] = ClientName(values["client"])
    values["number"] = values.pop("record")
    values["state"] = SnapshotState(values["state"])
    values["paths"] = unpack(list[bytes], values["paths"])
    values["tags"] = unpack(list[str], values["tags"])
    return SnapshotRecord(**values)


def add(tx: Tx, values: dict[str, Any], *, paths: list[bytes], tags: list[str]) -> int:
    """Insert a snapshot that stands from now on and return its key; `values` by column name."""
    fixed = {"state": SnapshotState.STANDING, "state_ns": values["time_ns"], "pinned": False}
    packed = {"paths": pack(paths), "tags": pack(tags)}
    done = tx.execute(insert(snapshots).values(**values, **fixed, **packed))
    assert done.inserted_primary_key is not None
    return int(done.inserted_primary_key[0])


def _first(tx: Tx, query: Select[Any]) -> SnapshotRecord | None:
    row = tx.execute(query.limit(1)).mappings().one_or_none()
    return None if row is None else _snapshot(row)


@cache
def _committed() -> Select[Any]:
    """Made once: to make a query anew costs three times what SQLite needs for it."""
    return _select().where(snapshots.c.snapshot == bindparam("snapshot"))


def committed(tx: Tx, snapshot: bytes) -> SnapshotRecord | None:
    """Return a snapshot in any state, durable or not."""
    row = tx.execute(_committed(), {"snapshot": snapshot}).mappings().one_or_none()
    return None if row is None else _snapshot(row)


def durable(tx: Tx, snapshot: bytes, scope: Scope = EVERYWHERE) -> SnapshotRecord | None:
    """Return a snapshot within `scope` that has a durable record, standing or not."""
    where = (snapshots.c.snapshot == snapshot, _is_durable(), scope.of_domains(domains.c.name))
    return _first(tx, _select().where(*where))


def durable_of(tx: Tx, snapshot: bytes, client: ClientName) -> SnapshotRecord | None:
    """Return a snapshot of this client that has a durable record, standing or not."""
    where = (snapshots.c.snapshot == snapshot, _is_durable(), clients.c.name == client)
    return _first(tx, _select().where(*where))


def shown(tx: Tx, snapshot: bytes) -> SnapshotRecord | None:
    """Return a snapshot that is shown."""
    row = tx.execute(_shown(), {"snapshot": snapshot}).mappings().one_or_none()
    return None if row is None else _snapshot(row)


@cache
def _shown() -> Select[Any]:
    return _committed().where(_is_shown())


def with_prefix(
    tx: Tx, first: bytes, last: bytes, limit: int, scope: Scope = EVERYWHERE
) -> list[SnapshotRecord]:
    """Return shown snapshots within `scope` with ids from `first` to `last`, ascending."""
    between = snapshots.c.snapshot.between(first, last)
    query = _select().where(_is_shown(), between, scope.of_domains(domains.c.name))
    rows = tx.execute(query.order_by(snapshots.c.snapshot).limit(limit)).mappings()
    return [_snapshot(row) for row in rows]


def newest(
    tx: Tx,
    client: ClientName,
    *,
    at_ns: int | None = None,
    dataset: bytes | None = None,
    epochs: tuple[int, int] | None = None,
    scope: Scope = EVERYWHERE,
) -> SnapshotRecord | None:
    """Return the newest shown snapshot of a client, received at `at_ns` or before, of a dataset."""
    query = _select().where(_is_shown(), clients.c.name == client, scope.of_domains(domains.c.name))
    if at_ns is not None:
        query = query.where(snapshots.c.time_ns <= at_ns)
    if dataset is not None:
        query = query.where(snapshots.c.dataset == dataset)
    if epochs is not None:
        query = query.where(snapshots.c.epoch_min >= epochs[0], snapshots.c.epoch_new <= epochs[1])
    return _first(tx, query.order_by(snapshots.c.seq.desc()))


def newest_of(
    tx: Tx,
    client_keys: Sequence[int],
    *,
    result: str | None = None,
    dataset: bytes | None = None,
    epochs: tuple[int, int] | None = None,
) -> SnapshotRecord | None:
    """Return the newest shown snapshot of any of these clients, of a result, of a dataset."""
    found: SnapshotRecord | None = None
    for at in range(0, len(client_keys), IDS_MAX):
        some = client_keys[at : at + IDS_MAX]
        query = _select().where(_is_shown(), snapshots.c.client_key.in_(some))
        if result is not None:
            query = query.where(snapshots.c.result == result)
        if dataset is not None:
            query = query.where(snapshots.c.dataset == dataset)
        if epochs is not None:
            query = query.where(
                snapshots.c.epoch_min >= epochs[0], snapshots.c.epoch_new <= epochs[1]
            )
        newest = _first(tx, query.order_by(snapshots.c.record.desc()))
        if newest is not None and (found is None or newest.number > found.number):
            found = newest
    return found


def of_oldest_dataset(tx: Tx, client_key: int, *, epochs: tuple[int, int]) -> SnapshotRecord | None:
    """Return a client's newest whole snapshot of the paths that were not backed up for longest."""
    newest = (
        select(func.max(snapshots.c.record))
        .where(
            _is_shown(),
            snapshots.c.client_key == client_key,
            snapshots.c.result != "incomplete",
            snapshots.c.epoch_min >= epochs[0],
            snapshots.c.epoch_new <= epochs[1],
        )
        .group_by(snapshots.c.dataset)
    )
    query = _select().where(snapshots.c.client_key == client_key, snapshots.c.record.in_(newest))
    return _first(tx, query.order_by(snapshots.c.record))


def clients_with_snapshots(tx: Tx, limit: int, scope: Scope = EVERYWHERE) -> list[ClientName]:
    """Return names of clients within `scope` that have shown snapshots, at most `limit`, sorted."""
    query = (
        select(clients.c.name)
        .where(
            clients.c.key.in_(select(snapshots.c.client_key).where(_is_shown())),
            scope.of_clients(clients.c.name),
        )
        .order_by(clients.c.name)
        .limit(limit)
    )
    return [ClientName(name) for name in tx.execute(query).scalars()]


class Filter(NamedTuple):
    """Which snapshots are listed; times are receive times, both ends included."""

    client: ClientName | None = None
    since_ns: int | None = None
    until_ns: int | None = None
    latest: int | None = None
    """Only so many of the newest of each client (of those that pass the rest)."""
    scope: Scope = EVERYWHERE


def listed(tx: Tx, wanted: Filter, *, after: int = 0, limit: int = 1000) -> list[SnapshotRecord]:
    """Return shown snapshots, oldest first, at most `limit` with numbers beyond `after`."""
    within = select(domains.c.key).where(wanted.scope.of_domains(domains.c.name))
    where = [_is_shown()]
    if not wanted.scope.is_whole:
        where.append(snapshots.c.domain_key.in_(within))
    if wanted.client is not None:
        key = select(clients.c.key).where(clients.c.name == wanted.client)
        where.append(snapshots.c.client_key == key.scalar_subquery())
    if wanted.since_ns is not None:
        where.append(snapshots.c.time_ns >= wanted.since_ns)
    if wanted.until_ns is not None:
        where.append(snapshots.c.time_ns <= wanted.until_ns)
    query = _select().where(snapshots.c.record > after)
    if wanted.latest is not None:
        rank = func.row_number().over(
            partition_by=snapshots.c.client_key, order_by=snapshots.c.seq.desc()
        )
        ranked = select(snapshots.c.key, rank.label("rank")).where(*where).subquery()
        keys = select(ranked.c.key).where(ranked.c.rank <= wanted.latest)
        query = query.where(snapshots.c.key.in_(keys))
    else:
        query = query.where(*where)
    rows = tx.execute(query.order_by(snapshots.c.record).limit(limit)).mappings()
    return [_snapshot(row) for row in rows]


def newest_of_each_client(tx: Tx, client_names: list[ClientName]) -> dict[ClientName, SnapshotId]:
    """Return the newest shown snapshot of each of these clients that has one."""
    newest_seq = (
        select(snapshots.c.client_key, func.max(snapshots.c.seq).label("seq"))
        .where(_is_shown())
        .group_by(snapshots.c.client_key)
        .subquery()
    )
    query = (
        select(clients.c.name, snapshots.c.snapshot)
        .join(snapshots, snapshots.c.client_key == clients.c.key)
        .join(
            newest_seq,
            (newest_seq.c.client_key == snapshots.c.client_key)
            & (newest_seq.c.seq == snapshots.c.seq),
        )
        .where(clients.c.name.in_(client_names))
    )
    return {ClientName(name): SnapshotId(found) for name, found in tx.execute(query)}


def count(tx: Tx, scope: Scope = EVERYWHERE) -> int:
    """Return the number of shown snapshots within `scope`."""
    within = select(domains.c.key).where(scope.of_domains(domains.c.name))
    query = select(func.count()).select_from(snapshots)
    query = query.where(_is_shown(), snapshots.c.domain_key.in_(within))
    return tx.execute(query).scalar_one()
