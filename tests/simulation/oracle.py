"""What must hold after every run, however bad the days were.

Each acknowledged snapshot is shown and restores to what the volume held while its job ran; refs are
what the manifest reaches; nothing else is shown; every live chunk's bytes lie where the catalog
says; the journal, replayed into an empty catalog, gives the same one; no name is found in clear.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from blake3 import blake3
from sqlalchemy import select
from sqlalchemy.engine import RowMapping

from holdfast_agent.crypto.keys import DomainKeys, content_id
from holdfast_agent.jobs.outcome import Outcome
from holdfast_agent.jobs.restore import run_restore
from holdfast_agent.jobs.tracking import JobCancel, JobProgress
from holdfast_agent.jobs.verify import run_verify
from holdfast_agent.ports import ChunkStatus, FetchedChunk
from holdfast_agent.restore.destination import local_scope
from holdfast_agent.snapshots.chunks import ChunkReader
from holdfast_agent.snapshots.snapshot import Snapshot
from holdfast_agent.tree.entry import HOLE_CHUNK, EntryFlag, EntryType
from holdfast_contract.errors import Damaged, HoldfastError
from holdfast_contract.format.chunk import ChunkType, storage_hash
from holdfast_contract.format.layout import Room
from holdfast_contract.ids import DomainId, new_ulid
from holdfast_contract.limits import FETCH_IDS_MAX
from holdfast_contract.protocol.control import JobState, Overwrite, Restore, RestoreItem, Verify
from holdfast_server.catalog import outbox, schema, snapshots, state
from holdfast_server.catalog.connection import Tx
from holdfast_server.catalog.schema import CopyState, ObjectKind
from holdfast_server.catalog.snapshots import Filter, SnapshotRecord
from holdfast_server.repository import Repository, recovery
from holdfast_server.repository.commit_check import Checker
from holdfast_server.repository.journal_object import decode_journal
from holdfast_server.repository.journal_records import Commit, decode_record
from holdfast_server.repository.names import object_name
from tests.simulation.machines import Clock, Pod, open_catalog_in
from tests.simulation.stand_ins import FORGED
from tests.simulation.volume import SECRET, TOP
from tests.support.fetching import fetched

if TYPE_CHECKING:
    from tests.simulation.world import World


_CHECK_END, _FOLLOW = recovery._check_end, recovery._follow
"""As they are without any planted mistake."""


class Wrong(AssertionError):
    """The oracle found something that must not be."""


def demand(is_right: bool, *words: object) -> None:
    """Raise Wrong unless `is_right`."""
    if not is_right:
        raise Wrong(" ".join(map(str, words)))


class GrantSource:
    """Stored chunks of one snapshot as a strict reader takes them: each must open at once."""

    def __init__(self, repository: Repository, record: SnapshotRecord) -> None:
        self._repository = repository
        self._domain = record.domain_name
        grant = repository.open_grant(record.domain_name, [record.id])
        ids = list(repository._references.ids(record.domain, record.refs_key))
        self._chunks = {
            found.chunk_id: FetchedChunk(
                found.chunk_id, ChunkStatus(found.status), found.object, found.offset, found.data
            )
            for start in range(0, len(ids), FETCH_IDS_MAX)
            for found in fetched(grant, ids[start : start + FETCH_IDS_MAX])
        }

    def fetch(self, ids: Sequence[bytes], room: Room = bytearray) -> Iterator[FetchedChunk]:
        for chunk_id in ids:
            demand(chunk_id in self._chunks, "chunk", chunk_id.hex()[:12], "is not in the refs")
            yield self._chunks[chunk_id]

    def report(self, chunk: bytes, object: str, offset: int, reason: str) -> None:  # noqa: A002
        raise Wrong(f"chunk {chunk.hex()[:12]} in {object} does not open: {reason}")

    def manifest(self, snapshot: bytes) -> bytes:
        return self._repository.manifest(snapshot)

    def identity(self, hash: bytes) -> bytes:  # noqa: A002
        return self._repository.identity_record(self._domain, hash)

    def damaged(self) -> Iterator[bytes]:
        yield from ()


class Restored:
    """What a snapshot holds: content of every file, and what its report lists."""

    def __init__(self, repository: Repository, record: SnapshotRecord, keys: DomainKeys) -> None:
        self.files: dict[bytes, bytes] = {}
        source = GrantSource(repository, record)
        chunks = ChunkReader(keys, source)
        with closing(chunks):
            snapshot = Snapshot(record.id, keys=keys, source=source, chunks=chunks)
            self.reached = set(snapshot.reached())
            cached: dict[bytes, bytes] = {}
            for found in snapshot.walk():
                stat, content = found.entry.stat, found.entry.content
                if stat.type != EntryType.FILE or stat.flags & EntryFlag.SKIPPED:
                    continue
                data = b""
                for extent in snapshot.extents(found.entry):
                    if extent.chunk == HOLE_CHUNK:
                        data += bytes(extent.length)
                        continue
                    self.reached.add(extent.chunk)
                    if extent.chunk not in cached:
                        cached[extent.chunk] = chunks.read_one(ChunkType.CONTENT, extent.chunk)
                    data += cached[extent.chunk][extent.offset : extent.offset + extent.length]
                demand(len(data) == stat.size, "size of", found.path)
                if content.content_id:
                    same = content_id(keys, data) == content.content_id
                    demand(same, "another content id than", found.path)
                self.files[found.path] = data
            self.listed = {row.path for report in snapshot.reports() for row in report.rows}
            self.body = snapshot.body
        self.reached.discard(HOLE_CHUNK)


class Oracle:
    """Checks one world at its end."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.server = world.server

    async def check(self) -> None:
        """Check everything.

        Raises:
            Wrong: something must not be.
        """
        self.world.loop.is_hasty = True
        await self.world.on_server(self._check)

    def _check(self) -> None:
        repository, catalog = self.server.repository, self.server.catalog
        assert repository is not None and catalog is not None
        demand(not self.world.facts.violations, *self.world.facts.violations)
        demand(repository.refusal == "", "the server refuses to write:", repository.refusal)
        with catalog.read() as tx:
            shown = snapshots.listed(tx, Filter())
            rows = self._rows(tx)
        self._check_acknowledged(rows)
        self._check_history(shown)
        self._check_hints(catalog)
        self._check_journal(rows)
        self._check_live(catalog)
        for record in shown:
            self._check_snapshot(repository, record)
        self._check_restores(repository, shown)
        # Rows and journal are compared in any case; a replay costs as much as all of this.
        if self.world.seed % 5 == 0:
            self._check_replay()
        self._check_names()

    @staticmethod
    def _rows(tx: Tx) -> list[RowMapping]:
        query = select(
            schema.snapshots.c.snapshot,
            schema.snapshots.c.state,
            schema.snapshots.c.record,
            schema.snapshots.c.seq,
            schema.snapshots.c.time_ns,
        ).order_by(schema.snapshots.c.record)
        return list(tx.execute(query).mappings())

    def _check_acknowledged(self, rows: list[RowMapping]) -> None:
        known = {row["snapshot"] for row in rows}
        for snapshot in self.world.facts.acknowledged:
            demand(snapshot in known, "an acknowledged snapshot is gone:", snapshot.hex()[:12])

    def _check_history(self, shown: list[SnapshotRecord]) -> None:
        times = [record.time_ns for record in shown]
        demand(times == sorted(times), "receive times go back")
        for pod in self.world.pods:
            own = [record for record in shown if record.client == pod.name]
            for before, after in pairwise(own):
                if after.seq == before.seq + 1:
                    demand(after.prev == before.id, "the history of", pod.name, "is torn")

    @staticmethod
    def _check_hints(catalog: Any) -> None:
        kinds = select(schema.events.c.kind).where(schema.events.c.kind == "hints-missed")
        with catalog.read() as tx:
            demand(not tx.execute(kinds).first(), "change hints have missed something")

    def _check_journal(self, rows: list[RowMapping]) -> None:
        store, catalog = self._store(), self.server.catalog
        assert catalog is not None
        records: list[Any] = []
        previous = bytes(32)
        for number, name in enumerate(store.list("journal"), 1):
            data = store.get(name)
            found = decode_journal(data)
            demand((found.number, found.previous) == (number, previous), "the journal's chain")
            demand(found.first == len(records) + 1, "the journal's numbers")
            records += [decode_record(body) for body in found.records]
            previous = blake3(data).digest()
        with catalog.read() as tx:
            now, waiting = state.load(tx), outbox.pending(tx, 10)
        demand(not waiting, "records wait in the outbox")
        demand(now.record_last == len(records), "journal and catalog count differently")
        said = [record.snapshot for record in records if isinstance(record, Commit)]
        demand(said == [row["snapshot"] for row in rows], "snapshots without a journal record")

    def _check_live(self, catalog: Any) -> None:
        """Every live chunk's bytes lie where the catalog says; one live copy of an epoch."""
        store = self._store()
        query = (
            select(schema.chunks, schema.objects.c.ulid, schema.domains.c.domain_id)
            .join(schema.objects, schema.objects.c.key == schema.chunks.c.object_key)
            .join(schema.domains, schema.domains.c.key == schema.chunks.c.domain_key)
        )
        packs: dict[str, bytes] = {}
        seen = set()
        with catalog.read() as tx:
            rows = list(tx.execute(query).mappings())
        for row in rows:
            if row["state"] != CopyState.LIVE:
                continue
            key = (row["domain_key"], row["chunk_id"], row["epoch"])
            demand(key not in seen, "two live copies of", row["chunk_id"].hex()[:12])
            seen.add(key)
            name = object_name(ObjectKind.PACK, DomainId(row["domain_id"]), row["ulid"])
            if name not in packs:
                try:
                    packs[name] = store.get(name)
                except HoldfastError as error:
                    raise Wrong(f"a live chunk's pack: {error.message}") from error
            data = packs[name][row["offset"] : row["offset"] + row["length"]]
            same = storage_hash(data) == row["storage_hash"]
            demand(same, "a live chunk has other bytes:", row["chunk_id"].hex()[:12], name)

    def _store(self) -> Any:
        assert self.server.repository is not None
        return self.server.repository._parts.store

    # --- one snapshot
    def _check_snapshot(self, repository: Repository, record: SnapshotRecord) -> None:
        pods = [pod for pod in self.world.pods if pod.name == record.client]
        if not pods:
            return
        (pod,) = pods
        name = f"snapshot {record.seq} of {record.client}"
        try:
            restored = Restored(repository, record, pod.keys)
        except Damaged as damage:
            raise Wrong(f"{name} does not restore: {damage.message}") from damage
        refs = list(repository._references.ids(record.domain, record.refs_key))
        demand(refs == sorted(restored.reached), name, "has refs that it does not reach")
        begin, end = self._interval(record)
        self._check_files(pod, name, restored, begin, end)

    def _interval(self, record: SnapshotRecord) -> tuple[float, float]:
        facts, catalog = self.world.facts, self.server.catalog
        assert catalog is not None
        query = (
            select(schema.sessions.c.job)
            .join(schema.objects, schema.objects.c.session_key == schema.sessions.c.key)
            .where(schema.objects.c.key == record.manifest_key)
        )
        with catalog.read() as tx:
            job = tx.execute(query).scalar_one_or_none()
        if job is None:
            return float("-inf"), float("inf")
        end = facts.acknowledged_at.get(record.id, float("inf"))
        return facts.jobs_begun.get(job, facts.unanswered_since), end

    def _check_files(
        self, pod: Pod, name: str, restored: Restored, begin: float, end: float
    ) -> None:
        volume = pod.volume
        for path, content in restored.files.items():
            held = volume.contents_between(path, begin, end)
            same = content in held
            demand(same or path in restored.listed, name, "holds what never was in", path)
        for path in volume.history:
            held = volume.contents_between(path, begin, end)
            if None not in held and path not in restored.listed:
                is_there = path in restored.files or not path.startswith(TOP)
                demand(is_there, name, "does not have", path)

    # --- real restores
    def _check_restores(self, repository: Repository, shown: list[SnapshotRecord]) -> None:
        """Restore the newest snapshot of every pod by the agent's own code, to real files."""
        newest = {record.client: record for record in shown}
        for pod in self.world.pods:
            record = newest[pod.name]
            top = self.world.folder / "restored" / str(record.seq) / pod.name
            outcome = restored_to(top, repository, record, pod)
            exact = outcome.finished.state is JobState.COMPLETED
            demand(exact, pod.name, "is not restored exactly:", outcome.result)
            for path in pod.volume.files():
                got = (top / os.fsdecode(path.lstrip(b"/"))).read_bytes()
                demand(
                    got == pod.volume.nodes[path].content, pod.name, "restores other bytes", path
                )
        for record in shown:
            if record.client == self.world.forger.name:
                self._check_forged(repository, record)

    def _check_forged(self, repository: Repository, record: SnapshotRecord) -> None:
        """A file under another's content id is neither restored nor called sound."""
        forger = self.world.forger
        top = self.world.folder / "forged" / str(record.seq)
        outcome = restored_to(top, repository, record, forger)
        told = {row["path"] for row in outcome.result.damaged or ()}
        verified = run_verify(
            Verify(job=new_ulid(), item=RestoreItem(record.id, record.client, b"/")),
            keys=forger.keys,
            source=GrantSource(repository, record),
            cancel=JobCancel(),
            progress=JobProgress(),
            clock=forger.clock,
        )
        for path in forger.volume.files():
            is_forged = (forger.volume.nodes[path].content or b"").startswith(FORGED)
            is_there = (top / os.fsdecode(path.lstrip(b"/"))).exists()
            demand(is_there != is_forged, "a forged file", path, "was taken for sound")
            demand((os.fsdecode(path) in told) == is_forged, "a forged file is not listed")
        demand(verified.finished.state is JobState.FAILED, "a forged snapshot is called sound")

    # --- the journal
    def _check_replay(self) -> None:
        """Replay the journal into an empty catalog, by what the server does at its start.

        The packs' index is rebuilt elsewhere; here it is what the journal says that counts.
        """
        with (
            patch.object(Checker, "is_complete", lambda *args: True),
            patch.object(recovery, "_check_end", _CHECK_END),
            patch.object(recovery, "_follow", _FOLLOW),
        ):
            self._replay()

    def _replay(self) -> None:
        folder = self.world.folder / "replayed"
        folder.mkdir()
        catalog = open_catalog_in(folder, Clock())
        catalog.machine, catalog.step = self.server.machine, lambda name: None
        try:
            replayed = Repository(catalog, self._store(), Clock())
            replayed.start()
            demand(replayed.refusal == "", "the journal does not replay:", replayed.refusal)
            assert self.server.catalog is not None
            with self.server.catalog.read() as tx:
                want = said_by(tx)
            with catalog.read() as tx:
                got = said_by(tx)
            demand(want == got, "the journal replays to another catalog")
        finally:
            catalog.close()

    # --- names
    def _check_names(self) -> None:
        """Names of files are in no place that the server can read."""
        for path in sorted(self.server.folder.iterdir()):
            demand(SECRET not in path.read_bytes(), "a name in clear in", path.name)
        store = self._store()
        for name in store.list():
            demand(SECRET not in store.get(name), "a name in clear in", name)


