"""Who is connected: the newest proof counts, tokens live as long as connections."""

from __future__ import annotations

import asyncio

from holdfast_contract.errors import Refused
from holdfast_contract.protocol.control import Browse, CancelQuery, Refuse
from holdfast_server.control.hub import WAITING_MESSAGES_MAX, Hub
from tests.support.channel import MemoryChannel, connection, hello


async def test_a_newer_connection_fences_the_older_and_its_token() -> None:
    hub, channel = Hub(), MemoryChannel()
    older = connection(channel=channel, token=b"1" * 32)
    newer = connection(token=b"2" * 32)
    assert hub.join(older) is None
    assert hub.join(newer) is older
    await older.write()
    assert [message.code for message in channel.of(Refuse)] == ["fenced"]
    assert channel.is_closed
    assert hub.of_token(b"1" * 32) is None
    assert hub.of_token(b"2" * 32) is newer
    assert hub.connected("demo/a-0") is newer


async def test_a_fenced_connection_that_leaves_does_not_take_the_newer_along() -> None:
    hub = Hub()
    older, newer = connection(token=b"1" * 32), connection(token=b"2" * 32)
    hub.join(older)
    hub.join(newer)
    assert hub.leave(older) is False
    assert hub.connected("demo/a-0") is newer
    assert hub.leave(newer) is True
    assert hub.connected("demo/a-0") is None
    assert hub.of_token(b"2" * 32) is None
    assert len(hub) == 0


async def test_a_dropped_client_is_told_why_and_its_token_is_dead_at_once() -> None:
    hub, channel = Hub(), MemoryChannel()
    gone = connection(channel=channel)
    hub.join(gone)
    hub.drop("demo/a-0", Refused("revoked"))
    assert hub.of_token(gone.token_hash) is None
    await gone.write()
    assert [message.code for message in channel.of(Refuse)] == ["refused"]


async def test_messages_are_sent_in_order_and_none_after_the_end() -> None:
    channel = MemoryChannel()
    agent = connection(channel=channel)
    names = [f"{number:026}" for number in range(3)]
    for name in names:
        agent.send(CancelQuery(query=name))
    agent.end()
    agent.send(CancelQuery(query="late" * 6 + "zz"))
    await agent.write()
    assert [message.query for message in channel.of(CancelQuery)] == names


async def test_an_agent_that_reads_nothing_is_disconnected_and_takes_no_memory() -> None:
    channel = MemoryChannel()
    agent = connection(channel=channel)
    for number in range(WAITING_MESSAGES_MAX * 2):
        agent.send(CancelQuery(query=f"{number:026}"))
    assert not agent.is_open
    await asyncio.wait_for(agent.write(), 10)
    assert channel.is_closed
    assert len(channel.sent) < WAITING_MESSAGES_MAX


async def test_an_agent_is_given_work_only_once_it_is_ready() -> None:
    hub = Hub()
    agent = connection()
    agent.is_ready = False
    hub.join(agent)
    assert hub.connected("demo/a-0") is agent
    assert hub.ready("demo/a-0") is None
    agent.is_ready = True
    assert hub.ready("demo/a-0") is agent


async def test_agents_that_may_show_something_are_found_by_domain_and_right() -> None:
    hub = Hub()
    rights = {"demo/a": Browse.NAMES, "demo/b": Browse.CONTENT, "demo/c": Browse.NEVER}
    rights["other/d"] = Browse.CONTENT
    for number, (client, browse) in enumerate(rights.items()):
        said = hello(client, browse=browse)
        hub.join(connection(client, said=said, token=bytes([number]) * 32))
    names = hub.showing("demo", {Browse.NAMES, Browse.CONTENT})
    assert [agent.client for agent in names] == ["demo/a", "demo/b"]
    assert [agent.client for agent in hub.showing("demo", {Browse.CONTENT})] == ["demo/b"]


async def test_closing_the_hub_ends_every_connection() -> None:
    hub, channel = Hub(), MemoryChannel()
    agent = connection(channel=channel)
    hub.join(agent)
    hub.close()
    await agent.write()
    assert channel.is_closed
