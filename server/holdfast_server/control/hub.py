"""The agents that are connected now: at most one connection a client, the newest proof counts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from holdfast_contract.errors import Fenced, HoldfastError
from holdfast_contract.ids import ClientName, DomainId
from holdfast_contract.protocol.control import Browse, Hello, Message, Refuse
from holdfast_server.catalog.scopes import Scope
from holdfast_server.control.channel import Channel
from holdfast_server.control.shares import Share, Shares

WAITING_MESSAGES_MAX = 1024
"""An agent that does not read so many messages is disconnected."""


@dataclass(frozen=True)
class Proven:
    """What a handshake proved: who is there, and by what its data requests are known."""

    client: ClientName
    domain: DomainId
    hello: Hello
    sign_key: bytes
    token_hash: bytes
    """Hash of the connection token: it lives as long as the connection."""


class AgentConnection:
    """One agent's connection; sending never waits."""

    def __init__(self, channel: Channel, proven: Proven, now_ns: int) -> None:
        self._channel = channel
        self._waiting: asyncio.Queue[Message | None] = asyncio.Queue(WAITING_MESSAGES_MAX)
        self._proven = proven
        self.last_seen_ns = now_ns
        self.is_ready = False
        """Jobs and queries may be sent: what went on before has been sorted out."""
        self.is_open = True
        self.share = Share()
        """What the client may take of the server at once."""

    @property
    def client(self) -> ClientName:
        """The client that proved its identity."""
        return self._proven.client

    @property
    def domain(self) -> DomainId:
        """The client's domain."""
        return self._proven.domain

    @property
    def hello(self) -> Hello:
        """What the agent said of itself."""
        return self._proven.hello

    @property
    def sign_key(self) -> bytes:
        """The key with which it proved its identity."""
        return self._proven.sign_key

    @property
    def token_hash(self) -> bytes:
        """Hash of the connection token."""
        return self._proven.token_hash

    def send(self, message: Message) -> None:
        """Have `message` sent after those before it; nothing once the connection is closed."""
        if not self.is_open:
            return
        try:
            self._waiting.put_nowait(message)
        except asyncio.QueueFull:
            self.is_open = False
            self._waiting.get_nowait()
            self._waiting.put_nowait(None)

    def end(self, error: HoldfastError | None = None) -> None:
        """Close the connection after what was sent before; `error` tells the agent why."""
        if error is not None:
            self.send(Refuse(code=error.code, message=error.message))
        if self.is_open:
            self.is_open = False
            if self._waiting.full():
                self._waiting.get_nowait()
            self._waiting.put_nowait(None)

    async def write(self) -> None:
        """Send what is waiting until the connection ends, then close the channel."""
        while (message := await self._waiting.get()) is not None:
            await self._channel.send(message)
        await self._channel.close()


class Hub:
    """Who is connected; belongs to one event loop."""

    def __init__(self) -> None:
        self._by_client: dict[ClientName, AgentConnection] = {}
        self._by_token: dict[bytes, AgentConnection] = {}
        self._shares = Shares()

    def __len__(self) -> int:
        return len(self._by_client)

    def count(self, scope: Scope) -> int:
        """Return how many clients within `scope` are connected."""
        return sum(scope.has_domain(client.domain) for client in self._by_client)

    def join(self, connection: AgentConnection) -> AgentConnection | None:
        """Make `connection` the client's; return the older one, which is fenced by that."""
        older = self._by_client.get(connection.client)
        if older is not None:
            self._by_token.pop(older.token_hash, None)
            older.end(Fenced("a newer connection with this identity has taken over"))
        connection.share = self._shares.of(connection.client)
        self._by_client[connection.client] = connection
        self._by_token[connection.token_hash] = connection
        return older

    def leave(self, connection: AgentConnection) -> bool:
        """Forget `connection`; False when a newer one of its client has taken over."""
        connection.end()
        if not self.is_current(connection):
            return False
        del self._by_client[connection.client]
        self._by_token.pop(connection.token_hash, None)
        return True

    def is_current(self, connection: AgentConnection) -> bool:
        """Tell whether `connection` is the one that counts for its client."""
        return self._by_client.get(connection.client) is connection

    def connected(self, client: str) -> AgentConnection | None:
        """Return the connection of `client`, None when it is offline."""
        return self._by_client.get(ClientName(client))

    def ready(self, client: str) -> AgentConnection | None:
        """Return the connection of `client` if it can be given work."""
        found = self.connected(client)
        return found if found is not None and found.is_ready else None

    def of_token(self, token_hash: bytes) -> AgentConnection | None:
        """Return the live connection with this token."""
        return self._by_token.get(token_hash)

    def showing(self, domain_name: str, shown: Iterable[Browse]) -> list[AgentConnection]:
        """Return the ready agents of a domain whose pods show one of `shown`, by name."""
        allowed = frozenset(shown)
        return [
            connection
            for client, connection in sorted(self._by_client.items())
            if client.domain == domain_name
            and connection.is_ready
            and connection.hello.browse in allowed
        ]

    def drop(self, client: str, error: HoldfastError) -> bytes | None:
        """End the connection of `client` and its token; return that token's hash.

        None: there is no connection.
        """
        connection = self.connected(client)
        if connection is None:
            return None
        self._by_token.pop(connection.token_hash, None)
        connection.end(error)
        return connection.token_hash

    def close(self) -> None:
        """End all connections: the server stops."""
        for connection in list(self._by_client.values()):
            connection.end()
