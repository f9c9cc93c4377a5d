"""Copies that cannot be opened: the server reads them again and decides what is to be believed.

Other bytes than were stored: damaged at once. The very bytes that were stored: then the uploader or
the reporter lies, and only a second reporter or an administrator settles it, so that no single liar
can condemn history.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from holdfast_contract import errors
from holdfast_contract.errors import NoSpace, NotFound, StoreFailed
from holdfast_contract.format.chunk import storage_hash
from holdfast_contract.logs import get_logger
from holdfast_server.catalog import chunks, domains, events, liveness, objects, outbox, state
from holdfast_server.catalog import damage as reports
from holdfast_server.catalog.batches import IDS_MAX
from holdfast_server.catalog.chunks import READABLE_STATES, Copy
from holdfast_server.catalog.connection import Tx
from holdfast_server.catalog.damage import Report
from holdfast_server.catalog.domains import DomainRecord
from holdfast_server.catalog.schema import CopyState, ObjectKind
from holdfast_server.catalog.snapshots import SnapshotRecord
from holdfast_server.repository.journal import JournalDiverged
from holdfast_server.repository.journal_records import Damaged, encode_record
from holdfast_server.repository.names import object_name, pack_ulid
from holdfast_server.repository.parts import Parts
from holdfast_server.repository.references import References

SERVER: Final = reports.SERVER
_MARKED_AT_ONCE: Final = 256
"""Copies marked in one transaction, and by one journal object, where a pack is looked through."""
UNCONFIRMED_MAX: Final = 1000
"""Reports of one client that are kept although the server found nothing wrong: a liar must not fill
the catalog, nor the events. More are answered and forgotten."""
_log = get_logger(__name__)


class _Copies(NamedTuple):
    reported: Copy
    spare: Copy | None
    """A copy of the same epoch whose bytes were just found right."""


class Damage:
    """Receives reports and marks copies."""

    def __init__(self, parts: Parts, references: References) -> None:
        self._parts = parts
        self._references = references

    def report(
        self,
        domain_name: str,
        reporter: str,
        *,
        chunk: bytes,
        object_name: str,
        offset: int,
        reason: str,
        is_administrator: bool = False,
    ) -> str:
        """Look at a copy that `reporter` could not open; return `damaged` or `reported`.

        Raises:
            NotFound: the domain has no such copy.
        """
        self._parts.require_writable()
        domain = domains.get(self._parts.catalog, domain_name)
        ulid = pack_ulid(object_name, domain.domain)
        with self._parts.catalog.read() as tx:
            row = None if ulid is None else objects.find(tx, ulid)
            if row is None or row.domain_key != domain.key:
                raise NotFound("no such copy of a chunk")
            known = chunks.copies(tx, domain.key, [chunk]).get(chunk, [])
            was_confirmed = reports.is_confirmed(tx, domain.key, chunk, row.key, offset)
        found = [copy for copy in known if (copy.object_key, copy.offset) == (row.key, offset)]
        if not found:
            if was_confirmed:
                return "damaged"
            raise NotFound("no such copy of a chunk")
        return self._judge(
            domain, found[0], known, (reporter, reason), is_administrator=is_administrator
        )

    def found(self, domain: DomainRecord, copy: Copy, reason: str) -> None:
        """Say that the server itself could not read a copy; it is looked at again.

        Never in the way of the reader: what cannot be written now is found again later.
        """
        if self._parts.refusal:
            return
        try:
            self._judge_again(domain, copy, reason)
        except (NoSpace, StoreFailed, JournalDiverged) as exc:
            _log.warning("damage could not be recorded", error=exc.message)

    def _judge_again(self, domain: DomainRecord, copy: Copy, reason: str) -> None:
        with self._parts.catalog.read() as tx:
            known = chunks.copies(tx, domain.key, [copy.chunk_id]).get(copy.chunk_id, [])
        self._judge(domain, copy, known, (SERVER, reason), is_administrator=False)

    def _judge(
        self,
        domain: DomainRecord,
        copy: Copy,
        known: list[Copy],
        said: tuple[str, str],
        *,
        is_administrator: bool,
    ) -> str:
        if copy.state is CopyState.DAMAGED:
            return "damaged"
        is_wrong = not self._is_as_stored(domain, copy)
        spare = self._spare(domain, copy, known)

        def work(tx: Tx) -> int | None:
            now = state.receive_time(tx, self._parts.clock)
            key = (domain.key, copy.chunk_id, copy.object_key, copy.offset)
            is_word = not is_wrong and not is_administrator
            if is_word and reports.unconfirmed_of(tx, domain.key, said[0]) >= UNCONFIRMED_MAX:
                return None
            is_new = reports.add(tx, Report(*key, *said, now, is_wrong))
            believed = is_wrong or is_administrator or reports.reporters(tx, *key) > 1
            if believed:
                number = _mark(tx, domain, _Copies(copy, spare), now)
                if number is not None:
                    reason = "lost" if spare is None else "healed"
                    _tell(tx, now, "chunk-damaged", domain, copy, (SERVER, reason))
                return number
            if is_new:
                _tell(tx, now, "chunk-reported", domain, copy, said)
            return None

        number = self._parts.catalog.write(work)
        if number is None:
            return "reported"
        self._parts.journal.flush(number)
        if is_wrong:
            self._look_through(domain, copy)
        return "damaged"

    def _look_through(self, domain: DomainRecord, first: Copy) -> None:
        """Look at the other copies in the pack of a damaged one, and mark those that are too.

        What harmed one has often harmed its neighbours, or the pack is gone. Readers alone would
        find them one by one, and what lies below a directory that is lost not at all: it would
        heal in as many nights as the tree is deep.
        """
        with self._parts.catalog.read() as tx:
            beside = chunks.in_object(tx, domain.key, first.object_key)
        wrong = [
            copy
            for copy in beside
            if copy.state in READABLE_STATES and not self._is_as_stored(domain, copy)
        ]
        try:
            for start in range(0, len(wrong), _MARKED_AT_ONCE):
                self._mark_all(domain, wrong[start : start + _MARKED_AT_ONCE])
        except (NoSpace, StoreFailed, JournalDiverged) as exc:
            _log.warning("damage could not be recorded", error=exc.message)

    def _mark_all(self, domain: DomainRecord, wrong: list[Copy]) -> None:
        with self._parts.catalog.read() as tx:
            known = chunks.copies(tx, domain.key, [copy.chunk_id for copy in wrong])
        found = [
            _Copies(copy, self._spare(domain, copy, known.get(copy.chunk_id, []))) for copy in wrong
        ]

        def work(tx: Tx) -> int | None:
            now = state.receive_time(tx, self._parts.clock)
            reason = f"with {len(wrong) - 1} others in this pack"
            numbers = []
            for each in found:
                copy = each.reported
                key = (domain.key, copy.chunk_id, copy.object_key, copy.offset)
                reports.add(tx, Report(*key, SERVER, "beside a damaged one", now, True))
                numbers.append(_mark(tx, domain, each, now))
            _tell(tx, now, "chunk-damaged", domain, wrong[0], (SERVER, reason))
            return max(filter(None, numbers), default=None)

        number = self._parts.catalog.write(work)
        if number is not None:
            self._parts.journal.flush(number)

    def _spare(self, domain: DomainRecord, copy: Copy, known: list[Copy]) -> Copy | None:
        """Return another copy of the same epoch whose bytes are right."""
        return next(
            (
                other
                for other in known
                if other.state is CopyState.SPARE
                and other.epoch == copy.epoch
                and other.generation != copy.generation
                and self._is_as_stored(domain, other)
            ),
            None,
        )

    def _is_as_stored(self, domain: DomainRecord, copy: Copy) -> bool:
        """Tell whether the bytes of a copy are those that were stored; a store away: as if."""
        name = object_name(ObjectKind.PACK, domain.domain, copy.ulid)
        try:
            data = self._parts.store.get(name, copy.offset, copy.length)
        except (NotFound, errors.Damaged):
            return False
        except StoreFailed:
            return True
        return storage_hash(data) == copy.storage_hash

    # --- which chunks of snapshots are damaged

    def ids(
        self, snapshots: list[SnapshotRecord], *, after: bytes = b"", limit: int | None = None
    ) -> Iterator[bytes]:
        """Yield damaged ids behind `after` that one of these snapshots needs, ascending."""
        if not snapshots:
            return
        domain_key = snapshots[0].domain_key
        assert all(snapshot.domain_key == domain_key for snapshot in snapshots)
        left = -1 if limit is None else limit
        while left:
            with self._parts.catalog.read() as tx:
                page = chunks.damaged_ids(tx, domain_key, after=after)
                known = chunks.copies(tx, domain_key, page)
            for chunk_id in page:
                if self._is_needed(snapshots, chunk_id, known[chunk_id]):
                    yield chunk_id
                    left -= 1
                    if not left:
                        return
            if len(page) < IDS_MAX:
                return
            after = page[-1]

    def _is_needed(
        self, snapshots: list[SnapshotRecord], chunk_id: bytes, known: list[Copy]
    ) -> bool:
        epochs = [copy.epoch for copy in known if copy.state is CopyState.LIVE]
        return any(
            not any(snapshot.epoch_min <= epoch <= snapshot.epoch_new for epoch in epochs)
            and self._names(snapshot, chunk_id)
            for snapshot in snapshots
        )

    def _names(self, snapshot: SnapshotRecord, chunk_id: bytes) -> bool:
        """Tell whether a snapshot needs a chunk; it may, where its list cannot be read."""
        try:
            return chunk_id in self._references.index(snapshot.domain, snapshot.refs_key)
        except errors.Damaged:
            return True


def _mark(tx: Tx, domain: DomainRecord, found: _Copies, now: int) -> int | None:
    """Mark a copy damaged, and let a good spare take its place; return the journal record."""
    copy, spare = found
    if not chunks.set_state(tx, domain.key, copy, before=READABLE_STATES, after=CopyState.DAMAGED):
        return None
    was_live = copy.state is CopyState.LIVE
    is_healed = (
        was_live
        and spare is not None
        and chunks.set_state(tx, domain.key, spare, before=[CopyState.SPARE], after=CopyState.LIVE)
    )
    if is_healed or copy.state is CopyState.SPARE:
        chunks.remove(tx, domain.key, copy)
    if was_live and not is_healed:
        liveness.log_left(tx, domain.key, [copy.chunk_id])
    said = Damaged(
        time_ns=now,
        domain=domain.domain,
        chunk=copy.chunk_id,
        object=copy.ulid,
        offset=copy.offset,
    )
    return outbox.append(tx, encode_record(said))


def _tell(
    tx: Tx, now: int, kind: str, domain: DomainRecord, copy: Copy, said: tuple[str, str]
) -> None:
    name = object_name(ObjectKind.PACK, domain.domain, copy.ulid)
    what = "is damaged" if kind == "chunk-damaged" else "could not be opened"
    details = {
        "domain": domain.name,
        "chunk": copy.chunk_id.hex(),
        "object": name,
        "offset": copy.offset,
        "reporter": said[0],
        "reason": said[1],
    }
    events.record(tx, now, kind, f"a chunk in {name} {what}", details=details)
