"""What one agent may take of the server at once, so that the others are served meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakValueDictionary

from holdfast_contract.errors import TooMany
from holdfast_contract.ids import ClientName

REQUESTS_MAX = 64
"""Requests of one agent at once: two uploads, a few fetches, and an answer for each open query."""
CALLS_MAX = 4
"""Threads that work for one agent at once, of the sixteen there are; its other calls wait."""


class Share:
    """The share of one client; belongs to one event loop."""

    def __init__(self) -> None:
        self.calls = asyncio.Semaphore(CALLS_MAX)
        """Held while a thread works for the client."""
        self._requests = 0
        self._lone: set[str] = set()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count one request inside the block.

        Raises:
            TooMany: the client has as many as it may have.
        """
        if self._requests >= REQUESTS_MAX:
            raise TooMany(f"more than {REQUESTS_MAX} requests of one agent at once")
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Let one thing of a kind be done at a time.

        Raises:
            TooMany: another one is under way.
        """
        if what in self._lone:
            raise TooMany(f"one {what} of an agent at a time")
        self._lone.add(what)
        try:
            yield
        finally:
            self._lone.remove(what)


class Shares:
    """The shares by client: an agent that connects again finds the one that is still in use."""

    def __init__(self) -> None:
        self._shares: WeakValueDictionary[ClientName, Share] = WeakValueDictionary()

    def of(self, client: ClientName) -> Share:
        """Return the share of `client`."""
        found = self._shares.get(client)
        if found is None:
            found = self._shares[client] = Share()
        return found


class Pace:
    """How fast somebody may go: `burst` steps at once, then `per_second`."""

    def __init__(self, time: Callable[[], float], *, per_second: float, burst: int) -> None:
        self._time = time
        self._per_second = per_second
        self._burst = burst
        self._left = float(burst)
        self._at = time()

    def step(self) -> float:
        """Take one step and return in how many seconds it is due, 0: at once."""
        now = self._time()
        grown = self._left + (now - self._at) * self._per_second
        self._left, self._at = min(grown, float(self._burst)), now
        # No debt beyond one step: who went too fast for an hour is not shut out for another.
        self._left = max(self._left - 1, -1.0)
        return max(-self._left, 0.0) / self._per_second
