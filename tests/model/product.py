"""Does a model's steps to the product's repository, and tells what catalog and store then say.

A call of an agent that the model takes apart stands still where the model does (`halting`).

Trash, collection and the fence of an orphan have no code in the product. Their steps are done to
the tables as the model says, so that what is tested is how commit, `have`, uploads and damage - all
of them the product's own code - take them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from sqlalchemy import delete, select, update

from holdfast_contract.errors import Conflict, MissingChunks
from holdfast_contract.format.manifest import snapshot_id
from holdfast_contract.ids import SnapshotId
from holdfast_server.catalog import chunks, clients, domains, liveness
from holdfast_server.catalog.connection import Tx
from holdfast_server.catalog.schema import CopyState, ObjectKind, ObjectState, SnapshotState
from holdfast_server.catalog.schema import chunks as chunks_table
from holdfast_server.catalog.schema import objects as objects_table
from holdfast_server.catalog.schema import outbox as outbox_table
from holdfast_server.catalog.schema import snapshots as snapshots_table
from holdfast_server.repository.commit import Committed
from holdfast_server.repository.journal import JournalDiverged
from holdfast_server.repository.journal_object import decode_journal
from holdfast_server.repository.journal_records import Commit, Damaged, decode_record
from holdfast_server.repository.sessions import Session
from tests.model.halting import Call, HaltingServed
from tests.model.rules import Scene
from tests.model.state import Kept, Name, Row, State, Step
from tests.model.world import name_of
from tests.support.samples import ids
from tests.support.uploads import Pod, difference, full_refs, pack_of

ROWS: Final = {
    CopyState.LIVE: Row.LIVE,
    CopyState.CONDEMNED: Row.CONDEMNED,
    CopyState.DELETING: Row.DELETING,
    CopyState.DAMAGED: Row.DAMAGED,
    CopyState.SPARE: Row.SPARE,
}
NAMES: Final = {
    ObjectState.REGISTERED: Name.REGISTERED,
    ObjectState.STORED: Name.STORED,
    ObjectState.FENCED: Name.FENCED,
}
KEPT: Final = {
    SnapshotState.STANDING: Kept.STANDING,
    SnapshotState.TRASHED: Kept.TRASHED,
    SnapshotState.PURGED: Kept.PURGED,
}
STATES: Final = {row: state for state, row in ROWS.items()}
PACK_NAMES: Final = select(objects_table.c.ulid, objects_table.c.state).where(
    objects_table.c.kind == ObjectKind.PACK
)
WAITING: Final = select(outbox_table.c.body).order_by(outbox_table.c.number)
SAID: Final = ("commit", "damaged")
"""Records that the product writes."""


class Seen(NamedTuple):
    """What can be compared: of the model as of the product."""

    copies: tuple[tuple[tuple[int, str], ...], ...]
    """By chunk: (pack, state), in the order of arrival."""
    names: dict[int, str]
    stored: frozenset[int]
    """Packs with bytes in the store. What lies under a fenced name means nothing."""
    snapshots: tuple[tuple[int, tuple[int, ...], str, bool], ...]
    """In the order of commit: client, chunks, kept, whether it claims to be whole."""
    waiting: tuple[tuple[str, tuple[int, ...]], ...]
    """Records in the outbox, then those in the store's journal."""
    journal: tuple[tuple[str, tuple[int, ...]], ...]
    checked: dict[int, tuple[bool, frozenset[int]]]
    """By client whose commit stands between check and transaction: whether the parent counted, and
    what stopped being live since."""


