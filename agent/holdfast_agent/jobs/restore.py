"""The use case restore: from the order to files, and to a list of all that is not as it was.

Everything that can be refused is refused before the first write: the pod's mode, the roots, the
patterns, the key, paths that a snapshot does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Final

from holdfast_agent.crypto.keys import DomainKeys
from holdfast_agent.crypto.sealing import Sealer
from holdfast_agent.jobs.outcome import Outcome
from holdfast_agent.ports import Cancel, ChunkSource, Progress
from holdfast_agent.restore.comparison import ContentCheck
from holdfast_agent.restore.decide import Decider
from holdfast_agent.restore.deletion import Deletion
from holdfast_agent.restore.destination import (
    Below,
    Destination,
    InPlace,
    RestoreScope,
    check_in_place,
    check_scope,
    dropped_prefix,
    open_target,
)
from holdfast_agent.restore.dictation import Dictation
from holdfast_agent.restore.execute import Execution, Prediction
from holdfast_agent.restore.metadata import Policy
from holdfast_agent.restore.pipeline import ROOMS, Pipeline, batch_bytes, room_bytes
from holdfast_agent.restore.plan import Planner
from holdfast_agent.restore.readback import ReadBack
from holdfast_agent.restore.selection import Selection, hidden_by
from holdfast_agent.restore.steps import LinkGroup, Portion, Step, need_of
from holdfast_agent.restore.tally import NotExactRow, Tally
from holdfast_agent.snapshots.arena import Arena
from holdfast_agent.snapshots.chunks import ChunkReader
from holdfast_agent.snapshots.snapshot import Snapshot
from holdfast_agent.sources.roots import is_within, normal_path
from holdfast_contract import limits
from holdfast_contract.clock import Clock
from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.format.report import ReportKind, ReportRow, encode_report
from holdfast_contract.protocol import control
from holdfast_contract.protocol.http import JobResult, path_fields

MEMORY_MAX_DEFAULT: Final = 160 * limits.MIB
_DICTATION_BYTES: Final = 128 * limits.MIB
"""A second process takes 12 MiB of its own: with less for all of it there is none."""
_SEALED_ROWS_BYTES_MAX: Final = limits.NOT_EXACT_BYTES_MAX * 7 // 8
"""Plaintext of the sealed list: padding and header fit into the rest."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    order: control.Restore
    keys: DomainKeys
    reader: ChunkReader
    scope: RestoreScope
    own_client: str
    tally: Tally
    cancel: Cancel
    progress: Progress
    memory_max: int


def run_restore(  # noqa: PLR0913 - effects and limits of the caller, each by its name
    order: control.Restore,
    *,
    keys: DomainKeys,
    source: ChunkSource,
    own_client: str,
    scope: RestoreScope,
    cancel: Cancel,
    progress: Progress,
    clock: Clock,
    workers: int = 2,
    memory_max: int = MEMORY_MAX_DEFAULT,
) -> Outcome:
    """Restore and return how it ended: Completed, CompletedWithSkips, or Failed by damage.

    `source` gives the chunks of all snapshots of the order. `own_client` is whose snapshots may
    bring setuid bits, capabilities and devices; a local scope takes them from anybody's.

    Raises:
        Refused, OutsideRoots: the pod does not allow it; nothing was written.
        InvalidInput: a pattern or the target's path is none; nothing was written.
        WrongKey, NotFound, Damaged: key, snapshot or path are not there or not right; nothing was
            written.
        NoSpace, Refused: the target is full or read-only; what was finished stays.
        Cancelled: what was finished stays, nothing half-written does.
    """
    started = clock.monotonic()
    check_scope(scope, order.target, strip=order.strip)
    scope.own.refresh()
    tally = Tally(progress, wants_plan=order.dry_run)
    with ExitStack() as stack:
        reader = ChunkReader(keys, source, workers=workers)
        stack.callback(reader.close)
        job = _Job(
            order=order,
            keys=keys,
            reader=reader,
            scope=scope,
            own_client=own_client,
            tally=tally,
            cancel=cancel,
            progress=progress,
            memory_max=memory_max,
        )
        portions = _portions(job, source)
        destination = _destination(job)
        stack.callback(destination.close)
        _restore(job, portions, destination)
    return _outcome(job, clock.monotonic() - started)


