"""What an administrator may want to know: into the catalog, and to those who follow.

Events are also the trail of who did what: every act of a person and every refused one is a row with
the token's id and name (never its secret), the request's id, and what came of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar

from holdfast_contract.clock import Clock
from holdfast_contract.errors import HoldfastError
from holdfast_contract.logs import get_logger
from holdfast_server.catalog import events as rows
from holdfast_server.catalog.attested import Attested
from holdfast_server.catalog.connection import Catalog, Tx
from holdfast_server.control.notices import EVENTS, Notices
from holdfast_server.control.refusals import Refusal, Refusals
from holdfast_server.control.workers import Workers

P = ParamSpec("P")
T = TypeVar("T")
DONE = "done"
FAILED = "failed"
REFUSED = "refused"
"""Outcomes of acts, as events tell them."""

_log = get_logger(__name__)


@dataclass(frozen=True)
class Act:
    """What somebody does, as the trail tells it; `details` hold no names of files, no secrets."""

    kind: str
    message: str
    client: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    tell: Callable[[Any], Mapping[str, Any]] | None = None
    """Further details, from what the change of the catalog returned."""


class Events:
    """Records events; belongs to one event loop."""

    def __init__(self, catalog: Catalog, workers: Workers, notices: Notices, clock: Clock) -> None:
        self._catalog = catalog
        self._workers = workers
        self._notices = notices
        self._clock = clock
        self._refusals = Refusals()

    async def add(
        self, kind: str, message: str, *, client: str = "", job: str = "", **details: Any
    ) -> None:
        """Record one event, durable on return; `details` hold no names of files and no secrets."""
        _log.info(message, kind=kind, client=client, job=job, **details)
        await self._workers.run(
            rows.add, self._catalog, kind, message, client=client, job=job, details=details
        )
        self._notices.tell(EVENTS)

    def told(self) -> None:
        """Wake those who follow: an event was written together with what it tells of."""
        self._notices.tell(EVENTS)

    async def act(
        self,
        act: Act,
        change: Callable[Concatenate[Catalog, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Change the catalog; the change and its event are one transaction."""
        attested = Attested(self._catalog, lambda tx, result: self._attest(tx, act, result))
        done = await self._workers.run(change, attested, *args, **kwargs)
        _log.info(act.message, kind=act.kind, client=act.client, **act.details)
        self._notices.tell(EVENTS)
        return done

    def _attest(self, tx: Tx, act: Act, result: Any) -> None:
        more = {} if act.tell is None else act.tell(result)
        details = {**act.details, **more}
        now = self._clock.now_ns()
        rows.record(tx, now, act.kind, act.message, client=act.client, details=details)

    async def refused(
        self,
        message: str,
        *,
        caller: str = "",
        client: str = "",
        route: str = "",
        code: str = "",
        outcome: str = REFUSED,
        **details: Any,
    ) -> None:
        """Record an act that was refused or failed; what is like one before is counted only.

        It is refused all the same where it cannot be recorded: then the log has it alone.
        """
        refusal = Refusal(caller, client, message, route, code)
        if self._refusals.note(refusal, self._clock.monotonic()):
            kind = REFUSED if outcome == REFUSED else "act-failed"
            told = {"outcome": outcome, "route": route, "code": code}
            await self._try(kind, message, client=client, **told, **details)

    async def _try(self, kind: str, message: str, **fields: Any) -> None:
        try:
            await self.add(kind, message, **fields)
        except HoldfastError as error:
            _log.error("a refusal could not be recorded", error=error)

    async def sum_up(self, *, is_last: bool = False) -> None:
        """Tell how often refusals came again, once their window is over or the server stops."""
        if not is_last and not self._refusals.is_due(self._clock.monotonic()):
            return
        for refusal, count in self._refusals.close_window():
            await self._try(
                "refused-again",
                f"{refusal.message}: {count} times more",
                client=refusal.client,
                by=refusal.caller,
                route=refusal.route,
                code=refusal.code,
                count=count,
            )
