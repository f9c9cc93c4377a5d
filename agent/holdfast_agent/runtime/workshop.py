"""Where jobs and queries get their tools: a client of the server, limits, keys, chunks.

What does the work is imported when there is some: most agents idle most of the time, and engine,
restore, zstd and SQLite are 6 MB of an idle process.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from holdfast_agent.config import AgentConfig
from holdfast_agent.crypto.keys import DomainKeys
from holdfast_agent.jobs import enrol
from holdfast_agent.jobs.outcome import Outcome
from holdfast_agent.jobs.runner import JobRun, Order
from holdfast_agent.jobs.tracking import JobCancel, JobProgress
from holdfast_agent.runtime.allocator import return_freed_buffers
from holdfast_agent.sources.clock import FileClock
from holdfast_agent.sources.roots import OwnFiles, Roots
from holdfast_agent.state.directory import StateDirectory
from holdfast_agent.state.identity import IdentityFiles
from holdfast_agent.state.memory import Memory
from holdfast_agent.transport.downloads import HttpChunks, agent_routes
from holdfast_agent.transport.http import Body, HttpClient
from holdfast_agent.transport.limiter import RateLimit
from holdfast_agent.transport.retry import Credential, NoRepeat, Retrying, call
from holdfast_agent.transport.uploads import SessionUploads
from holdfast_contract.errors import HoldfastError
from holdfast_contract.format.domain import DomainBody
from holdfast_contract.limits import KIB
from holdfast_contract.logs import get_logger
from holdfast_contract.protocol import control

if TYPE_CHECKING:
    from holdfast_agent.restore.destination import RestoreScope
    from holdfast_agent.sources.watches import Watches

_ANSWER_PIECE_BYTES: Final = 64 * KIB

_log = get_logger(__name__)


class MakeClient(Protocol):
    """Makes a client of the server that carries the connection token of the moment."""

    def __call__(self) -> HttpClient:
        """Return a new client."""


@dataclass(frozen=True)
class Bench:
    """The tools of one job."""

    client: HttpClient
    chunks: HttpChunks
    repeating: Retrying
    upload: RateLimit
    cancel: JobCancel
    progress: JobProgress
    domain: DomainBody


class Limits:
    """The client's rate limits and those of the jobs that run; the lower one counts."""

    def __init__(self, clock: FileClock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._settings = control.AgentSettings()
        self._in_use: list[tuple[bool, int, RateLimit]] = []

    def change(self, settings: control.AgentSettings) -> None:
        """Use other settings, at once."""
        with self._lock:
            self._settings = settings
            for is_upload, own, limit in self._in_use:
                limit.set(self._effective(is_upload, own))

    def begin(self, *, is_upload: bool, own: int) -> RateLimit:
        """Return the limit of a job whose order says `own` (0: nothing)."""
        with self._lock:
            limit = RateLimit(self._clock, self._effective(is_upload, own))
            self._in_use.append((is_upload, own, limit))
            return limit

    def end(self, limit: RateLimit) -> None:
        """Forget the limit of a job that ended."""
        with self._lock:
            self._in_use = [row for row in self._in_use if row[2] is not limit]

    def _effective(self, is_upload: bool, own: int) -> int:
        ours = self._settings.limit_upload if is_upload else self._settings.limit_download
        return min(filter(None, (own, ours)), default=0)


class Workshop:
    """Carries out orders and answers queries; called from many threads."""

    def __init__(
        self,
        *,
        config: AgentConfig,
        state: StateDirectory,
        keys: DomainKeys,
        identity: enrol.Identity,
        credential: Credential,
        make_client: MakeClient,
        clock: FileClock,
        uniform: Callable[[float, float], float],
    ) -> None:
        own = [config.state, config.key_file, config.enrol_token_file]
        self.identity = identity
        self.limits = Limits(clock)
        self.watches: Watches | None = None
        """Change hints, from the first backup on."""
        self.queue_opened: Callable[[int], None] = lambda descriptor: None
        """Told the descriptor on which the kernel tells of changes (`Watches.when_opened`)."""
        self._config = config
        self._state = state
        self._files = IdentityFiles(state)
        self._keys = keys
        self._credential = credential
        self._make_client = make_client
        self._clock = clock
        self._uniform = uniform
        self._roots = Roots.configured(config.roots)
        # Once: a symlink that the application makes of a root later must lead nowhere.
        self._restore_roots = Roots.configured(config.restore_roots)
        self._own = OwnFiles([os.fsencode(path) for path in own if path is not None])
        self._identity_lock = threading.Lock()
        self._watches_lock = threading.Lock()

    # --- jobs
    def work(self, run: JobRun) -> Outcome:
        """Carry out the order of `run` in this thread."""
        return_freed_buffers()
        order, cancel = run.order, run.cancel
        client = self._make_client()
        cancel.breaks(client.abort)
        repeating = Retrying(self._credential, cancel, self._clock, self._uniform)
        upload = self.limits.begin(is_upload=True, own=getattr(order, "limit_upload", 0))
        download = self.limits.begin(is_upload=False, own=getattr(order, "limit_download", 0))
        try:
            domain = call(repeating, lambda: enrol.believed_domain(client, self._keys))
            chunks = HttpChunks(
                client,
                agent_routes(order.job),
                cancel=cancel,
                limit=download,
                repeating=repeating,
            )
            bench = Bench(client, chunks, repeating, upload, cancel, run.progress, domain)
            return self._carried_out(run, order, bench)
        finally:
            self.limits.end(upload)
            self.limits.end(download)
            client.close()

    def _carried_out(self, run: JobRun, order: Order, bench: Bench) -> Outcome:
        if isinstance(order, control.Backup):
            return self._backup(run, order, bench)
        if isinstance(order, control.Restore):
            from holdfast_agent.jobs.restore import run_restore

            return run_restore(
                order,
                keys=self._keys,
                source=bench.chunks,
                own_client=self.identity.client,
                scope=self._scope(),
                cancel=bench.cancel,
                progress=bench.progress,
                clock=self._clock,
                workers=self._config.workers,
                memory_max=self._config.memory_max_bytes,
            )
        from holdfast_agent.jobs.verify import run_verify

        return run_verify(
            order,
            keys=self._keys,
            source=bench.chunks,
            cancel=bench.cancel,
            progress=bench.progress,
            clock=self._clock,
            workers=self._config.workers,
            memory_max=self._config.memory_max_bytes,
            open_spool=self._state.spool,
        )

    def _backup(self, run: JobRun, order: control.Backup, bench: Bench) -> Outcome:
        from holdfast_agent.jobs.backup import run_backup
        from holdfast_agent.jobs.backup_job import BackupTools

        identity = self._current_identity(order, bench)
        tools = BackupTools(
            keys=self._keys,
            domain=bench.domain,
            identity=identity.key,
            identity_record=identity.record,
            roots=self._roots,
            own=self._own,
            state=self._state,
            clock=self._clock,
            workers=self._config.workers,
            memory_max=self._config.memory_max_bytes,
            watches=self._hints(),
        )

        def uploads() -> SessionUploads:
            session = SessionUploads(
                bench.client,
                order.job,
                repeating=bench.repeating,
                limit=bench.upload,
                cancel=bench.cancel,
            )
            run.sent = lambda: session.bytes_sent
            return session

        return run_backup(
            order,
            tools,
            uploads=uploads,
            chunks=bench.chunks,
            cancel=bench.cancel,
            progress=bench.progress,
        )

    def _hints(self) -> Watches | None:
        from holdfast_agent.sources.watches import Watches

        with self._watches_lock:
            if self.watches is None and self._config.has_change_hints:
                self.watches = Watches(self._clock)
                self.watches.when_opened(self.queue_opened)
            return self.watches

    def _current_identity(self, order: control.Backup, bench: Bench) -> enrol.Identity:
        """Return the identity whose record the domain's key confirms, renewed where it must be."""
        with self._identity_lock:
            self.identity = call(
                bench.repeating,
                lambda: enrol.corrected(
                    self.identity, self._files, bench.client, self._keys, self._clock
                ),
            )
            self.identity = call(
                bench.repeating,
                lambda: enrol.with_history_accepted(
                    self.identity,
                    self._files,
                    bench.client,
                    self._keys,
                    self._clock,
                    memory=Memory(self._state),
                    order=order,
                ),
            )
            return self.identity

    def _scope(self) -> RestoreScope:
        from holdfast_agent.restore.destination import RestoreScope

        return RestoreScope(
            mode=self._config.restore,
            roots=self._restore_roots,
            own=self._own,
        )

    # --- queries
    def answer(self, query: control.Query, cancel: JobCancel) -> None:
        """Answer `query` by one streamed request; an error goes to whoever asked."""
        return_freed_buffers()
        client = self._make_client()
        cancel.breaks(client.abort)
        path = f"/agent/v1/answers/{query.query}"
        download = self.limits.begin(is_upload=False, own=0)
        try:
            chunks = HttpChunks(
                client,
                agent_routes(query.query),
                cancel=cancel,
                limit=download,
                repeating=NoRepeat(),
            )
            self._send_answer(client, path, query, chunks, cancel)
        except HoldfastError as error:
            _log.info("a query is not answered", kind=query.kind, code=error.code)
        finally:
            self.limits.end(download)
            client.close()

    def _send_answer(
        self,
        client: HttpClient,
        path: str,
        query: control.Query,
        chunks: HttpChunks,
        cancel: JobCancel,
    ) -> None:
        from holdfast_agent.jobs.queries import answer_query

        _log.info("answers a query", kind=query.kind, query=query.query)
        try:
            pieces = answer_query(
                query,
                keys=self._keys,
                source=chunks,
                roots=self._roots,
                browse=self._config.browse,
                cancel=cancel,
            )
            first = next(pieces, b"")
        except HoldfastError as error:
            failure = control.Failure(code=error.code, message=error.message, hint=error.hint)
            told = json.dumps(msgspec.to_builtins(failure))
            client.call("POST", path, headers={"Holdfast-Error": told})
            return
        client.call("POST", path, body=Body(None, lambda: _joined(chain([first], pieces))))


def _joined(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Join the lines of an answer: each piece sent costs a chunk of HTTP and a TLS record."""
    waiting: list[bytes] = []
    size = 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= _ANSWER_PIECE_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    if size:
        yield b"".join(waiting)
