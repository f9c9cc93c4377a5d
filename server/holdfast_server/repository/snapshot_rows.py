"""The rows that make a snapshot, written in one transaction by a commit or by a replay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from holdfast_contract.format.manifest import ManifestBody
from holdfast_contract.ids import SnapshotId
from holdfast_server.catalog import clients, liveness, references, snapshots
from holdfast_server.catalog.connection import Tx
from holdfast_server.repository.references import NewRefs

_SAME: Final = (
    *("seq", "prev", "parent", "dataset", "lineage", "identity", "started_ns", "result"),
    *("consistency", "epoch_min", "epoch_new", "files", "dirs", "bytes", "bytes_new"),
)
"""Columns that are named like the manifest's keys."""


@dataclass(frozen=True)
class SnapshotRows:
    """A snapshot and the keys of what it belongs to."""

    snapshot: SnapshotId
    domain_key: int
    client_key: int
    manifest_key: int
    refs_key: int
    body: ManifestBody
    refs: NewRefs

    def write(self, tx: Tx, *, now_ns: int, number: int) -> None:
        """Insert snapshot, refs and log entry, and move the head; `number`: its journal record."""
        body, header, base = self.body, self.refs.header, self.refs.base
        references.add(
            tx,
            object_key=self.refs_key,
            refs_set=header.refs_set,
            count=header.count,
            base_key=None if base is None else base.object_key,
            depth=self.refs.depth,
        )
        values = {name: getattr(body, name) for name in _SAME} | {
            "snapshot": self.snapshot,
            "domain_key": self.domain_key,
            "client_key": self.client_key,
            "manifest_key": self.manifest_key,
            "refs_key": self.refs_key,
            "record": number,
            "time_ns": now_ns,
            "chunks": body.refs_count,
            "refs_set": body.refs_set,
        }
        key = snapshots.add(tx, values, paths=list(body.paths), tags=list(body.tags))
        liveness.log_commit(tx, self.domain_key, snapshot_key=key, refs_key=self.refs_key)
        clients.set_head(tx, self.client_key, seq=body.seq, snapshot=self.snapshot, prev=body.prev)
