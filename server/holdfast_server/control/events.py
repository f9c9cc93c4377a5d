"""What an administrator may want to know: into the catalog, and to those who follow."""

from __future__ import annotations

from typing import Any

from holdfast_contract.clock import Clock
from holdfast_contract.logs import get_logger
from holdfast_server.catalog import events as rows
from holdfast_server.catalog.connection import Catalog
from holdfast_server.control.notices import EVENTS, Notices
from holdfast_server.control.workers import Workers

_log = get_logger(__name__)

REFUSALS_PER_MINUTE = 30
"""More refused acts in a minute are not recorded: a flood must not fill the catalog."""


class Events:
    """Records events; belongs to one event loop."""

    def __init__(self, catalog: Catalog, workers: Workers, notices: Notices, clock: Clock) -> None:
        self._catalog = catalog
        self._workers = workers
        self._notices = notices
        self._clock = clock
        self._minute = 0
        self._refusals = 0

    async def add(
        self, kind: str, message: str, *, client: str = "", job: str = "", **details: Any
    ) -> None:
        """Record one event, durable on return; `details` hold no names of files and no secrets."""
        _log.info(message, kind=kind, client=client, job=job, **details)
        await self._workers.run(
            rows.add, self._catalog, kind, message, client=client, job=job, details=details
        )
        self._notices.tell(EVENTS)

    async def refused(self, message: str, *, client: str = "", **details: Any) -> None:
        """Record an act that was refused; a flood of them is cut off."""
        minute = int(self._clock.monotonic() // 60)
        if minute != self._minute:
            self._minute, self._refusals = minute, 0
        self._refusals += 1
        if self._refusals <= REFUSALS_PER_MINUTE:
            await self.add("refused", message, client=client, **details)
