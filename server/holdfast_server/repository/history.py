"""Snapshots as people and agents ask for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from holdfast_contract.errors import Damaged, NotFound
from holdfast_contract.format.manifest import snapshot_id
from holdfast_contract.ids import ZERO_HASH, ClientName, SnapshotId
from holdfast_server.catalog import clients, snapshots
from holdfast_server.catalog.schema import ObjectKind, SnapshotState
from holdfast_server.catalog.scopes import EVERYWHERE, Scope
from holdfast_server.catalog.snapshots import Filter, SnapshotRecord
from holdfast_server.repository import snapshot_references
from holdfast_server.repository.names import object_name
from holdfast_server.repository.parts import Parts


class Head(NamedTuple):
    """The newest snapshot of a client's history; 0 and zero bytes where there is none."""

    seq: int
    snapshot: SnapshotId


class History:
    """Reads snapshots whose journal record is durable; others do not exist yet."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def head(self, client: ClientName) -> Head:
        """Return where a client's history stands, what was pruned included.

        Raises:
            NotFound: the client is not enrolled.
        """
        with self._parts.catalog.read() as tx:
            found = clients.require(tx, client)
            if found.head == ZERO_HASH:
                return Head(0, found.head)
            newest = snapshots.durable(tx, found.head) or snapshots.committed(tx, found.head)
        assert newest is not None, "a head is a snapshot"
        # A head that is not durable is a commit that was cut off: it is finished first.
        self._parts.journal.flush(newest.number)
        return Head(newest.seq, newest.id)

    def parent_for(self, client: ClientName, dataset: bytes | None = None) -> SnapshotId | None:
        """Return the snapshot whose tree a backup best starts from: the newest that stands.

        One of the same dataset (16 bytes) goes before a newer one of other paths.
        """
        with self._parts.catalog.read() as tx:
            same = None if dataset is None else snapshots.newest(tx, client, dataset=dataset)
            found = same or snapshots.newest(tx, client)
        return None if found is None else found.id

    def listed(
        self, wanted: Filter, *, tag: str = "", after: int = 0, limit: int = 1000
    ) -> list[SnapshotRecord]:
        """Return snapshots that pass, oldest first, at most `limit` with numbers beyond `after`."""
        if not tag:
            with self._parts.catalog.read() as tx:
                return snapshots.listed(tx, wanted, after=after, limit=limit)
        return self._tagged(wanted, tag, after, limit)

    def _tagged(self, wanted: Filter, tag: str, after: int, limit: int) -> list[SnapshotRecord]:
        """Tags are looked at here, and `latest` counts those that have the tag."""
        found: list[SnapshotRecord] = []
        every = wanted._replace(latest=None)
        with self._parts.catalog.read() as tx:
            number = 0 if wanted.latest is not None else after
            while page := snapshots.listed(tx, every, after=number, limit=1000):
                number = page[-1].number
                found += [snapshot for snapshot in page if tag in snapshot.tags]
                if wanted.latest is None and len(found) >= limit:
                    break
        if wanted.latest is not None:
            found = _newest_of_each(found, wanted.latest)
        return [snapshot for snapshot in found if snapshot.number > after][:limit]

    def newest_of(self, names: list[ClientName]) -> dict[ClientName, SnapshotId]:
        """Return the newest snapshot of each of these clients that has one."""
        with self._parts.catalog.read() as tx:
            return snapshots.newest_of_each_client(tx, names)

    def count(self) -> int:
        """Return the number of snapshots."""
        with self._parts.catalog.read() as tx:
            return snapshots.count(tx)

    def get(self, snapshot: bytes, scope: Scope = EVERYWHERE) -> SnapshotRecord:
        """Return a snapshot within `scope` by its id (32 bytes), pruned ones too.

        Raises:
            NotFound: there is none.
        """
        with self._parts.catalog.read() as tx:
            return _present(snapshots.durable(tx, snapshot, scope), snapshot)

    def of_client(self, snapshot: bytes, client: ClientName) -> SnapshotRecord:
        """Return a snapshot of this client's own history by its id, pruned ones too.

        Raises:
            NotFound: there is none, or it is another client's.
        """
        with self._parts.catalog.read() as tx:
            return _present(snapshots.durable_of(tx, snapshot, client), snapshot)

    def standing(self, snapshot_ids: Sequence[bytes]) -> list[SnapshotRecord]:
        """Return those of these snapshots that stand, in their order."""
        with self._parts.catalog.read() as tx:
            found = [snapshots.shown(tx, snapshot) for snapshot in snapshot_ids]
        return [snapshot for snapshot in found if snapshot is not None]

    def resolve(self, reference: str, scope: Scope = EVERYWHERE) -> SnapshotRecord:
        """Return the snapshot that a person's reference names; see `snapshot_references`."""
        with self._parts.catalog.read() as tx:
            return snapshot_references.resolve(tx, reference, scope)

    def manifest(self, found: SnapshotRecord) -> bytes:
        """Return the manifest of a snapshot as it was stored.

        Raises:
            Damaged: the object is not what was stored.
        """
        name = object_name(ObjectKind.MANIFEST, found.domain, found.manifest)
        try:
            data = self._parts.store.get(name)
        except NotFound as exc:
            raise Damaged(f"object {name} is gone from the store", object=name) from exc
        if snapshot_id(data) != found.id:
            raise Damaged(f"object {name} is damaged", object=name)
        return data


def is_standing(snapshot: SnapshotRecord) -> bool:
    """Tell whether a snapshot is neither in the trash nor purged."""
    return snapshot.state is SnapshotState.STANDING


def _present(found: SnapshotRecord | None, snapshot: bytes) -> SnapshotRecord:
    if found is None:
        raise NotFound(f"no such snapshot: {snapshot.hex()}")
    return found


def _newest_of_each(found: list[SnapshotRecord], count: int) -> list[SnapshotRecord]:
    kept: list[SnapshotRecord] = []
    seen: dict[int, int] = {}
    for snapshot in reversed(found):
        seen[snapshot.client_key] = seen.get(snapshot.client_key, 0) + 1
        if seen[snapshot.client_key] <= count:
            kept.append(snapshot)
    return kept[::-1]
