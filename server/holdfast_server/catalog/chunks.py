"""Copies of chunks: which are live, where they lie, which are damaged.

The first live copy of an epoch wins: a later one never displaces it, since the server cannot check
a chunk id and a compromised pod could replace its siblings' history. It is kept as a spare. Only a
damaged copy is replaced.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import RowMapping, and_, delete, func, select, update

from holdfast_contract.format.pack import PackEntry
from holdfast_server.catalog.batches import IDS_MAX, marks, padded, sorted_batches
from holdfast_server.catalog.connection import Tx
from holdfast_server.catalog.schema import CopyState, chunks, objects

_EPOCH_MAX = (1 << 32) - 1
READABLE_STATES = (CopyState.LIVE, CopyState.SPARE, CopyState.CONDEMNED)
"""States in which a copy's bytes are where they were."""


class Copy(NamedTuple):
    """One sealed copy; `ulid` names its pack."""

    chunk_id: bytes
    generation: int
    object_key: int
    ulid: str
    offset: int
    length: int
    storage_hash: bytes
    epoch: int
    type: int
    """ChunkType, as its uploader said."""
    state: CopyState
    session_key: int


class Uploaded(NamedTuple):
    """Where entries of a pack come from."""

    domain_key: int
    object_key: int
    client_key: int
    session_key: int


_COPY = (
    chunks.c.chunk_id,
    chunks.c.generation,
    chunks.c.object_key,
    objects.c.ulid,
    chunks.c.offset,
    chunks.c.length,
    chunks.c.storage_hash,
    chunks.c.epoch,
    chunks.c.type,
    chunks.c.state,
    chunks.c.session_key,
)


def _copy(row: RowMapping) -> Copy:
    values: Mapping[str, Any] = dict(row)
    return Copy(**{**values, "state": CopyState(values["state"])})


def _of(domain_key: int, ids: Sequence[bytes]) -> Any:
    return and_(chunks.c.domain_key == domain_key, chunks.c.chunk_id.in_(ids))


def index_pack(tx: Tx, origin: Uploaded, entries: Iterable[PackEntry]) -> None:
    """Insert the copies that a stored pack brings, in the order of their ids."""
    by_id: dict[bytes, PackEntry] = {entry.chunk_id: entry for entry in entries}
    for batch in sorted_batches(by_id):
        known = _known(tx, origin.domain_key, batch)
        rows = []
        for chunk_id in batch:
            entry = by_id[chunk_id]
            copies = known.get(chunk_id, [])
            is_live = not any(s is CopyState.LIVE and e == entry.epoch for _, s, e in copies)
            if is_live:
                _drop_damaged(tx, origin.domain_key, entry, copies)
            generation = max((g for g, _, _ in copies), default=0) + 1
            state = CopyState.LIVE if is_live else CopyState.SPARE
            rows.append((*origin, *entry, generation, state))
        tx.exec_driver_sql(_INSERT, rows)


_COLUMNS = (*Uploaded._fields, *PackEntry._fields, "generation", "state")
_INSERT = f"INSERT INTO chunks ({','.join(_COLUMNS)}) VALUES ({marks(len(_COLUMNS))})"  # noqa: S608
"""As text: a quarter of what storing a pack of small chunks took was spent on making it."""


_Known = list[tuple[int, CopyState, int]]


def _known(tx: Tx, domain_key: int, batch: Sequence[bytes]) -> dict[bytes, _Known]:
    found: dict[bytes, _Known] = {}
    wanted = padded(batch)
    rows = tx.exec_driver_sql(_known_query(len(wanted)), (domain_key, *wanted))
    for chunk_id, generation, state, epoch in rows:
        found.setdefault(chunk_id, []).append((generation, CopyState(state), epoch))
    return found


@cache
def _known_query(count: int) -> str:
    return (
        "SELECT chunk_id, generation, state, epoch FROM chunks"  # noqa: S608  # no values
        f" WHERE domain_key = ? AND chunk_id IN ({marks(count)})"
    )


def _drop_damaged(tx: Tx, domain_key: int, entry: PackEntry, copies: _Known) -> None:
    """Remove damaged copies that the new one replaces: the journal keeps what was said of them."""
    if any(s is CopyState.DAMAGED and e == entry.epoch for _, s, e in copies):
        where = and_(
            _of(domain_key, [entry.chunk_id]),
            chunks.c.state == CopyState.DAMAGED,
            chunks.c.epoch == entry.epoch,
        )
        tx.execute(delete(chunks).where(where))


