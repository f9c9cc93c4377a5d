"""The state machine of jobs: every step is one compare-and-set in the catalog.

Queued -> Dispatched -> Running -> Finalizing -> Completed | CompletedWithSkips
   any of these ---------------------------------> Failed | Cancelled
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from holdfast_contract.errors import Cancelled, HoldfastError, NotFound
from holdfast_contract.protocol.control import Cancel, Finished, JobState, Progress
from holdfast_server.catalog import events as event_rows
from holdfast_server.catalog import jobs
from holdfast_server.catalog.attested import Attested
from holdfast_server.catalog.connection import Catalog, Tx
from holdfast_server.catalog.jobs import ACTIVE_STATES, JobRecord
from holdfast_server.control.endings import Ending, ending_by, ending_of, error_row
from holdfast_server.control.events import DONE, Events
from holdfast_server.control.hub import AgentConnection, Hub
from holdfast_server.control.live import LiveJobs
from holdfast_server.control.notices import Notices
from holdfast_server.control.orders import RestoreSpec, decode_spec, is_dry_run
from holdfast_server.control.results import Results
from holdfast_server.control.workers import Workers
from holdfast_server.repository import Repository

_BEFORE: Final = {
    JobState.RUNNING: (JobState.QUEUED, JobState.DISPATCHED),
    JobState.FINALIZING: (JobState.QUEUED, JobState.DISPATCHED, JobState.RUNNING),
}
UNFINISHED: Final = (JobState.QUEUED, *ACTIVE_STATES)


class JobLife:
    """Moves jobs from state to state; belongs to one event loop."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        repository: Repository,
        workers: Workers,
        hub: Hub,
        live: LiveJobs,
        results: Results,
        events: Events,
        notices: Notices,
    ) -> None:
        self._catalog = catalog
        self._repository = repository
        self._workers = workers
        self._hub = hub
        self._live = live
        self._results = results
        self._events = events
        self._notices = notices

    async def create(self, records: list[JobRecord], who: Mapping[str, str]) -> None:
        """Queue new jobs; `who` asked for them, as their events tell."""
        await self._workers.run(self._create, records, who)
        self._events.told()

    def _create(self, records: list[JobRecord], who: Mapping[str, str]) -> None:
        now = self._catalog.clock.now_ns()

        def note(tx: Tx, result: None) -> None:
            for record in records:
                spec = decode_spec(record.spec)
                special = isinstance(spec, RestoreSpec) and spec.special
                event_rows.record(
                    tx,
                    now,
                    "job-queued",
                    f"{record.kind} asked for",
                    client=record.client,
                    job=record.id,
                    details={**who, "special": special, "outcome": DONE},
                )

        # One transaction: no job without a row that tells who asked for it.
        jobs.create(Attested(self._catalog, note), records)

    async def load(self) -> None:
        """Take up the jobs that were active when the process before this one ended."""
        for record in await self._workers.run(jobs.active, self._catalog):
            live = self._live.add(record.id, record.client)
            live.state = record.state
            live.counts = record.counts
            live.is_cancelling = record.error is not None

    async def begun(self, job: str, connection: AgentConnection) -> None:
        """The agent has begun a job, or goes on with it."""
        await self._advance(job, connection, JobState.RUNNING)

    async def progressed(self, progress: Progress, connection: AgentConnection) -> None:
        """The agent tells how far a job is."""
        phase = JobState.FINALIZING if progress.phase == "finalizing" else JobState.RUNNING
        if not await self._advance(progress.job, connection, phase):
            return
        if self._live.update(progress):
            self._notices.tell(progress.job)

    async def _advance(self, job: str, connection: AgentConnection, state: JobState) -> bool:
        """Bring a job to `state` unless it is there or beyond; False: not a job of the agent."""
        live = self._live.get(job)
        if live is None or live.client != connection.client:
            return False
        if live.state not in _BEFORE[state]:
            return True
        fields = {"started_ns": self._catalog.clock.now_ns()}
        if live.state is JobState.RUNNING:
            fields = {}
        live.state = state
        if await self._workers.run(jobs.move, self._catalog, job, _BEFORE[state], state, **fields):
            message = "the agent has begun" if state is JobState.RUNNING else "finalizing"
            kind = "job-running" if state is JobState.RUNNING else "job-finalizing"
            await self._events.add(kind, message, client=connection.client, job=job)
        self._notices.tell(job)
        return True

    async def finished(self, finished: Finished, connection: AgentConnection) -> None:
        """The agent says that a job is over: durable on return, or it was not its to end."""
        try:
            record = await self._workers.run(jobs.get, self._catalog, finished.job)
        except NotFound:
            return
        if record.client != connection.client or record.state.is_final:
            return
        ending = await self._workers.run(self._ending, record, finished)
        await self._end(record, ending, (*ACTIVE_STATES, JobState.QUEUED))

    def _ending(self, record: JobRecord, finished: Finished) -> Ending:
        snapshot_state = None
        if finished.snapshot is not None:
            snapshot_state = self._snapshot_state(record, finished.snapshot)
        return ending_of(
            finished,
            kind=record.kind,
            is_dry_run=is_dry_run(decode_spec(record.spec)),
            snapshot_state=snapshot_state,
        )

    def _snapshot_state(self, record: JobRecord, snapshot: bytes) -> str | None:
        try:
            found = self._repository.resolve(snapshot.hex())
        except NotFound:
            return None
        if record.kind != "backup":
            return ""
        return found.result if found.client == record.client else None

    async def cancel(self, job: str, who: Mapping[str, str]) -> JobRecord:
        """End a job: at once where no agent has it, otherwise by a message; return its row.

        `who` asked for it, as the job's events tell.

        Raises:
            NotFound: there is no such job.
        """
        record = await self._workers.run(jobs.get, self._catalog, job)
        if record.state.is_final:
            return record
        asked = Cancelled("cancelled on request", by=who.get("by", ""))
        told = {**who, "outcome": DONE}
        await self._events.add(
            "job-cancel", "cancel asked for", client=record.client, job=job, **told
        )
        if record.state is JobState.QUEUED and await self.end(job, asked, (JobState.QUEUED,)):
            return await self._workers.run(jobs.get, self._catalog, job)
        live = self._live.get(job)
        connection = self._hub.connected(record.client)
        if live is None or connection is None:
            await self.end(job, asked, UNFINISHED)
        else:
            # In the row too: a server that restarts now still knows it when the agent comes back.
            live.is_cancelling = True
            await self._workers.run(self._note_cancel, job, asked)
            connection.send(Cancel(job=job))
        return await self._workers.run(jobs.get, self._catalog, job)

    def _note_cancel(self, job: str, asked: Cancelled) -> None:
        for state in ACTIVE_STATES:
            if jobs.move(self._catalog, job, (state,), state, error=error_row(asked)):
                return

    async def cancel_left(self, connection: AgentConnection) -> None:
        """End the jobs that were to be cancelled on an agent that is gone now."""
        for live in self._live.all():
            if live.client == connection.client and live.is_cancelling:
                await self.end(live.job, Cancelled("cancelled on request"), UNFINISHED)

    async def end(
        self, job: str, error: HoldfastError, states: tuple[JobState, ...] = UNFINISHED
    ) -> bool:
        """End a job with `error` by the server's own decision; False: it was not in `states`."""
        record = await self._workers.run(jobs.get, self._catalog, job)
        live = self._live.get(job)
        ending = ending_by(error, record.counts if live is None else live.counts)
        return await self._end(record, ending, states)

    async def _end(self, record: JobRecord, ending: Ending, states: tuple[JobState, ...]) -> bool:
        kept = self._results.sealed(record.id)
        moved = await self._workers.run(
            jobs.move,
            self._catalog,
            record.id,
            states,
            ending.state,
            finished_ns=self._catalog.clock.now_ns(),
            counts=ending.counts,
            error=ending.error,
            snapshot=ending.snapshot or record.snapshot,
            summary=ending.summary,
            skipped_count=ending.skipped_count,
            not_exact_count=ending.not_exact_count,
            not_exact_sealed=kept,
        )
        if not moved:
            return False
        self._live.remove(record.id)
        self._results.ended(record.id)
        await self._workers.run(self._repository.close_session, record.id)
        await self._events.add(
            "job-ended",
            f"{record.kind}: {ending.state.value}",
            client=record.client,
            job=record.id,
            state=ending.state.value,
            code=ending.error.code if ending.error else "",
        )
        await self._tell_missed(record, ending)
        self._notices.tell(record.id)
        return True

    async def _tell_missed(self, record: JobRecord, ending: Ending) -> None:
        """Tell that changes in a pod were not seen by its agent's change hints until an audit."""
        missed = ending.summary.get("hints_missed")
        if record.kind == "backup" and isinstance(missed, int) and missed > 0:
            await self._events.add(
                "hints-missed",
                "change hints had missed changes: backed up now, and the agent reads everything",
                client=record.client,
                job=record.id,
                entries=missed,
            )

    async def save_counts(self) -> None:
        """Bring progress that the catalog does not have yet into it."""
        unsaved = self._live.take_unsaved()
        if unsaved:
            await self._workers.run(jobs.set_counts, self._catalog, unsaved)


def shown(record: JobRecord, live: LiveJobs) -> JobRecord:
    """Return a row as it is to be shown: newest counts, and no error before the end."""
    if record.state.is_final:
        return record
    found = live.get(record.id)
    return replace(record, error=None, counts=found.counts if found else record.counts)