def expected(state: State) -> Seen:
    """Return what the model says."""
    catalog = state.catalog
    return Seen(
        copies=tuple(tuple((c.pack, str(c.row)) for c in each) for each in catalog.copies),
        names={pack: str(name_of(catalog, pack)) for pack in range(len(state.store))},
        stored=frozenset(
            pack
            for pack, data in enumerate(state.store)
            if data is not None and name_of(catalog, pack) is not Name.FENCED
        ),
        snapshots=tuple((s.client, s.refs, str(s.kept), s.is_whole) for s in catalog.snapshots),
        waiting=tuple((r.verb, r.what) for r in catalog.outbox if r.verb in SAID),
        journal=tuple((r.verb, r.what) for r in state.journal if r.verb in SAID),
        checked={
            who: (session.uses_parent, session.left)
            for who, session in enumerate(state.sessions)
            if session.phase == "checked"
        },
    )


class Product:
    """A repository, its pods, and which number of the model means what."""

    def __init__(self, folder: Path, scene: Scene) -> None:
        self.scene = scene
        self.served = HaltingServed(folder)
        self.served.domain()
        self.pods = [self.served.pod(f"shop/db-{number}") for number in range(len(scene.plans))]
        self.domain_key = domains.get(self.served.catalog, "shop").key
        self.chunks = ids(scene.chunks)
        self.packs: list[str] = []
        self.snapshots: list[bytes] = []
        self.sessions: list[Session | None] = [None] * len(self.pods)
        self.calls: dict[int, Call] = {}
        self.unanswered: list[Call] = []
        """Commits whose transaction is over and whose journal object is not."""
        self.promised: dict[int, bytes] = {}
        """Snapshot ids of manifests under way, by client."""

    def close(self) -> None:
        """Stop everything."""
        self._cut_all()
        self.served.stop()

    # --- steps

    def do(self, step: Step, before: State, after: State) -> None:
        """Do a step; `before` and `after`: the model's states around it.

        Raises:
            AssertionError: the product answers otherwise than the model.
        """
        verb = step.verb.removesuffix("-incomplete").replace("-", "_").replace(".", "_")
        act: Callable[[Step, State, State], None] = getattr(self, f"_{verb}", self._stand_in)
        act(step, before, after)
        self._take_answers(after)

    def _open(self, step: Step, before: State, after: State) -> None:
        self.sessions[step.who] = self.pods[step.who].open()

    def _open_parent(self, step: Step, before: State, after: State) -> None:
        self._open(step, before, after)
        parent = self.served.repository.parent_for(self.pods[step.who].name)
        assert parent == self.snapshots[step.what[0]]

    def _have(self, step: Step, before: State, after: State) -> None:
        pod = self.pods[step.who]
        session = self._session(step.who)
        (chunk,) = step.what
        answer = self.served.repository.have(pod.name, session.id, self.chunks[chunk], 1)
        assert bool(answer[0]) == (chunk in after.sessions[step.who].got), "have"

    def _name(self, step: Step, before: State, after: State) -> None:
        pod, session = self.pods[step.who], self._session(step.who)
        (ulid,) = self.served.repository.more_names(pod.name, session.id, "packs", 1)
        assert after.sessions[step.who].sending == len(self.packs)
        self.packs.append(ulid)

    def _bytes(self, step: Step, before: State, after: State) -> None:
        pod, session = self.pods[step.who], self._session(step.who)
        sending = before.sessions[step.who]
        wanted = [self.chunks[chunk] for chunk in sending.carries]
        ulid, salt = self.packs[sending.sending], str(sending.sending)
        data = pack_of(pod.domain, wanted, salt=salt)
        call = Call(lambda: pod.put_pack(session, ulid, data)).start()
        if call.stop:
            self.calls[step.who] = call
        else:
            # The name was fenced before a byte of it came: refused earlier than the model does.
            assert isinstance(call.error, Conflict), call.error

    def _index(self, step: Step, before: State, after: State) -> None:
        was, now = before.sessions[step.who], after.sessions[step.who]
        call = self.calls.pop(step.who, None)
        if call is None:
            assert now.got == was.got
            return
        call.go_on()
        is_taken = now.got != was.got
        error = type(call.error)
        assert error is (type(None) if is_taken else Conflict), f"put answers {call.error!r}"

    def _check(self, step: Step, before: State, after: State) -> None:
        call = self._commit(step, before)
        assert call.stop == "checked", f"commit answers {call.error!r} in place of its check"
        self.calls[step.who] = call

    def _rejected(self, step: Step, before: State, after: State) -> None:
        self._refused(step, self._commit(step, before), after)

    def _commit(self, step: Step, before: State) -> Call:
        pod, session = self.pods[step.who], self._session(step.who)
        more = self.served.repository.more_names
        (refs,) = more(pod.name, session.id, "refs", 1)
        (manifest,) = more(pod.name, session.id, "manifests", 1)
        wanted = [self.chunks[chunk] for chunk in self.scene.plans[step.who]]
        parent = before.sessions[step.who].parent
        result = "incomplete" if step.verb.endswith("-incomplete") else "complete"
        changes = {} if parent is None else {"parent": self.snapshots[parent]}
        data = pod.manifest(wanted, result=result, **changes)
        seq = self.served.repository.head(pod.name).seq + 1
        pod.put_refs(session, self._refs(pod, wanted, before, parent), refs)
        pod.put_manifest(session, data, manifest)
        self.promised[step.who] = snapshot_id(data)
        commit = self.served.repository.commit
        return Call(
            lambda: commit(pod.name, session.id, manifest=manifest, refs=refs, seq=seq)
        ).start()

    def _refs(self, pod: Pod, wanted: list[bytes], state: State, parent: int | None) -> bytes:
        """A list, or the difference to the parent's where that still stands."""
        if parent is None or state.catalog.snapshots[parent].kept is not Kept.STANDING:
            return full_refs(pod.domain, wanted)
        base = self.served.repository.history.get(self.snapshots[parent]).refs
        shared = [self.chunks[chunk] for chunk in state.catalog.snapshots[parent].refs]
        return difference(pod.domain, wanted, (base, shared))

    def _write(self, step: Step, before: State, after: State) -> None:
        call = self.calls.pop(step.who)
        call.go_on()
        assert call.stop == "written", f"commit answers {call.error!r} in place of its transaction"
        self.snapshots.append(self.promised.pop(step.who))
        self.unanswered.append(call)

    def _write_rejected(self, step: Step, before: State, after: State) -> None:
        call = self.calls.pop(step.who)
        call.go_on()
        self._refused(step, call, after)

    def _refused(self, step: Step, call: Call, after: State) -> None:
        assert isinstance(call.error, MissingChunks), (
            f"commit answers {call.error!r}, {call.stop!r} in place of missing chunks"
        )
        named = {*call.error.details["missing"], *call.error.details["damaged"]}  # type: ignore[misc]
        plan = self.scene.plans[step.who]
        absent = {chunk for chunk in plan if chunk not in after.sessions[step.who].got}
        assert named >= {self.chunks[chunk].hex() for chunk in absent}

    def _crash(self, step: Step, before: State, after: State) -> None:
        pod = self.pods[step.who]
        if step.who in self.calls:
            self.calls.pop(step.who).cut()
        self.sessions[step.who] = None
        self.served.repository.close_session(f"{pod.name}-{pod.jobs}")

    def _damage(self, step: Step, before: State, after: State) -> None:
        """A bit of a copy flips, and a pod finds out."""
        chunk, pack = step.what
        with self.served.catalog.read() as tx:
            known = chunks.copies(tx, self.domain_key, [self.chunks[chunk]])
        (copy,) = [each for each in known[self.chunks[chunk]] if each.ulid == self.packs[pack]]
        name = self.pods[0].place(ObjectKind.PACK, copy.ulid)
        data = bytearray(self.served.memory.objects[name])
        data[copy.offset + 65] ^= 1
        self.served.memory.objects[name] = bytes(data)
        said = self.served.repository.report_damage(
            "shop",
            self.pods[0].name,
            chunk=copy.chunk_id,
            object_name=name,
            offset=copy.offset,
            reason="flipped",
        )
        assert said == "damaged"

    def _journal(self, step: Step, before: State, after: State) -> None:
        self.served.repository._parts.journal.flush_all()

    def _restart(self, step: Step, before: State, after: State) -> None:
        self._cut_all()
        self.served.restart()
        assert self.served.repository.refusal == ""

    def _catalog_copy(self, step: Step, before: State, after: State) -> None:
        self._copy_catalog(self.served.folder / "catalog.sqlite", self._older)

    def _catalog_rollback(self, step: Step, before: State, after: State) -> None:
        """Somebody puts the copy in the catalog's place; the store has gone on."""
        self._cut_all()
        self.served.stop()
        self.served.memory.crash()
        place = self.served.folder / "catalog.sqlite"
        for suffix in ("", "-wal", "-shm"):
            Path(f"{place}{suffix}").unlink(missing_ok=True)
        self._copy_catalog(self._older, place)
        self.served.start()
        self.sessions = [None] * len(self.pods)
        assert bool(self.served.repository.refusal) == after.refusal, self.served.repository.refusal
        if after.refusal:
            self._answers_nothing()
        else:
            del self.snapshots[len(after.catalog.snapshots) :]

    @property
    def _older(self) -> Path:
        return self.served.folder / "older.sqlite"

    def _copy_catalog(self, source: Path, target: Path) -> None:
        with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
            old.backup(new)

    def _answers_nothing(self) -> None:
        """A catalog that is older than its store must not say what is live."""
        for pod in self.pods:
            have = partial(self.served.repository.have, pod.name, "", b"", 1)
            for call in (pod.open, have):
                try:
                    call()
                except JournalDiverged:
                    continue
                raise AssertionError("a catalog that is refused answers")

    def _cut_all(self) -> None:
        for call in [*self.calls.values(), *self.unanswered]:
            call.cut()
        self.calls, self.unanswered = {}, []

    def _take_answers(self, after: State) -> None:
        """Let the commits answer whose record is durable now."""
        for call in list(self.unanswered):
            if self.snapshots.index(call.decided) not in after.acknowledged:
                continue
            self.unanswered.remove(call)
            call.go_on()
            found = self.served.repository.history.get(SnapshotId(call.decided))
            assert call.result == Committed(found.id, found.time_ns), call.error

    def _session(self, who: int) -> Session:
        session = self.sessions[who]
        assert session is not None
        return session

    # --- what the product has no code for

    def _stand_in(self, step: Step, before: State, after: State) -> None:
        """Write into tables and store what the model says that a collection or a person did."""
        self.served.catalog.write(lambda tx: self._rewrite(tx, before, after))
        for pack, ulid in enumerate(self.packs):
            if before.store[pack] is not None and after.store[pack] is None:
                self.served.store.delete(self.pods[0].place(ObjectKind.PACK, ulid))

    def _rewrite(self, tx: Tx, before: State, after: State) -> None:
        for chunk, chunk_id in enumerate(self.chunks):
            was, now = before.catalog.copies[chunk], after.catalog.copies[chunk]
            self._rewrite_copies(tx, chunk_id, dict(was), dict(now))
        for pack, ulid in enumerate(self.packs):
            if after.catalog.names[pack] is not before.catalog.names[pack]:
                assert after.catalog.names[pack] is Name.FENCED
                fence = update(objects_table).where(objects_table.c.ulid == ulid)
                tx.execute(fence.values(state=ObjectState.FENCED))
        for snapshot, was_, now_ in zip(
            self.snapshots, before.catalog.snapshots, after.catalog.snapshots, strict=True
        ):
            if now_.kept is not was_.kept:
                (state,) = [state for state, kept in KEPT.items() if kept is now_.kept]
                move = update(snapshots_table).where(snapshots_table.c.snapshot == snapshot)
                tx.execute(move.values(state=state))

    def _rewrite_copies(
        self, tx: Tx, chunk_id: bytes, was: dict[int, Row], now: dict[int, Row]
    ) -> None:
        known = chunks.copies(tx, self.domain_key, [chunk_id]).get(chunk_id, [])
        for copy in known:
            pack = self.packs.index(copy.ulid)
            if pack not in now:
                where = (chunks_table.c.chunk_id == chunk_id,)
                mine = chunks_table.c.generation == copy.generation
                tx.execute(delete(chunks_table).where(*where, mine))
            elif now[pack] is not was[pack]:
                changed = chunks.set_state(
                    tx, self.domain_key, copy, before=[copy.state], after=STATES[now[pack]]
                )
                assert changed
        if Row.LIVE in was.values() and Row.LIVE not in now.values():
            liveness.log_left(tx, self.domain_key, [chunk_id])

    # --- what there is

    def seen(self) -> Seen:
        """Return what catalog and store say."""
        with self.served.catalog.read() as tx:
            names = self._names(tx)
            return Seen(
                copies=self._copies(tx),
                names=names,
                stored=frozenset(
                    pack
                    for pack, ulid in enumerate(self.packs)
                    if names[pack] != Name.FENCED
                    and self.pods[0].place(ObjectKind.PACK, ulid) in self.served.memory.objects
                ),
                snapshots=self._snapshots(tx),
                waiting=self._said(list(tx.execute(WAITING).scalars())),
                journal=self._said(self._durable()),
                checked={
                    who: (call.facts[0], self._left_since(tx, call.facts[1]))
                    for who, call in self.calls.items()
                    if call.stop == "checked"
                },
            )

    def _copies(self, tx: Tx) -> tuple[tuple[tuple[int, str], ...], ...]:
        found = chunks.copies(tx, self.domain_key, self.chunks)
        return tuple(
            tuple(
                (self.packs.index(copy.ulid), str(ROWS[copy.state]))
                for copy in sorted(found.get(chunk_id, []), key=lambda copy: copy.generation)
            )
            for chunk_id in self.chunks
        )

    def _names(self, tx: Tx) -> dict[int, str]:
        found = {ulid: str(NAMES[ObjectState(state)]) for ulid, state in tx.execute(PACK_NAMES)}
        return {pack: found.get(ulid, Name.UNKNOWN) for pack, ulid in enumerate(self.packs)}

    def _snapshots(self, tx: Tx) -> tuple[tuple[int, tuple[int, ...], str, bool], ...]:
        query = select(snapshots_table).order_by(snapshots_table.c.record)
        rows = tx.execute(query).mappings().all()
        assert [row["snapshot"] for row in rows] == self.snapshots
        domain, references = self.pods[0].domain, self.served.repository._references
        names = [pod.name for pod in self.pods]
        return tuple(
            (
                names.index(clients.by_key(tx, row["client_key"]).name),
                tuple(self.chunks.index(one) for one in references.ids(domain, row["refs_key"])),
                str(KEPT[SnapshotState(row["state"])]),
                row["result"] == "complete",
            )
            for row in rows
        )

    def _left_since(self, tx: Tx, number: int) -> frozenset[int]:
        left = liveness.left_since(tx, self.domain_key, number)
        return frozenset(self.chunks.index(chunk_id) for chunk_id in left)

    def _durable(self) -> list[bytes]:
        store = self.served.memory.objects
        names = sorted(name for name in store if name.startswith("journal/"))
        return [body for name in names for body in decode_journal(store[name]).records]

    def _said(self, bodies: list[bytes]) -> tuple[tuple[str, tuple[int, ...]], ...]:
        said: list[tuple[str, tuple[int, ...]]] = []
        for record in map(decode_record, bodies):
            if isinstance(record, Commit):
                said.append(("commit", (self.snapshots.index(record.snapshot),)))
            elif isinstance(record, Damaged):
                chunk = self.chunks.index(record.chunk)
                said.append(("damaged", (chunk, self.packs.index(record.object))))
        return tuple(said)
