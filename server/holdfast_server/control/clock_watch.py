"""Notices that the server's clock has jumped: by what else has passed, and by what was last known.

A jump changes no order: receive times never go back, rows are ordered by their numbers, and what
waits - stalled jobs, heartbeats, names in memory - is counted by the monotonic clock. It is told,
since ages and times to live mean nothing until somebody has looked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from holdfast_contract.clock import Clock
from holdfast_contract.errors import HoldfastError
from holdfast_contract.logs import get_logger
from holdfast_server.catalog import clock_jumps
from holdfast_server.catalog.clock_jumps import SECOND_NS, Jump
from holdfast_server.catalog.connection import Catalog
from holdfast_server.control.notices import EVENTS, Notices
from holdfast_server.control.workers import Workers

_log = get_logger(__name__)

LOOK_SECONDS: Final = 10.0
JUMP_SECONDS: Final = 300
"""Less is a correction: time servers step by minutes after a start without one."""
AWAY_SECONDS: Final = 7 * 86_400
"""A server that was stopped for longer cannot be told from a clock that was set forward."""


class ClockWatch:
    """Compares the two clocks; belongs to one event loop. Life cycle: `begin`, then `run`."""

    def __init__(self, catalog: Catalog, workers: Workers, notices: Notices, clock: Clock) -> None:
        self._catalog = catalog
        self._workers = workers
        self._notices = notices
        self._clock = clock
        self._last = (clock.now_ns(), clock.monotonic())
        self.after_jump: Callable[[], Awaitable[None]] | None = None
        """What else has to look at the clock anew."""

    async def begin(self) -> None:
        """Compare with what the catalog knows of the time before this start."""
        now = self._clock.now_ns()
        jump = await self._workers.run(self._since_last_moment, now)
        if jump is not None and jump.seconds > 0:
            await self._tell(jump, f"the server was away, or its clock went {jump.text}")
        elif jump is not None:
            await self._tell(jump, f"while the server was away its clock went {jump.text}")

    def _since_last_moment(self, now_ns: int) -> Jump | None:
        with self._catalog.read() as tx:
            last = clock_jumps.last_moment(tx)
        if last is None:
            return None
        seconds = (now_ns - last) // SECOND_NS
        is_jump = seconds >= AWAY_SECONDS or seconds <= -JUMP_SECONDS
        return Jump(now_ns, seconds) if is_jump else None

    async def look(self) -> Jump | None:
        """Compare what both clocks say has passed since the last look; return a jump."""
        before, self._last = self._last, (self._clock.now_ns(), self._clock.monotonic())
        passed_ns = self._last[0] - before[0]
        seconds = round(passed_ns / SECOND_NS - (self._last[1] - before[1]))
        if abs(seconds) < JUMP_SECONDS:
            return None
        jump = Jump(self._last[0], seconds)
        await self._tell(jump, f"the server's clock has jumped {jump.text}")
        if self.after_jump is not None:
            await self.after_jump()
        return jump

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.look()
            except HoldfastError as error:
                _log.error("a jump of the clock could not be recorded", error=error)

    async def _tell(self, jump: Jump, message: str) -> None:
        _log.warning(message, seconds=jump.seconds)
        await self._workers.run(
            self._catalog.write, lambda tx: clock_jumps.record(tx, jump, message)
        )
        self._notices.tell(EVENTS)
