"""Wakes tasks that wait for something to change: a job, the list of events."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

EVENTS = "events"
"""Key of the list of events; other keys are job ids."""


class Notices:
    """Who waits for which key; belongs to one event loop."""

    def __init__(self) -> None:
        self._listeners: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self.is_closed = False

    @contextmanager
    def listen(self, key: str) -> Iterator[asyncio.Event]:
        """Yield an event that is set by the next `tell(key)`.

        Listen first, then read the state, then wait: what happens in between is not lost.
        """
        event = asyncio.Event()
        if self.is_closed:
            event.set()
        self._listeners[key].add(event)
        try:
            yield event
        finally:
            self._listeners[key].discard(event)
            if not self._listeners[key]:
                del self._listeners[key]

    def tell(self, key: str) -> None:
        """Wake all that listen for `key`."""
        for event in self._listeners.get(key, ()):
            event.set()

    def close(self) -> None:
        """Wake everybody, and let nobody wait again: the server stops."""
        self.is_closed = True
        for events in self._listeners.values():
            for event in events:
                event.set()


async def wait_at_most(event: asyncio.Event, seconds: float) -> bool:
    """Wait until `event` is set; False when `seconds` are over before that."""
    try:
        # Not wait_for: in Python 3.11 it loses a cancellation that comes with the event.
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
