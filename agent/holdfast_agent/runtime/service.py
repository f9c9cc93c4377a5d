"""The agent at work: one event loop that keeps the control channel and reports progress.

Every job and query runs in a thread of its own, on synchronous code. A job ends in the journal
first; its end is told at every connect until the server says that it keeps it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import msgspec

from holdfast_agent.config import VERSION, AgentConfig
from holdfast_agent.crypto.keys import DomainKeys
from holdfast_agent.jobs import enrol
from holdfast_agent.jobs.outcome import failed
from holdfast_agent.jobs.runner import JobRun, Order
from holdfast_agent.jobs.tracking import JobCancel
from holdfast_agent.runtime.allocator import return_unused
from holdfast_agent.runtime.workshop import Workshop
from holdfast_agent.sources.clock import FileClock
from holdfast_agent.state.directory import StateDirectory
from holdfast_agent.state.journal import JobJournal, JournalledJob
from holdfast_agent.transport.channel import Channel
from holdfast_agent.transport.http import Body, HttpClient, Kept
from holdfast_agent.transport.retry import Credential
from holdfast_contract.errors import HoldfastError, InvalidInput, TooMany
from holdfast_contract.logs import get_logger
from holdfast_contract.protocol import control
from holdfast_contract.protocol.http import JobResult

_log = get_logger(__name__)

USER_AGENT = f"holdfast-agent/{VERSION}"
PROGRESS_SECONDS = 0.5
QUERIES_AT_ONCE = 4
QUERIES_WAITING_MAX = 64
"""More than people ask for at once; a flood of them must not fill the memory."""
JOBS_AT_ONCE = 16
"""Each has threads of its own; a server gives an agent one or two."""
JOBS_KEPT_MAX = 1000
"""Jobs whose end the server has not seen: the hello of the next connection names all of them."""
STOP_SECONDS = 8.0


@dataclass
class Agent:
    """A known agent: its channel, its jobs, its queries. Lives in the event loop."""

    config: AgentConfig
    state: StateDirectory
    keys: DomainKeys
    identity: enrol.Identity
    context: ssl.SSLContext
    clock: FileClock
    uniform: Callable[[float, float], float]

    def __post_init__(self) -> None:
        """Wire what is needed."""
        self._loop = asyncio.get_running_loop()
        self._journal = JobJournal(self.state)
        self._credential = Credential()
        self._runs: dict[str, JobRun] = {}
        self._has_work = asyncio.Event()
        self._queries: dict[str, JobCancel] = {}
        self._query_threads = ThreadPoolExecutor(QUERIES_AT_ONCE, thread_name_prefix="query")
        self._tasks: set[asyncio.Task[None]] = set()
        self._kept = Kept()
        self._polled: int | None = None
        self._channel = Channel(
            url=self.config.server,
            context=self.context,
            credential=self._credential,
            peer=self,
            clock=self.clock,
            uniform=self.uniform,
            user_agent=USER_AGENT,
        )
        self._workshop = Workshop(
            config=self.config,
            state=self.state,
            keys=self.keys,
            identity=self.identity,
            credential=self._credential,
            make_client=self._client,
            clock=self.clock,
            uniform=self.uniform,
        )
        self._workshop.queue_opened = self._queue_opened

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, or until the server refuses this identity for good."""
        channel = asyncio.create_task(self._channel.run())
        progress = asyncio.create_task(self._report())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({channel, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if channel.done():
                channel.result()
        finally:
            stopping.cancel()
            progress.cancel()
            await self._end_work()
            await self._channel.stop()
            await asyncio.gather(channel, progress, stopping, return_exceptions=True)
            self._kept.close()
            if self._polled is not None:
                self._loop.remove_reader(self._polled)
            if self._workshop.watches is not None:
                self._workshop.watches.close()

    def _queue_opened(self, descriptor: int) -> None:
        self._loop.call_soon_threadsafe(self._poll, descriptor)

    def _poll(self, descriptor: int) -> None:
        """Take in between backups what changes: the queue of the kernel must not overflow."""
        assert self._workshop.watches is not None
        self._polled = descriptor
        self._loop.add_reader(descriptor, self._workshop.watches.drain)

    async def _end_work(self) -> None:
        """Interrupt what runs: jobs stay in the journal and go on at the next start."""
        for cancel in list(self._queries.values()):
            cancel.set()
        for run in list(self._runs.values()):
            run.interrupt()
        for run in list(self._runs.values()):
            await asyncio.to_thread(run.join, STOP_SECONDS)
        await asyncio.to_thread(self._query_threads.shutdown, wait=True, cancel_futures=True)

    def _client(self) -> HttpClient:
        return HttpClient(
            self.config.server,
            self.context,
            bearer=self._credential.bearer,
            user_agent=USER_AGENT,
            kept=self._kept,
        )

    # --- Peer: what the channel calls
    def hello(self, nonce: bytes) -> control.Hello:
        """Return the signed hello for this challenge."""
        identity = self._workshop.identity
        proof = control.hello_proof(nonce, identity.hash, identity.client)
        return control.Hello(
            protocol=control.PROTOCOL_VERSION,
            agent_version=VERSION,
            client=identity.client,
            identity=identity.hash,
            signature=identity.key.sign(proof),
            roots=list(self.config.roots),
            restore=self.config.restore,
            restore_roots=list(self.config.restore_roots),
            browse=self.config.browse,
            jobs=[known.job for known in self._journal.all() if _order_of(known) is not None],
        )

    async def welcomed(self, welcome: control.Welcome) -> None:
        """Go on with the journalled jobs, tell the ends that were not seen yet."""
        _log.info("connected", client=welcome.client, server=self.config.server)
        self._workshop.limits.change(welcome.settings)
        for run in list(self._runs.values()):
            if run.outcome is not None:
                self._spawn(self._tell_end(run))
        for known in await asyncio.to_thread(self._journal.all):
            order = _order_of(known)
            if order is not None:
                await self._begin(order)

    async def received(self, message: control.ToAgent) -> None:
        """Act on one message of the server."""
        match message:
            case control.Backup() | control.Restore() | control.Verify():
                await self._begin(message)
            case control.Cancel(job=job):
                await self._cancel(job)
            case control.FinishedSeen(job=job):
                await self._forget(job)
            case control.NewSettings(settings=settings):
                self._workshop.limits.change(settings)
            case control.Query():
                self._ask(message)
            case control.CancelQuery(query=query):
                if query in self._queries:
                    self._queries[query].set()
            case _:
                _log.warning("message at the wrong time", kind=type(message).__name__)

    # --- jobs
    async def _begin(self, order: Order) -> None:
        run = self._runs.get(order.job)
        if run is None:
            if self._is_full():
                _log.warning("too many jobs at once: one is refused", job=order.job)
                await self._channel.send(failed(order.job, _too_many()).finished)
                return
            run = JobRun(
                order,
                journal=self._journal,
                work=self._workshop.work,
                told=self._told,
            )
            self._runs[order.job] = run
            self._has_work.set()
            await asyncio.to_thread(self._note, order)
            run.start()
        await self._channel.send(control.Accepted(job=order.job))

    def _has_running(self) -> bool:
        return any(run.outcome is None for run in self._runs.values())

    def _is_full(self) -> bool:
        running = sum(run.outcome is None for run in self._runs.values())
        return running >= JOBS_AT_ONCE or len(self._runs) >= JOBS_KEPT_MAX

    def _note(self, order: Order) -> None:
        try:
            self._journal.begin(order.job, control.encode(order))
        except HoldfastError as error:
            _log.warning("the journal cannot keep the job", reason=error.message)

    async def _cancel(self, job: str) -> None:
        run = self._runs.get(job)
        if run is not None:
            run.cancel.set()
            return
        await self._channel.send(control.Finished(job=job, state=control.JobState.CANCELLED))

    async def _forget(self, job: str) -> None:
        run = self._runs.pop(job, None)
        if run is not None and run.outcome is None:
            # The server has given the job up; nobody waits for its end.
            run.interrupt()
            await asyncio.to_thread(run.join, STOP_SECONDS)
        try:
            await asyncio.to_thread(self._journal.forget, job)
        except HoldfastError as error:
            # It is named again at the next connection, and forgotten then.
            _log.warning("the journal cannot forget the job", job=job, reason=error.message)

    def _told(self, run: JobRun) -> None:
        self._loop.call_soon_threadsafe(self._ended, run)

    def _ended(self, run: JobRun) -> None:
        if self._runs.get(run.job) is run:
            self._spawn(self._end(run))

    async def _end(self, run: JobRun) -> None:
        await self._tell_end(run)
        if not self._has_running():
            await asyncio.to_thread(return_unused)

    async def _tell_end(self, run: JobRun) -> None:
        assert run.outcome is not None
        outcome = run.outcome
        result = outcome.result if self._shows_names else _without_names(outcome.result)
        try:
            await asyncio.to_thread(self._relay_names, run.job, result)
        except HoldfastError as error:
            _log.info("names of the job's end are not relayed", code=error.code)
        await self._channel.send(outcome.finished)

    def _relay_names(self, job: str, result: object) -> None:
        client = self._client()
        body = Body.of(msgspec.json.encode(result), "application/json")
        try:
            client.call("PUT", f"/agent/v1/jobs/{job}/result", body=body)
        finally:
            client.close()

    async def _report(self) -> None:
        while True:
            await self._has_work.wait()
            self._has_work.clear()
            while runs := [run for run in self._runs.values() if run.outcome is None]:
                await asyncio.sleep(PROGRESS_SECONDS)
                for run in runs:
                    if run.outcome is None:
                        await self._channel.send(self._progress_of(run))

    def _progress_of(self, run: JobRun) -> control.Progress:
        message = run.message()
        return message if self._shows_names else msgspec.structs.replace(message, current=b"")

    @property
    def _shows_names(self) -> bool:
        """Whether names may pass through the server: of a plan, of skips, of where a job is."""
        return self.config.browse is not control.Browse.NEVER

    # --- queries
    def _ask(self, query: control.Query) -> None:
        if query.query in self._queries:
            return
        if len(self._queries) >= QUERIES_WAITING_MAX:
            _log.warning("too many queries at once: one is not answered", query=query.query)
            return
        self._queries[query.query] = cancel = JobCancel()
        self._spawn(self._answer(query, cancel))

    async def _answer(self, query: control.Query, cancel: JobCancel) -> None:
        try:
            await self._loop.run_in_executor(
                self._query_threads, self._workshop.answer, query, cancel
            )
        finally:
            self._queries.pop(query.query, None)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _without_names(result: JobResult) -> JobResult:
    """Return what only a holder of the key can read: the sealed list of a restore."""
    return JobResult(not_exact_sealed=result.not_exact_sealed)


def _too_many() -> TooMany:
    return TooMany(
        "the agent has too many jobs at once", hint="Wait for those that run, or cancel them."
    )


def _order_of(known: JournalledJob) -> Order | None:
    """Return the order of a journalled job; None for one that this version cannot read.

    Such a job must not keep the agent from its server, which will send the order again.
    """
    try:
        order = control.decode_to_agent(known.order)
    except InvalidInput:
        _log.warning("a job of the journal is not understood", job=known.job)
        return None
    return order if isinstance(order, Order) else None
