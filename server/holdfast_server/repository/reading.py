"""Chunks for readers: only what a grant allows, from copies that can be read.

A grant stands for a running job or an open query and names snapshots of one domain, and perhaps the
upload session of the same job. Whatever is not in the refs of these snapshots, nor uploaded or
confirmed in that session, does not exist for its holder. For a backup nothing but the trees of
these snapshots exists either: it compares, and never reads back what files held.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

from holdfast_contract import errors
from holdfast_contract.errors import InvalidInput, NotFound
from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.format.pack import FRAME_BYTES
from holdfast_contract.ids import ObjectName
from holdfast_contract.limits import FETCH_IDS_MAX
from holdfast_server.catalog import chunks, domains, sessions, snapshots
from holdfast_server.catalog import damage as reports
from holdfast_server.catalog.chunks import READABLE_STATES, Copy
from holdfast_server.catalog.domains import DomainRecord
from holdfast_server.catalog.schema import CopyState, ObjectKind
from holdfast_server.catalog.snapshots import SnapshotRecord
from holdfast_server.repository.damage import Damage
from holdfast_server.repository.names import object_name
from holdfast_server.repository.parts import Parts
from holdfast_server.repository.references import References
from holdfast_server.repository.sessions import ID_BYTES


class FetchStatus(IntEnum):
    """What became of one asked id."""

    HERE = 0
    ABSENT = 1
    """Not granted or not there: the two look alike."""
    DAMAGED = 2


class Place(NamedTuple):
    """The answer to one id: where its sealed chunk lies, `length` bytes, 0 unless it is here."""

    chunk_id: bytes
    status: FetchStatus
    object: ObjectName
    """Empty where it is absent."""
    offset: int
    length: int


class _Wanted(NamedTuple):
    """An asked id with its copies that may be served, best first."""

    chunk_id: bytes
    copies: list[Copy]
    is_damaged: Copy | None


class Reading:
    """Opens grants."""

    def __init__(self, parts: Parts, references: References, damage: Damage) -> None:
        self.parts = parts
        self.references = references
        self.damage = damage

    def open_grant(
        self,
        domain_name: str,
        snapshot_ids: Sequence[bytes],
        session: str | None = None,
        *,
        is_tree_only: bool = False,
    ) -> Grant:
        """Return the right to read what these snapshots of the domain need, or of it the trees.

        Raises:
            NotFound: no such domain, or no such snapshot in it.
        """
        granted = []
        with self.parts.catalog.read() as tx:
            domain = domains.named(tx, domain_name)
            for snapshot_id in dict.fromkeys(snapshot_ids):
                found = snapshots.shown(tx, snapshot_id)
                if found is None or found.domain_key != domain.key:
                    raise NotFound(f"no such snapshot: {snapshot_id.hex()}")
                granted.append(found)
        return Grant(self, domain, granted, session, is_tree_only=is_tree_only)


class Grant:
    """The right to read; thread-safe, keeps no connection and needs no closing."""

    def __init__(
        self,
        reading: Reading,
        domain: DomainRecord,
        granted: list[SnapshotRecord],
        session: str | None,
        *,
        is_tree_only: bool,
    ) -> None:
        self._is_tree_only = is_tree_only
        self._reading = reading
        self._domain = domain
        self._snapshots = granted
        self._session = session

    @property
    def domain_name(self) -> str:
        """The domain in which it is good."""
        return self._domain.name

    @property
    def snapshots(self) -> list[SnapshotRecord]:
        """What may be read."""
        return list(self._snapshots)

    def places(self, ids: Sequence[bytes]) -> list[Place]:
        """Return an answer for each of at most 256 ids, in their order; nothing is read yet.

        Raises:
            InvalidInput: too many ids, or of another length.
            StoreFailed: the store does not answer now.
        """
        if len(ids) > FETCH_IDS_MAX or any(len(chunk_id) != ID_BYTES for chunk_id in ids):
            raise InvalidInput(f"at most {FETCH_IDS_MAX} ids of {ID_BYTES} bytes")
        wanted = self._wanted(ids)
        sizes: dict[ObjectName, int] = {}
        return [self._place(wanted[chunk_id], sizes) for chunk_id in ids]

    def read(self, places: Sequence[Place], rooms: Sequence[memoryview]) -> None:
        """Fill `rooms` with the sealed chunks that are here, each with one as long as it is.

        Chunks that lie side by side are read at once: ask in the order of packs.

        Raises:
            NotFound, Damaged: a copy has gone since it was looked at; ask anew.
            StoreFailed: the store does not answer now.
        """
        gap = memoryview(bytearray(FRAME_BYTES))
        for run in _runs(zip(places, rooms, strict=True)):
            first, end = run[0][0], run[0][0].offset
            into: list[memoryview] = []
            for place, room in run:
                # What lies between two chunks of a pack is read over.
                into += [gap[: place.offset - end], room]
                end = place.offset + place.length
            self._reading.parts.store.get_into(first.object, first.offset, into)

    def allows(self, chunk_id: bytes) -> bool:
        """Tell whether the grant covers a chunk: only of such a one may its holder say anything."""
        wanted = self._wanted([chunk_id])[chunk_id]
        return bool(wanted.copies) or wanted.is_damaged is not None

    def _wanted(self, ids: Sequence[bytes]) -> dict[bytes, _Wanted]:
        allowed = self._allowed(ids)
        # What a tree-only grant keeps back may still have been uploaded or confirmed.
        asked = ids if self._is_tree_only else [one for one in ids if one not in allowed]
        of_session = self._of_session(list(asked))
        granted = sorted(allowed.keys() | of_session)
        with self._reading.parts.catalog.read() as tx:
            found = chunks.copies(tx, self._domain.key, granted)
            reported = reports.reported(tx, self._domain.key, granted)
        made = {}
        for chunk_id in ids:
            epochs = allowed.get(chunk_id, [])
            fitting = [
                copy
                for copy in found.get(chunk_id, [])
                if chunk_id in of_session or self._may_read(copy, epochs)
            ]
            readable = [copy for copy in fitting if copy.state in READABLE_STATES]
            # A copy that somebody could not open comes last, and still comes: he may lie.
            readable.sort(key=lambda c: (c.chunk_id, c.object_key, c.offset) in reported)
            spoiled = [copy for copy in fitting if copy.state is CopyState.DAMAGED]
            made[chunk_id] = _Wanted(chunk_id, readable, spoiled[0] if spoiled else None)
        return made

    def _allowed(self, ids: Sequence[bytes]) -> dict[bytes, list[tuple[int, int]]]:
        """Return for each granted id the epochs of which its readers have keys."""
        allowed: dict[bytes, list[tuple[int, int]]] = {}
        for snapshot in self._snapshots:
            epochs = (snapshot.epoch_min, snapshot.epoch_new)
            for chunk_id in self._named(snapshot, ids):
                allowed.setdefault(chunk_id, []).append(epochs)
        return allowed

    def _named(self, snapshot: SnapshotRecord, ids: Sequence[bytes]) -> Sequence[bytes]:
        """Return those of `ids` that a snapshot needs; all, where its list is damaged.

        A few bytes that bound what a reader may ask for must not take the data with them: who
        holds the grant holds the domain's key, and only chunks of that domain are served.
        """
        try:
            index = self._reading.references.index(snapshot.domain, snapshot.refs_key)
        except errors.Damaged:
            return ids
        return [chunk_id for chunk_id in ids if chunk_id in index]

    def _may_read(self, copy: Copy, epochs: list[tuple[int, int]]) -> bool:
        is_of_kind = not self._is_tree_only or copy.type == ChunkType.TREE
        return is_of_kind and any(first <= copy.epoch <= last for first, last in epochs)

    def _of_session(self, ids: list[bytes]) -> set[bytes]:
        if self._session is None or not ids:
            return set()
        with self._reading.parts.catalog.read() as tx:
            row = sessions.find(tx, self._session)
            if row is None or row.closed_ns is not None or row.domain_key != self._domain.key:
                return set()
            confirmed = sessions.confirmed(tx, row.key, ids)
            known = chunks.copies(tx, self._domain.key, ids)
        uploaded = {
            chunk_id
            for chunk_id, copies in known.items()
            if any(copy.session_key == row.key for copy in copies)
        }
        return confirmed | uploaded

    # --- reading

    def _place(self, wanted: _Wanted, sizes: dict[ObjectName, int]) -> Place:
        """Return where the best copy lies that is in the store as a whole."""
        spoiled = wanted.is_damaged
        for copy in wanted.copies:
            name = self._name(copy)
            try:
                if name not in sizes:
                    sizes[name] = self._reading.parts.store.size(name)
                if copy.offset + copy.length > sizes[name]:
                    raise errors.Damaged(f"object {name} is damaged: too short", object=name)
            except (NotFound, errors.Damaged) as exc:
                self._reading.damage.found(self._domain, copy, exc.message)
                spoiled = spoiled or copy
                continue
            return Place(wanted.chunk_id, FetchStatus.HERE, name, copy.offset, copy.length)
        if spoiled is None:
            return Place(wanted.chunk_id, FetchStatus.ABSENT, ObjectName(""), 0, 0)
        return Place(wanted.chunk_id, FetchStatus.DAMAGED, self._name(spoiled), spoiled.offset, 0)

    def _name(self, copy: Copy) -> ObjectName:
        return object_name(ObjectKind.PACK, self._domain.domain, copy.ulid)


_Run = list[tuple[Place, memoryview]]


def _runs(answers: Iterable[tuple[Place, memoryview]]) -> Iterator[_Run]:
    """Yield the chunks that are here, those together that lie side by side in one pack."""
    run: _Run = []
    for place, room in answers:
        if place.status is not FetchStatus.HERE:
            continue
        if run and not _follows(run[-1][0], place):
            yield run
            run = []
        run.append((place, room))
    if run:
        yield run


def _follows(before: Place, place: Place) -> bool:
    gap = place.offset - (before.offset + before.length)
    return place.object == before.object and 0 <= gap <= FRAME_BYTES