# --- before anything is written
def _portions(job: _Job, source: ChunkSource) -> list[Portion]:
    snapshots: dict[bytes, Snapshot] = {}
    groups: dict[bytes, dict[bytes, LinkGroup]] = {}
    portions = []
    for item in _distinct(job.order.items):
        job.cancel.check()
        if item.snapshot not in snapshots:
            snapshots[item.snapshot] = Snapshot(
                item.snapshot, keys=job.keys, source=source, chunks=job.reader
            )
        portion = _portion(job, snapshots[item.snapshot], item)
        # Names of one file may lie in several items.
        portion.groups = groups.setdefault(item.snapshot, portion.groups)
        portions.append(portion)
    _tell_totals(job, portions)
    return portions


def _distinct(items: list[control.RestoreItem]) -> list[control.RestoreItem]:
    """Return the items without those that lie in another one."""
    plain = {(item.snapshot, normal_path(item.path)): item for item in items}
    return [
        item
        for (snapshot, path), item in plain.items()
        if not any(
            snapshot == other and path != above and is_within(path, above) for other, above in plain
        )
    ]


def _portion(job: _Job, snapshot: Snapshot, item: control.RestoreItem) -> Portion:
    order = job.order
    found = snapshot.find(normal_path(item.path))
    dropped = b""
    if order.strip:
        found, dropped = dropped_prefix(snapshot, found)
    elif not order.target:
        assert job.scope.roots is not None
        check_in_place(job.scope.roots, snapshot, found)
    selection = Selection(found, include=order.include, exclude=order.exclude)
    special = job.scope.is_local or order.special or snapshot.body.client == job.own_client
    hidden = hidden_by(snapshot, selection) if order.delete else None
    return Portion(snapshot, found, dropped, selection, Policy(special=special), hidden)


def _tell_totals(job: _Job, portions: list[Portion]) -> None:
    """Say how much there is where the manifests say it: whole snapshots, nothing left out."""
    whole = all(p.found.path == b"/" and p.selection.is_everything for p in portions)
    if whole:
        bodies = [portion.snapshot.body for portion in portions]
        job.progress.totals(sum(b.files for b in bodies), sum(b.bytes for b in bodies))


def _destination(job: _Job) -> Destination:
    order, scope, create = job.order, job.scope, not job.order.dry_run
    if order.target:
        return Below(
            open_target(order.target, scope.roots, run=order.job, own=scope.own, create=create)
        )
    assert scope.roots is not None
    return InPlace(scope.roots, run=order.job, own=scope.own, create=create)


# --- the work
def _restore(job: _Job, portions: list[Portion], destination: Destination) -> None:
    check = ContentCheck(job.keys, job.reader, job.cancel)
    deletion = Deletion(job.tally, job.cancel, dry_run=job.order.dry_run)
    if job.order.dry_run:
        planner = _planner(job, destination, check, Prediction(job.tally, deletion))
        for portion in portions:
            planner.plan(portion)
        return
    bytes_max = batch_bytes(job.memory_max)
    with ExitStack() as stack:
        rooms = _shared_rooms(room_bytes(bytes_max)) if job.memory_max >= _DICTATION_BYTES else ()
        for room in rooms:
            stack.callback(room.close)
        execution = Execution(
            job.tally,
            deletion,
            keys=job.keys,
            reader=job.reader,
            check=check,
            cancel=job.cancel,
            dictation=Dictation(job.keys.content, job.order.job, rooms, job.cancel),
        )
        stack.enter_context(closing(execution))
        pipeline = stack.enter_context(
            Pipeline(
                job.reader,
                need_of,
                execution,
                cancel=job.cancel,
                bytes_max=bytes_max,
                rooms=rooms,
                settle=execution.settle,
            )
        )
        planner = _planner(job, destination, check, pipeline.put)
        for portion in portions:
            planner.plan(portion)
            # A later item may meet what an earlier one has written.
            pipeline.drain()
    job.progress.phase("finalizing")
    for target in destination.targets():
        target.sync()
    if job.order.verify:
        read_back = ReadBack(destination, check, job.tally, job.cancel, job.progress)
        for portion in portions:
            read_back.compare(portion)


