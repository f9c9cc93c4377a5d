"""Queries: the answer of the agent that was asked reaches the asker, and nobody else's does."""

from __future__ import annotations

import asyncio

import pytest

from holdfast_contract.errors import NotFound, Refused, Unreachable
from holdfast_contract.protocol.control import CancelQuery, Query, RestoreItem
from holdfast_server.control.queries import Queries
from tests.support.channel import HandClock, MemoryChannel, connection

SNAPSHOT = b"s" * 32


class Answer:
    """An answer of two pieces."""

    def __init__(self) -> None:
        self.pieces = [b"one", b"two"]

    async def readany(self) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""


def query(queries: Queries) -> Query:
    item = RestoreItem(SNAPSHOT, "demo/a-0", b"/")
    return Query(query=queries.new_id(), kind="ls", items=[item, item])


async def test_the_answer_reaches_the_asker_and_the_agent_is_let_go_when_all_is_read() -> None:
    queries, channel = Queries(HandClock()), MemoryChannel()
    agent = connection(channel=channel)
    sent = query(queries)
    async with queries.ask(sent, agent) as asked:
        found = queries.find(sent.query, agent)
        answering = asyncio.create_task(queries.answer(found, Answer()))
        body = await asked.answer
        assert [await body.readany(), await body.readany(), await body.readany()] == [
            b"one",
            b"two",
            b"",
        ]
        assert not answering.done()
    await asyncio.wait_for(answering, 5)
    agent.end()
    await agent.write()
    assert channel.of(Query) == [sent]
    assert channel.of(CancelQuery) == []


async def test_an_asker_that_goes_away_cancels_the_query_on_the_agent() -> None:
    queries, channel = Queries(HandClock()), MemoryChannel()
    agent = connection(channel=channel)
    sent = query(queries)
    with pytest.raises(RuntimeError, match="the asker is gone"):
        async with queries.ask(sent, agent):
            raise RuntimeError("the asker is gone")
    agent.end()
    await agent.write()
    assert [message.query for message in channel.of(CancelQuery)] == [sent.query]
    with pytest.raises(NotFound):
        queries.find(sent.query, agent)


async def test_another_agent_cannot_answer_or_read_for_a_query() -> None:
    queries = Queries(HandClock())
    agent, other = connection(), connection("demo/b-0", token=b"o" * 32)
    sent = query(queries)
    async with queries.ask(sent, agent):
        with pytest.raises(NotFound):
            queries.find(sent.query, other)
        assert queries.granted(sent.query, other) is None
        assert queries.readable(other) == set()
        assert queries.granted(sent.query, agent) == [SNAPSHOT]
        assert queries.readable(agent) == {SNAPSHOT}
    assert queries.granted(sent.query, agent) is None


async def test_an_agents_refusal_is_the_askers_error() -> None:
    queries, agent = Queries(HandClock()), connection()
    async with queries.ask(query(queries), agent) as asked:
        queries.refuse(asked, Refused("the pod says never"))
        with pytest.raises(Refused, match="the pod says never"):
            await asked.answer


async def test_a_query_is_answered_once() -> None:
    queries, agent = Queries(HandClock()), connection()
    async with queries.ask(query(queries), agent) as asked:
        first = asyncio.create_task(queries.answer(asked, Answer()))
        await asked.answer
        with pytest.raises(NotFound):
            await queries.answer(asked, Answer())
    await first


async def test_an_agent_that_goes_away_fails_its_queries_and_no_others() -> None:
    queries = Queries(HandClock())
    agent, other = connection(), connection("demo/b-0", token=b"o" * 32)
    async with (
        queries.ask(query(queries), agent) as mine,
        queries.ask(query(queries), other) as others,
    ):
        queries.lost(agent)
        with pytest.raises(Unreachable):
            await mine.answer
        assert not others.answer.done()
