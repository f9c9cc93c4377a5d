"""Replicas of one workload: whose snapshot serves as a reference, and whose first backup waits.

Small files of a replica are found in what a relative has stored (docs/format.md, Small files). The
server chooses; the agent believes nothing of it and checks client, workload and MAC itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from holdfast_contract.ids import ClientName
from holdfast_server.catalog import clients, domains, jobs, snapshots
from holdfast_server.catalog.connection import Catalog, Tx
from holdfast_server.catalog.jobs import JobRecord
from holdfast_server.catalog.snapshots import SnapshotRecord
from holdfast_server.control.orders import BackupSpec, Spec, decode_spec

_RESULTS: Final = ("complete", "skips")
"""In this order: files that were skipped take nothing from those that were not, and a busy replica
may never have a complete snapshot. An incomplete one names chunks that nobody has."""


def references_for(
    catalog: Catalog,
    client: ClientName,
    *,
    dataset: bytes,
    parent: SnapshotRecord | None,
    epochs: tuple[int, int],
) -> list[SnapshotRecord]:
    """Return the snapshots, beside the parent, in which a backup may look for small files.

    Of relatives, where the domain shares: the newest complete one, and that of the replica of the
    lowest ordinal, from which the others began: the newest lacks what its own replica has changed.
    Of the client itself, when it backs up paths for the first time: that of its oldest paths, for
    the same reason. Only such as have all chunks within `epochs`; one of the same dataset (16
    bytes) goes before others.
    """
    shares = domains.get(catalog, client.domain).share_references
    with catalog.read() as tx:
        found: list[SnapshotRecord | None] = []
        if shares:
            family = [row for row in clients.relatives(tx, client) if row.revoked_ns is None]
            family.sort(key=lambda row: row.name.ordinal)
            newest = _complete(tx, [row.key for row in family], dataset, epochs)
            eldest = (_complete(tx, [row.key], dataset, epochs) for row in family)
            found += [next((one for one in eldest if one is not None), None), newest]
        if parent is not None and parent.dataset != dataset:
            found.append(snapshots.of_oldest_dataset(tx, parent.client_key, epochs=epochs))
    known = {} if parent is None else {parent.id: parent}
    return [one for one in found if one is not None and known.setdefault(one.id, one) is one]


def _complete(
    tx: Tx, keys: list[int], dataset: bytes, epochs: tuple[int, int]
) -> SnapshotRecord | None:
    for result in _RESULTS:
        for wanted in (dataset, None):
            found = snapshots.newest_of(tx, keys, result=result, dataset=wanted, epochs=epochs)
            if found is not None:
                return found
    return None


def waits_for(
    catalog: Catalog, record: JobRecord, is_connected: Callable[[ClientName], bool]
) -> ClientName | None:
    """Return the replica after whose first backup this queued job is to begin, None for at once.

    Replicas that begin together would each store what one of them could have stored for all. Only
    the workload's first backups wait, and only while the one before them has its agent: one that is
    away may never come back.
    """
    client = record.client
    if not _reads_files(decode_spec(record.spec)) or client.workload == client:
        return None
    if not domains.get(catalog, client.domain).share_references:
        return None
    with catalog.read() as tx:
        family = [row.key for row in clients.relatives(tx, client)]
        own = clients.find(tx, client)
        if not family or snapshots.newest_of(tx, family + ([own.key] if own else [])) is not None:
            return None
    for active in jobs.active(catalog):
        first = active.client
        if (
            first.is_relative_of(client)
            and is_connected(first)
            and _reads_files(decode_spec(active.spec))
        ):
            return first
    return None


def _reads_files(spec: Spec) -> bool:
    return isinstance(spec, BackupSpec) and not spec.dry_run
