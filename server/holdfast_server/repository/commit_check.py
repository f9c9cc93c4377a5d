"""Whether every chunk that a snapshot needs is there, looked up outside of its transaction.

What is shared with the parent counts as checked, if the parent stands inside the transaction:
collection never takes what a standing snapshot needs. Shared chunks can still be damaged, so these
few are looked at in any case.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from holdfast_contract.errors import Damaged
from holdfast_contract.format.manifest import ManifestBody
from holdfast_contract.limits import PAGE_ROWS_MAX
from holdfast_server.catalog import chunks
from holdfast_server.catalog.batches import IDS_MAX
from holdfast_server.catalog.connection import Catalog
from holdfast_server.catalog.snapshots import SnapshotRecord
from holdfast_server.repository.references import (
    NewRefs,
    References,
    in_both,
    only_in_first,
)


class Missing(NamedTuple):
    """A page of ids that a commit cannot have; `next` goes into the next question, b"": the end."""

    missing: list[bytes]
    damaged: list[bytes]
    next: bytes


@dataclass(frozen=True)
class Need:
    """What a manifest needs: its refs, and copies sealed with epochs that its readers have."""

    domain_key: int
    refs: NewRefs
    epoch_min: int
    epoch_new: int
    accepts_damage: bool
    """The agent has signed that the snapshot is incomplete."""

    @classmethod
    def of(cls, domain_key: int, refs: NewRefs, body: ManifestBody) -> Need:
        """Return what the manifest says that it needs."""
        is_incomplete = body.result == "incomplete"
        return cls(domain_key, refs, body.epoch_min, body.epoch_new, is_incomplete)

    def covers(self, parent: SnapshotRecord) -> bool:
        """Tell whether copies that are good for `parent` are good for this one too."""
        return self.epoch_min <= parent.epoch_min and parent.epoch_new <= self.epoch_new


class Checker:
    """Looks ids up in batches, each in a transaction of its own."""

    def __init__(self, catalog: Catalog, references: References) -> None:
        self._catalog = catalog
        self._references = references

    def is_complete(self, need: Need, parent: SnapshotRecord | None) -> bool:
        """Tell whether all is live, or damaged where that is accepted.

        Reads the whole list once, which also proves that it is the one that the manifest signs. A
        parent whose own list is damaged spares nothing: then every id is looked up.

        Raises:
            InvalidInput: the refs object is not what it says.
            Damaged: the list that it is a difference to cannot be read.
        """
        if parent is not None and not self._references.is_broken(parent.refs_key):
            try:
                return self._is_complete(need, parent)
            except Damaged:
                pass
        return self._is_complete(need, None)

    def _is_complete(self, need: Need, parent: SnapshotRecord | None) -> bool:
        added = self._added(need.refs, parent)
        is_complete = True
        for batch in _batches(added):
            # All of the list is read, whatever is missing: only its end proves it.
            is_complete = is_complete and not any(self._unfit(need, batch, need.accepts_damage))
        return is_complete and (need.accepts_damage or not self._touches_damage(need))

    def _added(self, refs: NewRefs, parent: SnapshotRecord | None) -> Iterator[bytes]:
        """Yield the ids that are not shared with `parent`."""
        if parent is None:
            return self._references.new_ids(refs)
        is_parents = refs.base is not None and refs.base.object_key == parent.refs_key
        if is_parents and refs.is_same_as_base:
            return iter(())
        shared = self._references.ids(refs.domain, parent.refs_key)
        return only_in_first(self._references.new_ids(refs), shared)

    def _touches_damage(self, need: Need) -> bool:
        damaged = self._damaged(need.domain_key)
        first = next(damaged, None)
        if first is None:
            return False
        known = _chained(first, damaged)
        return any(
            any(self._unfit(need, batch, accepts_damage=False))
            for batch in _batches(in_both(self._references.new_ids(need.refs), known))
        )

    def _damaged(self, domain_key: int) -> Iterator[bytes]:
        after = b""
        while True:
            with self._catalog.read() as tx:
                page = chunks.damaged_ids(tx, domain_key, after=after)
            yield from page
            if len(page) < IDS_MAX:
                return
            after = page[-1]

    def _unfit(
        self, need: Need, batch: list[bytes], accepts_damage: bool
    ) -> tuple[list[bytes], list[bytes]]:
        """Return (missing, damaged) of a batch; damaged is empty where that is accepted."""
        with self._catalog.read() as tx:
            live = chunks.live_ids(
                tx,
                need.domain_key,
                batch,
                epoch_min=need.epoch_min,
                epoch_max=need.epoch_new,
            )
            rest = [chunk_id for chunk_id in batch if chunk_id not in live]
            damaged = chunks.damaged_among(tx, need.domain_key, rest)
        missing = [chunk_id for chunk_id in rest if chunk_id not in damaged]
        return missing, [] if accepts_damage else sorted(damaged)

    def still_complete(self, need: Need, left: Iterable[bytes]) -> bool:
        """Tell whether all is there, after these ids have stopped being live meanwhile."""
        touched = in_both(self._references.new_ids(need.refs), sorted(set(left)))
        return not any(
            any(self._unfit(need, batch, need.accepts_damage)) for batch in _batches(touched)
        )

    def page(self, need: Need, after: bytes = b"") -> Missing:
        """Return what is missing and what is damaged among the ids behind `after`, ascending.

        At most 1,000 ids altogether.
        """
        missing: list[bytes] = []
        damaged: list[bytes] = []
        ids = (chunk_id for chunk_id in self._references.new_ids(need.refs) if chunk_id > after)
        for batch in _batches(ids):
            absent, spoiled = self._unfit(need, batch, accepts_damage=False)
            missing += absent
            damaged += spoiled
            if len(missing) + len(damaged) >= PAGE_ROWS_MAX:
                return _cut(missing, damaged)
        return Missing(missing, damaged, b"")


def _cut(missing: list[bytes], damaged: list[bytes]) -> Missing:
    last = sorted(missing + damaged)[PAGE_ROWS_MAX - 1]
    return Missing(
        [chunk_id for chunk_id in missing if chunk_id <= last],
        [chunk_id for chunk_id in damaged if chunk_id <= last],
        last,
    )


def _batches(ids: Iterable[bytes]) -> Iterator[list[bytes]]:
    iterator = iter(ids)
    while batch := list(islice(iterator, IDS_MAX)):
        yield batch


def _chained(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest
