"""Stands in for pruning and garbage collection, which the server does not have yet.

It obeys the rules of docs/protocol.md: a mark is made outside any transaction; the transaction that
lets chunks go first sees that nothing was committed since, and logs what stopped being live; a pack
is fenced by its name before its bytes go. It gives no grace, and spares nothing that only an open
session needs: what a commit may rely on is what the commit itself has checked.
"""

from __future__ import annotations

from random import Random
from typing import Any

from sqlalchemy import delete, func, select, update

from holdfast_contract.ids import DomainId
from holdfast_server.catalog import domains, liveness, schema, snapshots
from holdfast_server.catalog.connection import Catalog, Tx
from holdfast_server.catalog.schema import CopyState, ObjectKind, ObjectState, SnapshotState
from holdfast_server.catalog.snapshots import Filter, SnapshotRecord
from holdfast_server.repository import Repository
from holdfast_server.repository.names import object_name


class Collector:
    """One pass over one domain, in a fiber of the server."""

    def __init__(self, repository: Repository, catalog: Catalog, rng: Random, domain: str) -> None:
        self._repository = repository
        self._store = repository._parts.store
        self._catalog = catalog
        self._rng = rng
        self._domain = domains.get(catalog, domain)

    def run(self) -> str:
        """Purge snapshots now and then, collect; return what was done."""
        self._repository._parts.require_writable()
        purged = self._purge() if self._rng.random() < 0.7 else 0
        gone = self._collect()
        packs = self._free()
        return f"{purged} purged, {gone} chunks, {packs} packs"

    def _purge(self) -> int:
        with self._catalog.read() as tx:
            own = self._standing(tx)
        if not own:
            return 0
        one = own[-1] if self._rng.random() < 0.7 else self._rng.choice(own)
        chosen = [one.key]
        if self._rng.random() < 0.3:
            # All of a client: only then its chunks go that every snapshot of it has.
            chosen = [record.key for record in own if record.client == one.client]

        def work(tx: Tx) -> None:
            query = update(schema.snapshots).where(schema.snapshots.c.key.in_(chosen))
            tx.execute(query.values(state=SnapshotState.PURGED))

        self._catalog.write(work)
        return len(chosen)

    def _collect(self) -> int:
        with self._catalog.read() as tx:
            marked_at = self._commits(tx)
            standing = self._standing(tx)
            waiting = self._not_durable(tx)
            ids = select(schema.chunks.c.chunk_id).where(
                schema.chunks.c.domain_key == self._domain.key,
                schema.chunks.c.state == CopyState.LIVE,
            )
            live = set(tx.execute(ids).scalars())
            if self._rng.random() < 0.7:
                # For the progress of jobs only: what a commit relies on is its own check.
                live -= self._in_sessions(tx)
        if waiting:
            return 0
        reached: set[bytes] = set()
        for record in standing:
            reached.update(self._repository._references.ids(record.domain, record.refs_key))
        dead = live - reached
        if not dead:
            return 0

        def work(tx: Tx) -> int:
            if self._commits(tx) != marked_at or self._not_durable(tx):
                return 0
            # Spares go along: a live copy is what they stand in for.
            where = (
                schema.chunks.c.domain_key == self._domain.key,
                schema.chunks.c.chunk_id.in_(sorted(dead)),
            )
            tx.execute(delete(schema.chunks).where(*where))
            liveness.log_left(tx, self._domain.key, dead)
            return len(dead)

        return self._catalog.write(work)

    def _standing(self, tx: Tx) -> list[SnapshotRecord]:
        shown = snapshots.listed(tx, Filter())
        return [record for record in shown if record.domain_key == self._domain.key]

    @staticmethod
    def _in_sessions(tx: Tx) -> set[bytes]:
        """Return the ids that open sessions sent, or were told to be there."""
        is_open = schema.sessions.c.closed_ns.is_(None)
        sent = select(schema.chunks.c.chunk_id).join(
            schema.sessions, schema.sessions.c.key == schema.chunks.c.session_key
        )
        told = select(schema.session_ids.c.chunk_id).join(
            schema.sessions, schema.sessions.c.key == schema.session_ids.c.session_key
        )
        found = set(tx.execute(sent.where(is_open)).scalars())
        return found | set(tx.execute(told.where(is_open)).scalars())

    def _commits(self, tx: Tx) -> int:
        query = select(func.coalesce(func.max(schema.commit_log.c.number), 0))
        where = schema.commit_log.c.domain_key == self._domain.key
        return int(tx.execute(query.where(where)).scalar_one())

    def _not_durable(self, tx: Tx) -> bool:
        """Tell whether a commit waits for its journal record: its snapshot is not shown yet."""
        durable = select(schema.server_state.c.record_durable).scalar_subquery()
        query = select(schema.snapshots.c.key).where(schema.snapshots.c.record > durable)
        return tx.execute(query.limit(1)).first() is not None

    def _free(self) -> int:
        """Delete packs in which no row lies any more, their names fenced before."""
        with self._catalog.read() as tx:
            used = select(schema.chunks.c.object_key)
            query = select(schema.objects.c.key, schema.objects.c.ulid).where(
                schema.objects.c.kind == ObjectKind.PACK,
                schema.objects.c.state == ObjectState.STORED,
                schema.objects.c.domain_key == self._domain.key,
                schema.objects.c.key.not_in(used),
            )
            empty: list[Any] = list(tx.execute(query))
        for key, ulid in empty:
            self._set_state(key, ObjectState.FENCED)
            name = object_name(ObjectKind.PACK, DomainId(self._domain.domain), ulid)
            self._store.delete(name)
            self._set_state(key, ObjectState.DELETED)
        return len(empty)

    def _set_state(self, key: int, state: ObjectState) -> None:
        query = update(schema.objects).where(schema.objects.c.key == key).values(state=state)
        self._catalog.write(lambda tx: tx.execute(query))
