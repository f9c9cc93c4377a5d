"""Control channels: in order, now and then twice, until they break; each end notices in time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from holdfast_contract.protocol.control import Message, ToServer, decode_to_server, encode
from tests.simulation.loop import loop_now

if TYPE_CHECKING:
    from tests.simulation.network import Network


class Link:
    """A control channel: what each end sends arrives at the other in order, while it stands."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.to_server: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.to_agent: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.is_broken = False
        self.agent = AgentEnd(self)
        self.server = ServerEnd(self)
        self._free_at = {id(self.to_server): 0.0, id(self.to_agent): 0.0}
        self._sent = 0

    def send(self, queue: asyncio.Queue[bytes | None], data: bytes) -> None:
        """Have `data` arrive in its time."""
        if self.is_broken:
            return
        network, rng = self.network, self.network.rng
        self._sent += 1
        if rng.random() < network.weather.breaks:
            network.trace("channel breaks")
            self.broken()
            return
        times = 1
        if self._sent > 3 and rng.random() < network.weather.doubled:
            times = 2
        for _ in range(times):
            self._later(queue, data, network.delay())

    def _later(self, queue: asyncio.Queue[bytes | None], data: bytes | None, delay: float) -> None:
        loop = loop_now()
        at = max(self._free_at[id(queue)] + 1e-6, loop.time() + delay)
        self._free_at[id(queue)] = at

        def arrive() -> None:
            if data is None or not self.is_broken:
                queue.put_nowait(data)

        loop.call_at(at, arrive)

    def broken(self) -> None:
        """Lose what is under way; each end notices some time."""
        if self.is_broken:
            return
        self.is_broken = True
        self.network.links.remove(self)
        for queue in (self.to_server, self.to_agent):
            noticed = self.network.rng.choice([0.01, 0.1, 1.0, 10.0, 30.0])
            self._later(queue, None, self.network.rng.uniform(0, noticed))

    def close(self) -> None:
        """End it in order: what was sent arrives before."""
        if self.is_broken:
            return
        for queue in (self.to_server, self.to_agent):
            self._later(queue, None, self.network.delay())


class AgentEnd:
    """What the agent takes for a transport.websocket.WebSocket."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.is_open = True

    async def send(self, message: bytes) -> None:
        if not self.is_open:
            raise ConnectionResetError("closed")
        self._link.send(self._link.to_server, message)

    async def receive(self) -> bytes | None:
        data = await self._link.to_agent.get()
        if data is None:
            self.is_open = False
        return data

    async def close(self, reason: bytes = b"") -> None:
        self.is_open = False
        self._link.close()


class ServerEnd:
    """The server's end of a control channel; fits control.channel.Channel."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._is_closed = False

    async def send(self, message: Message) -> None:
        if not self._is_closed:
            self._link.send(self._link.to_agent, encode(message))

    async def receive(self) -> ToServer | None:
        if self._is_closed:
            return None
        data = await self._link.to_server.get()
        return None if data is None or self._is_closed else decode_to_server(data)

    async def close(self, reason: str = "") -> None:
        if not self._is_closed:
            self._is_closed = True
            self._link.to_server.put_nowait(None)
            self._link.close()
