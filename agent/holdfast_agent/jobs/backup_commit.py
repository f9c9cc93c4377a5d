"""Rounds until a commit stands: walk and send, sign, write the journal, commit.

A commit that names missing or damaged chunks: those that can be made again as they were are sent
again. The others are an avoid-set: the next round reads again every file that touches one of them
and makes new pages up to the root. What stays damaged after all rounds is listed, and the snapshot
says that it is incomplete.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from holdfast_agent.config import VERSION
from holdfast_agent.crypto.records import sign_manifest
from holdfast_agent.engine.context import BackupContext
from holdfast_agent.engine.history import read_manifest
from holdfast_agent.engine.mending import mend
from holdfast_agent.engine.refs import BuiltRefs, RefsBase
from holdfast_agent.engine.rounds import Round, run_round
from holdfast_agent.engine.shipping import Shipping
from holdfast_agent.engine.source import DAMAGED, Row
from holdfast_agent.engine.tally import Tally
from holdfast_agent.engine.turn import Turn
from holdfast_agent.jobs.backup_job import UNHINTED, BackupJob, Hinted
from holdfast_agent.jobs.backup_source import VolumeSource
from holdfast_agent.jobs.outcome import Outcome
from holdfast_agent.ports import Committed, Missing, Uploads
from holdfast_agent.state.cache import CacheHeader, TreeCache
from holdfast_agent.state.journal import SignedCommit
from holdfast_agent.state.memory import Remembered
from holdfast_agent.tree.entry import EntryType
from holdfast_agent.tree.known import KnownTree, NothingKnown
from holdfast_agent.tree.page import decode_page, page_stats
from holdfast_contract.errors import (
    HistoryRegressed,
    HoldfastError,
    MissingChunks,
    NothingRead,
)
from holdfast_contract.format.identity import identity_hash
from holdfast_contract.format.manifest import ManifestBody, dataset_id, snapshot_id
from holdfast_contract.ids import ZERO_HASH, ChunkId
from holdfast_contract.limits import COMMIT_ROUNDS_MAX
from holdfast_contract.logs import get_logger

_log = get_logger(__name__)
_IDS_NAMED: Final = 20
_NO_BASE: Final = Missing(frozenset(), frozenset())
"""Answer to a commit whose refs are a difference to a list that the server cannot read."""


def require_something(tally: Tally, tops_read: int) -> None:
    """Return if at least one of the paths could be read.

    Raises:
        NothingRead: not one could.
    """
    if tops_read:
        return
    first = tally.rows[0] if tally.rows else Row(b"", "unreadable", "nothing is there")
    raise NothingRead(
        f"none of the paths could be read: {first.message}",
        hint="compare the job's paths with the agent's roots and permissions",
        reason=first.reason,
    )


class CommitRounds:
    """The rounds of one backup."""

    def __init__(
        self,
        job: BackupJob,
        context: BackupContext,
        source: VolumeSource,
        *,
        shipping: Shipping,
        uploads: Uploads,
        cache: TreeCache | None,
        header: CacheHeader | None,
    ) -> None:
        self._job = job
        self._context = context
        self._source = source
        self._shipping = shipping
        self._uploads = uploads
        self._cache = cache
        self._known: KnownTree = NothingKnown()
        self._header = header
        if cache is not None:
            if header is None:
                cache.clear()
            cache.begin()
            self._known = cache
        self._base = self._refs_base()

    def run(self) -> Outcome:
        """Return the outcome of the snapshot that stands in the end.

        Raises:
            NothingRead, MissingChunks, KnownTreeLost, Cancelled, and errors of the uploads.
        """
        order = self._job.order
        damaged = frozenset(self._job.chunks.damaged()) if order.damaged else frozenset()
        avoid = self._unmended(damaged) | self._known.half_empty()
        before: Tally | None = None
        left = frozenset[bytes]()
        # One round more than commits may be refused: it says what stays damaged.
        for number in range(COMMIT_ROUNDS_MAX + 1):
            done = self._round(avoid, left)
            if self._is_misled(done):
                # What was sent is there already; what is known of the parent is as it was.
                done.refs.close()
                if self._cache is not None:
                    self._cache.begin()
                done = self._round(avoid, left)
            self._header = None
            if before is not None:
                done.tally.take_over(before)
            before = done.tally
            answer = self._commit(done, is_incomplete=bool(left))
            if isinstance(answer, Outcome):
                return answer
            _log.info("the commit names chunks", missing=len(answer.missing), round=number)
            self._base = None
            if self._cache is not None:
                self._cache.promote()
            avoid |= self._unmended(answer.missing | answer.damaged)
            if number >= COMMIT_ROUNDS_MAX - 1:
                if answer.missing or left:
                    raise _given_up(answer)
                left = answer.damaged
        raise AssertionError("the last round returns or raises")

    def _unmended(self, lost: frozenset[bytes]) -> frozenset[bytes]:
        """Send again what can be made again of these chunks, and return the others."""
        mended = mend(self._context, self._source, self._shipping, self._known, lost)
        if lost:
            _log.info("chunks are lost in the store", lost=len(lost), mended=len(mended))
        return lost - mended

    def _round(self, avoid: frozenset[bytes], left: frozenset[bytes]) -> Round:
        now_ns = self._job.tools.clock.now_ns()
        since_ns = self._header.agent_time_ns if self._header is not None else now_ns
        self._job.progress.phase("running")
        if self._source.hints is not None:
            self._source.hints.watching.begin_round()
        done = run_round(
            self._context,
            self._source,
            self._shipping,
            self._known,
            avoid=avoid,
            turn=Turn(self._context.keys, since_ns=since_ns, now_ns=now_ns),
            rows=files_touching(self._known, left) if left else [],
        )
        require_something(done.tally, done.tops_read)
        self._job.progress.totals(done.tally.files, done.tally.bytes_logical)
        return done

    def _is_misled(self, done: Round) -> bool:
        """Tell whether a file in a directory that was left unread has got another name elsewhere.

        That tells the directory nothing, nor does what is written through the other name then.
        """
        hints = self._source.hints
        if hints is None or not hints.watching.unread or done.unvisited == frozenset():
            return False
        sought = done.unvisited
        is_misled = sought is None or any(
            stat.inode in sought and stat.type != EntryType.DIRECTORY
            for page, _ in self._known.everything()
            if not page.has_links
            for stat in page_stats(page.data)
        )
        if is_misled:
            _log.info("files have got further names: everything is read")
        return is_misled

    def _refs_base(self) -> RefsBase | None:
        parent, header = self._job.order.parent, self._header
        if parent is None or header is None or not parent.refs_object:
            return None
        return RefsBase(parent.refs_object, header.refs_set, header.refs_depth, self._known.refs)

    # --- one commit ---
    def _commit(self, done: Round, *, is_incomplete: bool) -> Outcome | Missing:
        job = self._job
        refs = self._built(done.refs.sorted())
        done.refs.close()
        try:
            body = self._body(done, refs, is_incomplete=is_incomplete)
            manifest = sign_manifest(body, job.tools.keys, job.tools.identity)
            self._finish_cache(body, snapshot_id(manifest), refs)
            answer = self._asked(done.tally, body, manifest, refs)
            if answer != _NO_BASE or self._base is None:
                return answer
            # The server cannot read the list that ours was a difference to: it gets all of it. The
            # cache goes on to call it as deep as the difference, which ends the next chain earlier.
            _log.warning("the parent's list of chunks is damaged on the server: a full one is sent")
            self._base = None
            full = self._built(refs.ids())
        finally:
            refs.close()
        try:
            return self._asked(done.tally, body, manifest, full)
        finally:
            full.close()

    def _built(self, ids: Iterable[bytes]) -> BuiltRefs:
        domain_id, spool = self._context.keys.domain_id, self._context.open_spool
        return BuiltRefs(domain_id, ids, self._base, spool)

    def _asked(
        self, tally: Tally, body: ManifestBody, manifest: bytes, refs: BuiltRefs
    ) -> Outcome | Missing:
        """Send refs and manifest, and ask for the commit."""
        job = self._job
        job.cancel.check()
        self._uploads.put_refs(refs.body, refs.length)
        self._uploads.put_manifest(manifest)
        outcome = job.outcome(
            tally,
            snapshot=snapshot_id(manifest),
            bytes_new=self._shipping.bytes_new,
            bytes_sent=self._uploads.bytes_sent,
            hinted=self._hinted(),
        )
        self._note(SignedCommit(body.seq, manifest, outcome.encode()), refs)
        job.cancel.check()
        answer = self._uploads.commit(body.seq)
        return answer if isinstance(answer, Missing) else self._stands(answer, body.seq, outcome)

    def _hinted(self) -> Hinted:
        hints = self._source.hints
        return UNHINTED if hints is None else Hinted(hints.watching.unread, hints.watching.missed())

    def _stands(self, answer: Committed, seq: int, outcome: Outcome) -> Outcome:
        if answer.snapshot != outcome.finished.snapshot:
            check_own_commit(self._job, answer.snapshot, seq)
        self._job.remember(Remembered(seq, answer.snapshot))
        if answer.snapshot == outcome.finished.snapshot:
            if self._cache is not None:
                self._cache.apply()
                if not self._cache.is_writable:
                    _log.warning("the tree cache cannot be kept: the next backup reads everything")
            if self._source.hints is not None:
                self._source.hints.watching.keep(answer.snapshot)
            return outcome
        # Committed before a restart, with a manifest that this process does not have.
        finished = msgspec.structs.replace(outcome.finished, snapshot=answer.snapshot)
        return msgspec.structs.replace(outcome, finished=finished)

    def _note(self, signed: SignedCommit, refs: BuiltRefs) -> None:
        try:
            self._job.journal.sign(self._job.order.job, signed, refs.body)
        except HoldfastError as exc:
            # After a crash the server's head tells that the commit happened.
            _log.warning("the journal cannot keep the commit", reason=exc.message)

    def _finish_cache(self, body: ManifestBody, snapshot: bytes, refs: BuiltRefs) -> None:
        if self._cache is None:
            return
        header = CacheHeader(
            domain=body.domain,
            lineage=body.lineage,
            dataset=body.dataset,
            snapshot=snapshot,
            agent_time_ns=body.agent_time_ns,
            refs_set=refs.refs_set,
            refs_count=refs.count,
            refs_depth=refs.depth,
        )
        self._cache.finish(header, refs.ids())

    def _body(self, done: Round, refs: BuiltRefs, *, is_incomplete: bool) -> ManifestBody:
        job, tally = self._job, done.tally
        order, record = job.order, job.record
        skips = bool(tally.skipped)
        return ManifestBody(
            domain=record.domain,
            client=record.client,
            lineage=record.lineage,
            identity=identity_hash(job.tools.identity_record),
            seq=order.head_seq + 1,
            prev=order.head if order.head_seq else ZERO_HASH,
            parent=job.parent,
            dataset=dataset_id(job.paths, order.excludes),
            known_seq=job.known_head.seq,
            known_hash=job.known_head.snapshot,
            started_ns=job.started_ns,
            agent_time_ns=max(job.tools.clock.now_ns(), 0),
            paths=job.paths,
            excludes=tuple(order.excludes),
            tags=tuple(order.tags),
            tree=done.tree,
            refs_set=refs.refs_set,
            refs_count=refs.count,
            epoch_min=max(order.epoch_min, 1),
            epoch_new=self._context.keys.newest_epoch,
            files=tally.files,
            dirs=tally.dirs,
            bytes=tally.bytes_logical,
            bytes_new=self._shipping.bytes_new,
            result="incomplete" if is_incomplete else "skips" if skips else "complete",
            consistency="crash",
            report=done.report,
            agent_version=VERSION,
        )


def check_own_commit(job: BackupJob, snapshot: bytes, seq: int) -> None:
    """Return if `snapshot`, which no manifest at hand makes, is what this job committed before.

    The memory moves forward only along what is verified: an answer is the server's word alone.

    Raises:
        HistoryRegressed: it is not number `seq` of this client, after the head of the order.
        WrongKey, Damaged: its manifest is not one of this domain, or not right.
    """
    body = read_manifest(snapshot, keys=job.tools.keys, chunks=job.chunks).body
    prev = job.order.head if job.order.head_seq else ZERO_HASH
    if (body.client, body.seq, body.prev) != (job.record.client, seq, prev):
        raise HistoryRegressed(
            "the server answered the commit with a snapshot that is not the one committed",
            hint="the server is not to be trusted with this client's history",
            shown=seq,
        )


def _given_up(answer: Missing) -> MissingChunks:
    ids = sorted(answer.missing | answer.damaged)
    return MissingChunks(
        f"{len(ids)} chunks are still missing after {COMMIT_ROUNDS_MAX} rounds",
        hint="run the backup again; `holdfast doctor` shows what the store lost",
        chunks=", ".join(found.hex() for found in ids[:_IDS_NAMED]),
    )


def files_touching(known: KnownTree, chunks: frozenset[bytes]) -> list[Row]:
    """Return a row for each file of the tree that names one of `chunks`, and for each page in one.

    Without a cache a single row stands for all of them.
    """
    rows = []
    for page, directory in known.everything():
        if page.chunk in chunks:
            rows.append(Row(directory, DAMAGED, "a part of this directory's list is damaged"))
            continue
        extra = dict(known.block_ids(page.row)) if page.has_extra else {}
        decoded = decode_page(page.data, ChunkId(page.chunk), page.offset)
        for stat, content in zip(decoded.stats, decoded.contents, strict=True):
            named = {extent.chunk for extent in (*content.extents, *content.xattr_blocks)}
            blocks = extra.get(stat.name, b"")
            named.update(blocks[at : at + 32] for at in range(0, len(blocks), 32))
            if stat.type != EntryType.DIRECTORY and named & chunks:
                path = directory.rstrip(b"/") + b"/" + stat.name
                rows.append(Row(path, DAMAGED, "its stored content is damaged"))
    return rows or [Row(b"/", DAMAGED, "stored content of some files is damaged")]
