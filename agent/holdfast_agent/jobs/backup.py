"""The use case backup: from the order to a committed snapshot, or to the reason why there is none.

Nothing is sent before paths, key and history are found to be right. The signed manifest is in the
journal before the commit is asked for: an agent that is killed in between repeats that commit, and
gets the same answer. Any other killed job walks again; `have` spares what was uploaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace

from holdfast_agent.crypto.records import open_identity
from holdfast_agent.engine.context import BackupContext
from holdfast_agent.engine.cutting import FastCdc
from holdfast_agent.engine.history import Head, check_history
from holdfast_agent.engine.memory import plan_memory
from holdfast_agent.engine.relatives import Relatives, check_references
from holdfast_agent.engine.rounds import run_dry
from holdfast_agent.engine.shipping import Shipping
from holdfast_agent.jobs.backup_cache import Rebuilding, describes, open_cache
from holdfast_agent.jobs.backup_commit import CommitRounds, check_own_commit, require_something
from holdfast_agent.jobs.backup_hints import YOUNG_NS, Hints
from holdfast_agent.jobs.backup_job import UNHINTED, BackupJob, BackupTools
from holdfast_agent.jobs.backup_source import VolumeSource
from holdfast_agent.jobs.outcome import Outcome, decode_outcome
from holdfast_agent.ports import Cancel, ChunkSource, Committed, Missing, Progress, Uploads
from holdfast_agent.snapshots.chunks import ChunkReader
from holdfast_agent.snapshots.snapshot import Snapshot
from holdfast_agent.sources.mounts import mounts_below
from holdfast_agent.sources.watches import View
from holdfast_agent.state.cache import CacheHeader, TreeCache
from holdfast_agent.state.journal import SignedCommit
from holdfast_agent.state.memory import Memory, Remembered
from holdfast_agent.tree.known import KnownTreeLost
from holdfast_contract.errors import Cancelled, HoldfastError, Retry
from holdfast_contract.format.manifest import dataset_id, snapshot_id
from holdfast_contract.ids import ZERO_HASH
from holdfast_contract.logs import get_logger
from holdfast_contract.protocol import control

_log = get_logger(__name__)
OpenUploads = Callable[[], Uploads]


def run_backup(
    order: control.Backup,
    tools: BackupTools,
    *,
    uploads: OpenUploads,
    chunks: ChunkSource,
    cancel: Cancel,
    progress: Progress,
) -> Outcome:
    """Back up and return how it ended: Completed, or CompletedWithSkips.

    `uploads` opens the job's session; it is called when something is to be sent, not before.

    Raises:
        OutsideRoots, InvalidInput: a path or an exclude is refused; nothing was read.
        Refused: the server names another client's snapshot as parent, or another workload's.
        WrongKey, HistoryRegressed, Damaged: key or history are not right; nothing was sent.
        NothingRead: none of the paths could be read.
        MissingChunks: the commit was refused as often as is allowed.
        Cancelled, NoSpace, Unreachable, ...: as the uploads raise them.
    """
    record = open_identity(tools.identity_record, tools.keys)
    job = BackupJob(
        order=order,
        tools=tools,
        record=record,
        paths=_checked_paths(order, tools),
        chunks=chunks,
        cancel=cancel,
        progress=progress,
        known_head=Memory(tools.state).load(),
        started_ns=max(tools.clock.now_ns(), 0),
        started=tools.clock.monotonic(),
    )
    source = _source(job)
    if order.dry_run:
        return _run_dry(job, source)
    check_references(record.client, order.references)
    answered = _commit_again(job, uploads)
    if answered is not None:
        return answered
    _check_history(job)
    return _run(job, source, uploads)


def _checked_paths(order: control.Backup, tools: BackupTools) -> tuple[bytes, ...]:
    paths = order.paths or [root.shown for root in tools.roots.roots]
    return tuple(dict.fromkeys(tools.roots.check(path) for path in paths))


def _source(job: BackupJob) -> VolumeSource:
    tools = job.tools
    tools.own.refresh()

    def sleep(seconds: float) -> None:
        job.cancel.wait(seconds)
        job.cancel.check()

    return VolumeSource(
        job.paths,
        job.order.excludes,
        keys=tools.keys,
        roots=tools.roots,
        own=tools.own,
        clock=tools.clock,
        sleep=sleep,
        open_spool=tools.state.spool,
    )


def _check_history(job: BackupJob) -> None:
    shown = Head(job.order.head_seq, job.order.head)
    check_history(
        shown,
        Head(*job.known_head),
        client=job.record.client,
        keys=job.tools.keys,
        chunks=job.chunks,
        cancel=job.cancel,
    )
    if shown.seq > job.known_head.seq:
        job.remember(Remembered(*shown))


# --- after a restart ---
def _commit_again(job: BackupJob, uploads: OpenUploads) -> Outcome | None:
    """Repeat a commit that may have happened; None when there is none, or it did not count."""
    known = job.journal.get(job.order.job)
    if known is None or known.signed is None:
        return None
    try:
        answer = _repeated(job, known.signed, uploads)
    except Cancelled:
        raise
    except HoldfastError as exc:
        if exc.retry is not Retry.NEVER:
            raise
        _log.info("the commit before the restart does not count", reason=exc.message)
        return None
    if not isinstance(answer, Committed):
        return None
    if answer.snapshot != snapshot_id(known.signed.manifest):
        check_own_commit(job, answer.snapshot, known.signed.seq)
    job.remember(Remembered(known.signed.seq, answer.snapshot))
    cache = open_cache(job.tools.state)
    if cache is not None:
        pending = cache.pending()
        if pending is not None and pending.snapshot == answer.snapshot:
            cache.apply()
        cache.close()
    return decode_outcome(known.signed.outcome)


def _repeated(
    job: BackupJob, signed: SignedCommit, uploads: OpenUploads
) -> Committed | Missing | None:
    refs = job.journal.refs(job.order.job)
    if refs is None:
        return None
    with refs:
        length = refs.seek(0, os.SEEK_END)
        session = uploads()
        session.put_refs(refs, length)
        session.put_manifest(signed.manifest)
        return session.commit(signed.seq)


# --- the work ---
def _context(job: BackupJob) -> BackupContext:
    tools = job.tools
    small = tools.domain.small_file_bytes_max
    return BackupContext(
        keys=tools.keys,
        small_file_bytes_max=small,
        cutter=FastCdc(tools.domain.chunker, tools.keys.chunker_seed),
        plan=plan_memory(tools.memory_max, small),
        epoch_min=job.order.epoch_min,
        workers=tools.workers,
        open_spool=tools.state.spool,
        cancel=job.cancel,
        progress=job.progress,
    )


def _run_dry(job: BackupJob, source: VolumeSource) -> Outcome:
    cache = open_cache(job.tools.state)
    try:
        is_known = cache is not None and describes(cache, job.parent, job.tools.keys) is not None
        tally, tops_read = run_dry(_context(job), source, cache if is_known else None)
    finally:
        if cache is not None:
            cache.close()
    require_something(tally, tops_read)
    return job.outcome(
        tally, snapshot=None, bytes_new=tally.bytes_changed, bytes_sent=0, hinted=UNHINTED
    )


def _run(job: BackupJob, source: VolumeSource, uploads: OpenUploads) -> Outcome:
    session = uploads()
    cache = open_cache(job.tools.state)
    try:
        return _run_with(job, source, session, cache)
    except KnownTreeLost as lost:
        _log.warning("the tree cache broke: everything is read", reason=str(lost))
        if cache is not None:
            cache.clear()
        return _run_with(job, source, session, None)
    finally:
        if cache is not None:
            cache.close()


def _run_with(
    job: BackupJob, source: VolumeSource, session: Uploads, cache: TreeCache | None
) -> Outcome:
    with ExitStack() as ended:
        trees = ended.enter_context(closing(ChunkReader(job.tools.keys, job.chunks, workers=1)))
        known = _described(job, cache)
        source.hints = _hints(job, source, known)
        if source.hints is not None:
            ended.enter_context(closing(source.hints.watching))
        header = known or _rebuilt(job, cache)
        with closing(_relatives(job, trees, header)) as relatives:
            context = replace(_context(job), trees=trees, relatives=relatives)
            with closing(Shipping(context, session)) as shipping:
                rounds = CommitRounds(
                    job,
                    context,
                    source,
                    shipping=shipping,
                    uploads=session,
                    cache=cache,
                    header=header,
                )
                outcome = rounds.run()
    for note in source.notes.values():
        _log.info("left out", reason=note.reason.value, text=note.message)
    return outcome


def _relatives(job: BackupJob, trees: ChunkReader, header: CacheHeader | None) -> Relatives:
    tools, own = job.tools, job.record.client
    shared = tools.domain.share_references
    dataset = dataset_id(job.paths, job.order.excludes)

    def open_snapshot(snapshot: bytes) -> Snapshot:
        return Snapshot(snapshot, keys=tools.keys, source=job.chunks, chunks=trees)

    return Relatives(
        own,
        # The domain's record is believed by its MAC, the server's word alone is not.
        [named for named in job.order.references if shared or named.client == own],
        open_snapshot=open_snapshot,
        open_spool=tools.state.spool,
        cancel=job.cancel,
        progress=job.progress,
        is_first=header is None or header.dataset != dataset,
    )


def _described(job: BackupJob, cache: TreeCache | None) -> CacheHeader | None:
    """Return what the cache has kept of the parent."""
    if cache is None or job.parent == ZERO_HASH:
        return None
    return describes(cache, job.parent, job.tools.keys)


def _rebuilt(job: BackupJob, cache: TreeCache | None) -> CacheHeader | None:
    """Fill the cache from the parent snapshot; return what it knows then."""
    if cache is None or job.parent == ZERO_HASH:
        return None
    rebuilding = Rebuilding(cache, job.chunks, job.tools.keys, job.cancel, client=job.record.client)
    return rebuilding.run(job.parent, job.progress)


def _hints(job: BackupJob, source: VolumeSource, known: CacheHeader | None) -> Hints | None:
    """Begin this job's change hints; None where there are none to have.

    Only a cache that was kept counts as known: one that is rebuilt may lack what was damaged.
    """
    if job.tools.watches is None:
        return None
    try:
        mounts = mounts_below(source.real_paths())
    except OSError:
        return None
    view = View(
        paths=tuple(source.tops()),
        real_paths=source.real_paths(),
        excludes=tuple(job.order.excludes),
        own=job.tools.own.facts,
        mounts=mounts,
    )
    watching = job.tools.watches.begin(job.parent, view, is_known=known is not None)
    if watching is None:
        return None
    return Hints(watching, known.agent_time_ns - YOUNG_NS if known is not None else 0)