def live_ids(
    tx: Tx, domain_key: int, ids: Collection[bytes], *, epoch_min: int, epoch_max: int | None = None
) -> set[bytes]:
    """Return those of `ids` that have a live copy of an epoch in that range."""
    live: set[bytes] = set()
    last = _EPOCH_MAX if epoch_max is None else epoch_max
    for batch in sorted_batches(ids):
        wanted = padded(batch)
        values = (domain_key, int(CopyState.LIVE), epoch_min, last, *wanted)
        live.update(tx.exec_driver_sql(_live_query(len(wanted)), values).scalars())
    return live


@cache
def _live_query(count: int) -> str:
    """Return the query for `count` ids as text: having it made anew costs more than the look-up."""
    return (
        "SELECT chunk_id FROM chunks WHERE domain_key = ? AND state = ?"  # noqa: S608  # no values
        f" AND epoch BETWEEN ? AND ? AND chunk_id IN ({marks(count)})"
    )


def damaged_among(tx: Tx, domain_key: int, ids: Collection[bytes]) -> set[bytes]:
    """Return those of `ids` that have a damaged copy."""
    found: set[bytes] = set()
    for batch in sorted_batches(ids):
        query = select(chunks.c.chunk_id).where(
            _of(domain_key, batch), chunks.c.state == CopyState.DAMAGED
        )
        found.update(tx.execute(query).scalars())
    return found


def damaged_ids(
    tx: Tx, domain_key: int, *, after: bytes = b"", limit: int = IDS_MAX
) -> list[bytes]:
    """Return ids of the domain that have a damaged copy, ascending, beginning behind `after`."""
    query = (
        select(chunks.c.chunk_id)
        .distinct()
        .where(
            chunks.c.domain_key == domain_key,
            chunks.c.state == CopyState.DAMAGED,
            chunks.c.chunk_id > after,
        )
        .order_by(chunks.c.chunk_id)
        .limit(limit)
    )
    return list(tx.execute(query).scalars())


def damaged_count(tx: Tx) -> int:
    """Return how many copies are damaged, in all domains."""
    query = select(func.count()).select_from(chunks).where(chunks.c.state == CopyState.DAMAGED)
    return tx.execute(query).scalar_one()


def copies(tx: Tx, domain_key: int, ids: Collection[bytes]) -> dict[bytes, list[Copy]]:
    """Return the copies of `ids` in every state, the first live one first, then by generation."""
    found: dict[bytes, list[Copy]] = {}
    for batch in sorted_batches(ids):
        wanted = padded(batch)
        for row in tx.exec_driver_sql(_copies_query(len(wanted)), (domain_key, *wanted)):
            copy = Copy._make((*row[:9], CopyState(row[9]), row[10]))
            found.setdefault(copy.chunk_id, []).append(copy)
    for each in found.values():
        each.sort(key=lambda copy: (copy.state is not CopyState.LIVE, copy.generation))
    return found


@cache
def _copies_query(count: int) -> str:
    return (
        f"SELECT {','.join(str(column) for column in _COPY)} FROM chunks"  # noqa: S608  # no values
        " JOIN objects ON objects.key = chunks.object_key"
        f" WHERE chunks.domain_key = ? AND chunks.chunk_id IN ({marks(count)})"
    )


def in_object(tx: Tx, domain_key: int, object_key: int) -> list[Copy]:
    """Return every copy that lies in one pack, by place."""
    query = select(*_COPY).join(objects, objects.c.key == chunks.c.object_key)
    where = (chunks.c.object_key == object_key, chunks.c.domain_key == domain_key)
    rows = tx.execute(query.where(*where).order_by(chunks.c.offset)).mappings()
    return [_copy(row) for row in rows]


def set_state(
    tx: Tx, domain_key: int, copy: Copy, *, before: Collection[CopyState], after: CopyState
) -> bool:
    """Move one copy from a state of `before` to `after`. False: it is not as it was."""
    where = and_(
        _of(domain_key, [copy.chunk_id]),
        chunks.c.generation == copy.generation,
        chunks.c.object_key == copy.object_key,
        chunks.c.offset == copy.offset,
        chunks.c.state.in_(before),
    )
    return tx.execute(update(chunks).where(where).values(state=after)).rowcount == 1


def remove(tx: Tx, domain_key: int, copy: Copy) -> None:
    """Remove a damaged copy that another one has replaced."""
    where = and_(
        _of(domain_key, [copy.chunk_id]),
        chunks.c.generation == copy.generation,
        chunks.c.state == CopyState.DAMAGED,
    )
    tx.execute(delete(chunks).where(where))
