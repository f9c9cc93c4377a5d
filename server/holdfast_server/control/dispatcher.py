"""Sends queued jobs to their agents: one at a time for a client, and not too many at once.

A round is cheap and runs when something changed (a job was queued or ended, an agent came) and at
least once a second: then progress is saved and jobs that stand still are ended.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from msgspec.structs import replace

from holdfast_contract.errors import Cancelled, HoldfastError, Stalled
from holdfast_contract.format.manifest import dataset_id
from holdfast_contract.logs import bind, get_logger
from holdfast_contract.protocol.control import (
    Backup,
    Cancel,
    FinishedSeen,
    JobState,
    Reference,
)
from holdfast_server.catalog import clients, domains, jobs
from holdfast_server.catalog.connection import Catalog
from holdfast_server.catalog.jobs import JobRecord
from holdfast_server.control.events import Events
from holdfast_server.control.hub import AgentConnection, Hub
from holdfast_server.control.lifecycle import UNFINISHED, JobLife
from holdfast_server.control.live import LiveJobs
from holdfast_server.control.notices import wait_at_most
from holdfast_server.control.orders import (
    BackupSpec,
    History,
    Order,
    RestoreSpec,
    Spec,
    backup_order,
    decode_spec,
    encode_spec,
    restore_order,
    verify_order,
)
from holdfast_server.control.relatives import references_for, waits_for
from holdfast_server.control.workers import Workers
from holdfast_server.repository import Repository

_log = get_logger(__name__)

ROUND_SECONDS = 1.0


@dataclass(frozen=True)
class DispatchLimits:
    """What the settings say about running jobs."""

    jobs_running_max: int
    """Jobs of connected agents at once; more stay queued."""
    stall_seconds: float
    """A job whose connected agent shows no progress for so long is ended."""


class Dispatcher:
    """Sends jobs and watches them; belongs to one event loop."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        repository: Repository,
        workers: Workers,
        hub: Hub,
        live: LiveJobs,
        life: JobLife,
        events: Events,
        bounds: DispatchLimits,
    ) -> None:
        self._catalog = catalog
        self._repository = repository
        self._workers = workers
        self._hub = hub
        self._live = live
        self._life = life
        self._events = events
        self._bounds = bounds
        self._woken = asyncio.Event()
        self._held: set[str] = set()
        """Queued jobs of which it was told that they wait for another replica's."""

    def wake(self) -> None:
        """Have the next round begin at once."""
        self._woken.set()

    async def run(self) -> None:
        """Do rounds until cancelled."""
        while True:
            await wait_at_most(self._woken, ROUND_SECONDS)
            self._woken.clear()
            try:
                await self.round()
            except HoldfastError as error:
                _log.error("the dispatcher's round failed", error=error)
            except Exception:  # noqa: BLE001  # the job runner: one job must not end all others
                _log.exception("the dispatcher's round failed")

    async def round(self) -> None:
        """Save progress, end what stands still, send what can be sent."""
        await self._life.save_counts()
        await self._events.sum_up()
        for live in self._live.all():
            await self._end_if_stalled(live.job)
        await self._send_queued()

    async def _end_if_stalled(self, job: str) -> None:
        live = self._live.get(job)
        connection = live and self._hub.ready(live.client)
        if not live or not connection:
            return
        if not self._live.is_stalled(live, self._bounds.stall_seconds):
            return
        connection.send(Cancel(job=job))
        error = Stalled(
            f"no progress for {self._bounds.stall_seconds:.0f} seconds",
            hint="look at the agent's log; the next job goes on from what was uploaded",
        )
        await self._life.end(job, error, UNFINISHED)
        self.wake()

    async def _send_queued(self) -> None:
        running = sum(1 for live in self._live.all() if self._hub.connected(live.client))
        room = self._bounds.jobs_running_max - running
        if room <= 0 or not len(self._hub):
            return
        heads = await self._workers.run(jobs.queued_heads, self._catalog)
        self._held &= {head.id for head in heads}
        waiting: set[str] = set()
        for head in heads:
            connection = self._hub.ready(head.client)
            if connection is None or await self._is_held(head, waiting):
                continue
            if await self._send(head, connection):
                room -= 1
            if room <= 0:
                return

    async def _is_held(self, record: JobRecord, waiting: set[str]) -> bool:
        """Tell whether a job has to wait for the first backup of its workload; said once.

        `waiting` has the workloads of which that was found in this round: their other replicas'
        jobs need not ask, as long as they were told.
        """
        if record.id in self._held and record.client.workload in waiting:
            return True
        first = await self._workers.run(waits_for, self._catalog, record, self._is_connected)
        if first is not None and record.id not in self._held:
            self._held.add(record.id)
            await self._events.add(
                "job-waits",
                "begins after the workload's first backup, to share what that one stores",
                client=record.client,
                job=record.id,
                first=first,
            )
        if first is not None:
            waiting.add(record.client.workload)
        return first is not None

    def _is_connected(self, client: str) -> bool:
        return self._hub.connected(client) is not None

    async def _send(self, record: JobRecord, connection: AgentConnection) -> bool:
        """Give a queued job to its agent; False: it could not be, or is over by that."""
        with bind(job=record.id):
            order = await self._order(record)
            if order is None:
                return False
            moved = await self._workers.run(
                jobs.move,
                self._catalog,
                record.id,
                (JobState.QUEUED,),
                JobState.DISPATCHED,
                spec=encode_spec(order.spec),
            )
            if not moved:
                return False
            self._live.add(record.id, record.client)
            connection.send(order.message)
            await self._events.add(
                "job-dispatched", "sent to the agent", client=record.client, job=record.id
            )
            await self._tell_references(record, order)
            return True

    async def _tell_references(self, record: JobRecord, order: _Order) -> None:
        """Record whose snapshots the agent may look at beside its own."""
        for reference in order.message.references if isinstance(order.message, Backup) else ():
            await self._events.add(
                "reference-granted",
                "may read the tree of a snapshot beside the parent until the job ends",
                client=record.client,
                job=record.id,
                snapshot=reference.snapshot.hex(),
                of=reference.client,
            )

    async def _order(self, record: JobRecord) -> _Order | None:
        """Return what to send; a job that cannot be ordered is ended with the reason."""
        try:
            return await self._workers.run(self._build, record)
        except HoldfastError as error:
            await self._life.end(record.id, error, UNFINISHED)
            return None

    def _build(self, record: JobRecord) -> _Order:
        spec = decode_spec(record.spec)
        if isinstance(spec, BackupSpec):
            history = self._history(record, spec)
            granted = replace(
                spec,
                parent=history.parent and history.parent.snapshot,
                references=[reference.snapshot for reference in history.references],
            )
            return _Order(granted, backup_order(record.id, spec, history))
        if isinstance(spec, RestoreSpec):
            return _Order(spec, restore_order(record.id, spec))
        return _Order(spec, verify_order(record.id, spec))

    def _history(self, record: JobRecord, spec: BackupSpec) -> History:
        client = clients.get(self._catalog, record.client)
        head = self._repository.head(record.client)
        dataset = dataset_id(spec.paths or client.roots, spec.excludes)
        found = self._repository.parent_for(record.client, dataset)
        parent = None if found is None else self._repository.history.get(found)
        epochs = domains.get(self._catalog, record.client.domain).epochs
        others = references_for(
            self._catalog,
            record.client,
            dataset=dataset,
            parent=parent,
            epochs=(min(epochs), max(epochs)),
        )
        granted = [*([] if parent is None else [parent]), *others]
        damaged = self._repository.damaged_count([snapshot.id for snapshot in granted])
        reference = None
        if parent is not None:
            refs = self._repository.refs_for_differences(parent.id)
            reference = Reference(parent.id, str(parent.client), refs)
        return History(
            head_seq=head.seq,
            head=head.snapshot,
            parent=reference,
            references=[Reference(other.id, str(other.client)) for other in others],
            damaged=damaged,
            epoch_min=min(epochs),
            is_accepted=client.accepted == head.snapshot,
        )

    async def attach(self, connection: AgentConnection) -> None:
        """Bring a connected agent's jobs and the catalog's together; call before it is ready."""
        named = set(connection.hello.jobs)
        active = {
            record.id: record
            for record in await self._workers.run(jobs.active, self._catalog)
            if record.client == connection.client
        }
        for job in named - active.keys():
            connection.send(FinishedSeen(job=job))
        for record in active.values():
            live = self._live.add(record.id, record.client)
            if record.id not in named and not live.is_cancelling:
                await self._send_again(record, connection)
            elif live.is_cancelling and record.id in named:
                connection.send(Cancel(job=record.id))
            elif live.is_cancelling:
                await self._life.end(record.id, Cancelled("cancelled on request"), UNFINISHED)

    async def _send_again(self, record: JobRecord, connection: AgentConnection) -> None:
        order = await self._order(record)
        if order is None:
            return
        state, spec = (record.state,), encode_spec(order.spec)
        same = await self._workers.run(
            jobs.move, self._catalog, record.id, state, record.state, spec=spec
        )
        if same:
            connection.send(order.message)
            await self._tell_references(record, order)


@dataclass(frozen=True)
class _Order:
    """An order, and the spec that grants what it names."""

    spec: Spec
    message: Order
