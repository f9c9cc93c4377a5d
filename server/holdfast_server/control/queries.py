"""Questions that a connected agent answers: the answer is piped through, never kept.

Life of a query: somebody asks; the agent gets `query`, and answers by a request whose body is the
answer; the asker's handler takes that body piece by piece as fast as the asker reads. If the asker
goes away, the agent is told `cancel-query`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from holdfast_contract.clock import Clock
from holdfast_contract.errors import HoldfastError, NotFound, Unreachable
from holdfast_contract.ids import new_ulid
from holdfast_contract.protocol.control import CancelQuery, Query
from holdfast_server.control.hub import AgentConnection

ANSWER_SECONDS = 60.0
"""Longest silence of an agent before and inside an answer."""


class Body(Protocol):
    """The answer as it arrives."""

    async def readany(self) -> bytes:
        """Return what has arrived, at least one byte; empty at the end."""


@dataclass(eq=False)
class OpenQuery:
    """A query that waits for its answer or is being answered."""

    query: Query
    connection: AgentConnection
    answer: asyncio.Future[Body] = field(repr=False)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the asker has all, or has gone."""

    @property
    def snapshots(self) -> list[bytes]:
        """What the agent may read for it."""
        return list(dict.fromkeys(item.snapshot for item in self.query.items))


class Queries:
    """The open queries; belongs to one event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._open: dict[str, OpenQuery] = {}

    def new_id(self) -> str:
        """Return the id of a new query."""
        return new_ulid(self._clock)

    @asynccontextmanager
    async def ask(self, query: Query, connection: AgentConnection) -> AsyncIterator[OpenQuery]:
        """Send `query`; it is open, and its snapshots readable for the agent, inside the block."""
        answer = asyncio.get_running_loop().create_future()
        asked = self._open[query.query] = OpenQuery(query, connection, answer)
        connection.send(query)
        is_answered = False
        try:
            yield asked
            is_answered = True
        finally:
            del self._open[query.query]
            asked.over.set()
            if not answer.cancel() and not answer.cancelled():
                answer.exception()  # looked at, even if the asker went away first
            if not is_answered:
                connection.send(CancelQuery(query=query.query))

    def find(self, query: str, connection: AgentConnection) -> OpenQuery:
        """Return the open query that was sent over `connection`.

        Raises:
            NotFound: none, or another's.
        """
        asked = self._open.get(query)
        if asked is None or asked.connection is not connection:
            raise NotFound("no such query")
        return asked

    async def answer(self, asked: OpenQuery, body: Body) -> None:
        """Hand `body` to the asker; return when it has all or has gone.

        Raises:
            NotFound: the query has been answered already.
        """
        if asked.answer.done():
            raise NotFound("no such query")
        asked.answer.set_result(body)
        await asked.over.wait()

    def refuse(self, asked: OpenQuery, error: HoldfastError) -> None:
        """Give the asker `error` in place of an answer."""
        if not asked.answer.done():
            asked.answer.set_exception(error)

    def lost(self, connection: AgentConnection) -> None:
        """Tell the askers that the agent which they asked is gone."""
        for asked in list(self._open.values()):
            if asked.connection is connection:
                self.refuse(asked, Unreachable("the agent went away before it answered"))

    def granted(self, grant: str, connection: AgentConnection) -> list[bytes] | None:
        """Return the snapshots that an open query lets its agent read; None: no such query."""
        asked = self._open.get(grant)
        return asked.snapshots if asked and asked.connection is connection else None

    def readable(self, connection: AgentConnection) -> set[bytes]:
        """Return all snapshots that open queries let an agent read."""
        return {
            snapshot
            for asked in self._open.values()
            if asked.connection is connection
            for snapshot in asked.snapshots
        }
