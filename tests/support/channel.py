"""A control channel in memory, a clock that is set by hand, and short ways to messages."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TypeVar

from holdfast_contract.errors import InvalidInput
from holdfast_contract.ids import ZERO_HASH, ClientName, DomainId
from holdfast_contract.protocol.control import Browse, Hello, Message, Mode, ToServer
from holdfast_server.control.hub import AgentConnection, Proven

M = TypeVar("M", bound=Message)

DOMAIN = DomainId(bytes(range(16)))


@dataclass
class HandClock:
    """Time that passes only when a test says so."""

    seconds: float = 1_000.0

    def now_ns(self) -> int:
        return 1_700_000_000_000_000_000 + round(self.seconds * 1e9)

    def monotonic(self) -> float:
        return self.seconds

    def pass_by(self, seconds: float) -> None:
        self.seconds += seconds


@dataclass
class MemoryChannel:
    """Both ends of a control channel: what the server sent, and what it is to hear."""

    sent: list[Message] = field(default_factory=list)
    heard: asyncio.Queue[ToServer | InvalidInput | None] = field(default_factory=asyncio.Queue)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    is_closed: bool = False

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        self.news.set()

    async def receive(self) -> ToServer | None:
        message = await self.heard.get()
        if isinstance(message, InvalidInput):
            raise message
        return message

    async def close(self, reason: str = "") -> None:
        self.is_closed = True
        self.news.set()
        self.heard.put_nowait(None)

    def of(self, kind: type[M]) -> list[M]:
        """Return the sent messages of one kind."""
        return [message for message in self.sent if isinstance(message, kind)]

    async def until(self, kind: type[M], count: int = 1) -> M:
        """Wait until `count` messages of one kind were sent; return the last of them."""
        async with asyncio.timeout(20):
            while len(self.of(kind)) < count:
                self.news.clear()
                await self.news.wait()
        return self.of(kind)[count - 1]

    async def until_closed(self) -> None:
        """Wait until the server closed the channel."""
        async with asyncio.timeout(20):
            while not self.is_closed:
                self.news.clear()
                await self.news.wait()


def hello(
    client: str = "demo/a-0",
    *,
    identity: bytes = ZERO_HASH,
    signature: bytes = bytes(64),
    jobs: tuple[str, ...] = (),
    browse: Browse = Browse.NAMES,
) -> Hello:
    """Return a hello; its signature is right only if the caller made it so."""
    return Hello(
        protocol=1,
        agent_version="0.1.0",
        client=client,
        identity=identity,
        signature=signature,
        roots=[b"/data"],
        restore=Mode.IN_PLACE,
        restore_roots=[b"/data"],
        browse=browse,
        jobs=list(jobs),
    )


def connection(
    client: str = "demo/a-0",
    channel: MemoryChannel | None = None,
    *,
    token: bytes = b"t" * 32,
    said: Hello | None = None,
) -> AgentConnection:
    """Return a connection that is ready for work."""
    proven = Proven(ClientName(client), DOMAIN, said or hello(client), b"k" * 32, token)
    made = AgentConnection(channel or MemoryChannel(), proven, 0)
    made.is_ready = True
    return made
