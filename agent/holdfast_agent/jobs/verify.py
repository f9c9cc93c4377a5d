"""The use case verify: every chunk of a snapshot opened, every id computed again."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from holdfast_agent.crypto.keys import DomainKeys
from holdfast_agent.jobs.outcome import Outcome
from holdfast_agent.jobs.verify_content import ContentProof
from holdfast_agent.ports import Cancel, ChunkSource, Progress
from holdfast_agent.restore.tally import Tally
from holdfast_agent.snapshots.chunks import ChunkReader
from holdfast_agent.snapshots.snapshot import Found, Snapshot
from holdfast_agent.sorting import OpenSpool, RecordSorter
from holdfast_agent.sources.roots import normal_path
from holdfast_agent.tree.entry import EntryFlag, EntryType
from holdfast_contract.clock import Clock
from holdfast_contract.errors import Damaged
from holdfast_contract.format.refs import refs_set_of
from holdfast_contract.limits import MIB
from holdfast_contract.protocol import control
from holdfast_contract.protocol.http import JobResult, path_fields


@dataclass
class _Job:
    snapshot: Snapshot
    found: Found
    tally: Tally
    cancel: Cancel
    progress: Progress
    chunks: int = 0


def run_verify(  # noqa: PLR0913 - effects and limits of the caller, each by its name
    order: control.Verify,
    *,
    keys: DomainKeys,
    source: ChunkSource,
    cancel: Cancel,
    progress: Progress,
    clock: Clock,
    workers: int = 2,
    memory_max: int = 160 * MIB,
    open_spool: OpenSpool = io.BytesIO,
) -> Outcome:
    """Open everything that the item reaches, and return Completed, or Failed with what is damaged.

    Content ids of small files and lengths of others are computed again. Of a whole snapshot the
    ids reached are compared with refs_set and refs_count of the manifest. `open_spool` opens the
    unnamed file in which millions of ids are sorted.

    Raises:
        WrongKey, NotFound, Damaged: key, snapshot or path are not there or not right.
        Cancelled: somebody asked for the end.
    """
    started = clock.monotonic()
    reader = ChunkReader(keys, source, workers=workers)
    with closing(reader):
        snapshot = Snapshot(order.item.snapshot, keys=keys, source=source, chunks=reader)
        found = snapshot.find(normal_path(order.item.path))
        job = _Job(snapshot, found, Tally(progress), cancel, progress)
        if found.path == b"/":
            progress.totals(snapshot.body.files, snapshot.body.bytes)
        with ContentProof(keys, snapshot, job.tally, cancel=cancel, memory_max=memory_max) as proof:
            _verify_files(job, proof)
            proof.finish()
        job.chunks = proof.chunks
        progress.phase("finalizing")
        if found.path == b"/" and not job.tally.damaged_count:
            _verify_reach(job, open_spool)
    return _outcome(order, job, clock.monotonic() - started)


# --- files
def _verify_files(job: _Job, proof: ContentProof) -> None:
    groups: set[bytes] = set()
    for found in job.snapshot.walk(job.found, job.tally.broke):
        job.cancel.check()
        job.progress.current(found.path)
        stat, content = found.entry.stat, found.entry.content
        if found.is_directory:
            job.tally.dirs += not found.is_implied
            continue
        is_further = content.link_group in groups
        if content.link_group:
            groups.add(content.link_group)
        job.tally.files += 1
        job.tally.logical_bytes += 0 if is_further else stat.size
        is_broken = not _has_attributes(job, found)
        if stat.type == EntryType.FILE and not stat.flags & EntryFlag.SKIPPED and not is_further:
            proof.put(found, is_broken=is_broken)
        else:
            job.progress.add(files=1, bytes=0 if is_further else stat.size)


def _has_attributes(job: _Job, found: Found) -> bool:
    try:
        job.snapshot.attributes(found.entry)
    except Damaged as damage:
        job.tally.broke(found.path, damage)
        return False
    return True


# --- what the manifest reaches
def _verify_reach(job: _Job, open_spool: OpenSpool) -> None:
    snapshot = job.snapshot
    sorter = RecordSorter(32, open_spool)
    with closing(sorter):
        try:
            for _ in snapshot.reports():
                job.cancel.check()
            for chunk in snapshot.reached():
                job.cancel.check()
                sorter.add((chunk,))
        except Damaged as damage:
            job.tally.broke(b"/", damage)
            return
        count = 0

        def counted() -> Iterator[bytes]:
            nonlocal count
            for record in sorter.sorted():
                count += 1
                yield record

        digest = refs_set_of(counted())
    body = snapshot.body
    if (digest, count) != (body.refs_set, body.refs_count):
        name = f"manifest {snapshot.id.hex()}"
        job.tally.broke(b"/", Damaged("refs are not what is reached", object=name, reason="refs"))


def _outcome(order: control.Verify, job: _Job, seconds: float) -> Outcome:
    tally = job.tally
    failure = None
    if tally.damaged_count:
        failure = control.Failure(
            code="damaged",
            message=f"{tally.damaged_count} paths are damaged: {', '.join(tally.objects)}",
            hint="The next backup stores the data again where the files still have it.",
            details={
                "object": tally.objects[0] if tally.objects else "",
                "objects": list(tally.objects),
            },
        )
    finished = control.Finished(
        job=order.job,
        state=control.JobState.FAILED if failure else control.JobState.COMPLETED,
        snapshot=job.snapshot.id,
        counts=control.Counts(
            files=tally.files,
            bytes=tally.logical_bytes,
            files_total=tally.files,
            bytes_total=tally.logical_bytes,
        ),
        summary={
            "snapshot": job.snapshot.id.hex(),
            "files": tally.files,
            "dirs": tally.dirs,
            "bytes": tally.logical_bytes,
            "chunks": job.chunks,
            "damaged_count": tally.damaged_count,
            "seconds": round(seconds, 3),
        },
        error=failure,
    )
    rows = [
        {**path_fields(row.path), "object": row.object, "chunk": row.chunk} for row in tally.damaged
    ]
    return Outcome(finished=finished, result=JobResult(damaged=rows))