def restored_to(top: Path, repository: Repository, record: SnapshotRecord, pod: Pod) -> Outcome:
    """Restore a snapshot below `top` and return how it went."""
    top.mkdir(parents=True)
    order = Restore(
        job=new_ulid(),
        items=[RestoreItem(record.id, record.client, b"/")],
        target=os.fsencode(top),
        include=[],
        exclude=[],
        strip=False,
        overwrite=Overwrite.IF_CHANGED,
        delete=False,
        special=False,
        dry_run=False,
        verify=False,
        limit_download=0,
    )
    return run_restore(
        order,
        keys=pod.keys,
        source=GrantSource(repository, record),
        own_client="",
        scope=local_scope(),
        cancel=JobCancel(),
        progress=JobProgress(),
        clock=pod.clock,
    )


def said_by(tx: Tx) -> list[Any]:
    """Return what of a catalog the journal must be able to tell."""
    found: list[Any] = []
    for table, columns in (
        (schema.domains, ("domain_id", "name", "revision")),
        (schema.clients, ("name", "head_seq", "head", "identity")),
        (schema.snapshots, ("snapshot", "record", "seq", "prev", "time_ns", "refs_set", "result")),
        (schema.refs_objects, ("refs_set", "count", "depth")),
        (schema.identities, ("identity", "client")),
    ):
        chosen = [table.c[column] for column in columns]
        found.append(sorted(map(tuple, tx.execute(select(*chosen))), key=repr))
    return found