def _shared_rooms(length: int) -> Sequence[Arena]:
    """Return memory that a second process may map; none where the kernel has none of it."""
    rooms: list[Arena] = []
    try:
        for _ in range(ROOMS):
            rooms.append(Arena(length, is_shared=True))
    except OSError:
        for room in rooms:
            room.close()
        return ()
    return rooms


def _planner(
    job: _Job, destination: Destination, check: ContentCheck, emit: Callable[[Step], None]
) -> Planner:
    overwrite, dry_run = job.order.overwrite, job.order.dry_run
    decider = Decider(check, overwrite=overwrite, tally=job.tally, emit=emit, dry_run=dry_run)
    return Planner(
        destination,
        decider,
        overwrite=overwrite,
        tally=job.tally,
        emit=emit,
        cancel=job.cancel,
        progress=job.progress,
    )


# --- the end
def _outcome(job: _Job, seconds: float) -> Outcome:
    tally, order = job.tally, job.order
    state = control.JobState.COMPLETED
    if tally.damaged_count:
        state = control.JobState.FAILED
    elif tally.not_exact_count:
        state = control.JobState.COMPLETED_WITH_SKIPS
    snapshots = {item.snapshot for item in order.items}
    only = snapshots.pop() if len(snapshots) == 1 else None
    finished = control.Finished(
        job=order.job,
        state=state,
        snapshot=only,
        counts=control.Counts(
            files=tally.files,
            bytes=tally.logical_bytes,
            files_total=tally.files,
            bytes_total=tally.logical_bytes,
        ),
        summary=_summary(tally, only, seconds),
        not_exact_count=tally.not_exact_count,
        error=_failure(tally),
    )
    return Outcome(finished=finished, result=_result(job))


def _summary(
    tally: Tally, snapshot: bytes | None, seconds: float
) -> dict[str, int | float | str | None]:
    return {
        "snapshot": snapshot.hex() if snapshot else None,
        "files": tally.files,
        "dirs": tally.dirs,
        "bytes": tally.logical_bytes,
        "created": tally.created,
        "overwritten": tally.overwritten,
        "deleted": tally.deleted,
        "unchanged": tally.unchanged,
        "damaged_count": tally.damaged_count,
        "seconds": round(seconds, 3),
    }


def _failure(tally: Tally) -> control.Failure | None:
    if not tally.damaged_count:
        return None
    named = ", ".join(tally.objects) or "stored data"
    return control.Failure(
        code="damaged",
        message=f"{tally.damaged_count} paths could not be restored: damaged: {named}",
        hint="Everything else is restored; another snapshot may still have these files.",
        details={
            "object": tally.objects[0] if tally.objects else "",
            "objects": list(tally.objects),
            "paths": tally.damaged_count,
        },
    )


def _result(job: _Job) -> JobResult:
    tally = job.tally
    return JobResult(
        not_exact=[
            {**path_fields(row.path), "reason": row.reason, "message": row.message}
            for row in tally.not_exact
        ],
        plan=tally.plan,
        damaged=[
            {**path_fields(row.path), "object": row.object, "chunk": row.chunk}
            for row in tally.damaged
        ],
        not_exact_sealed=_sealed(job.keys, tally) if tally.not_exact else None,
    )


def _sealed(keys: DomainKeys, tally: Tally) -> bytes:
    """Return the list for who holds the key: chunk id, then the sealed chunk."""
    rows: list[ReportRow] = []
    room = _SEALED_ROWS_BYTES_MAX
    for row in tally.not_exact:
        room -= _row_bytes(row)
        if room < 0:
            break
        rows.append(ReportRow(row.path, row.reason, row.message))
    more = tally.not_exact_count - len(rows)
    sealed = Sealer(keys).seal(ChunkType.REPORT, encode_report(ReportKind.NOT_EXACT, rows, more))
    return bytes(sealed.chunk_id) + bytes(sealed.sealed)


def _row_bytes(row: NotExactRow) -> int:
    return len(row.path) + len(row.reason) + len(row.message.encode()) + 16
