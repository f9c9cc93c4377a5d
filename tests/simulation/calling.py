"""The agent's end of the network, and an administrator's: the product's own client and channel."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from holdfast_agent.transport.channel import Channel as AgentChannel
from holdfast_agent.transport.http import Body, HttpClient
from holdfast_contract.errors import Unreachable
from tests.simulation.answering import Answer, Request, serve
from tests.simulation.loop import loop_now
from tests.simulation.network import Exchange, Network, context_of


class SimResponse:
    """An answer as `http.client` hands it over, read piece by piece."""

    def __init__(self, answer: Answer) -> None:
        self.status = answer.status
        self.headers = answer.headers
        self._answer = answer
        self._at = 0

    def read(self, size: int) -> bytes:
        piece = self._answer.body[self._at : self._at + size]
        self._at += len(piece)
        if len(piece) < size and self._answer.is_torn:
            raise ConnectionResetError("the connection broke")
        return piece

    def readinto(self, buffer: memoryview) -> int:
        piece = self.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    read1 = read

    def isclosed(self) -> bool:
        return True


class SimHttpClient(HttpClient):
    """The agent's HTTP client; the network comes in place of a TLS context."""

    def __init__(
        self, url: str, context: Any, *, bearer: Callable[[], str], user_agent: str, kept: object
    ) -> None:
        super().__init__(url, context, bearer=bearer, user_agent=user_agent)
        self._network: Network = context
        self._under_way: list[Exchange] = []

    def _exchange(
        self, method: str, path: str, body: Body | None, headers: dict[str, str]
    ) -> tuple[Any, Any]:
        headers["Authorization"] = f"Bearer {self._bearer()}"
        data = b""
        if body is not None:
            headers["Content-Type"] = body.content_type
            data = b"".join(bytes(part) for part in body.parts())
        if self._aborted:
            raise Unreachable("the request was cancelled")
        exchange = self._network.begin(Request(method, path, headers, data))
        self._under_way.append(exchange)
        try:
            return None, SimResponse(exchange.wait())
        finally:
            self._under_way.remove(exchange)

    def _put_back(self, connection: object, *, keep: bool) -> None:
        """There is nothing to keep."""

    def abort(self) -> None:
        super().abort()
        for exchange in list(self._under_way):
            exchange.abort()


class SimChannel(AgentChannel):
    """The agent's channel over the simulated network, which comes in place of a TLS context."""

    async def _connection(self) -> None:
        network: Any = self.context
        try:
            await asyncio.sleep(network.delay())
            link = network.dial()
            try:
                await self._converse(link.agent)
            finally:
                link.broken()
        except TimeoutError as exc:
            raise Unreachable("the server does not answer") from exc
        finally:
            self._socket = None
            self.credential.set(None)


@dataclass
class Person:
    """Somebody with an administrator's token: asks and repeats until there is an answer."""

    network: Network
    token: str
    asked: list[str] = field(default_factory=list)

    async def call(self, method: str, path: str, value: object = None) -> Any:
        """Return a decoded answer, without any weather; None while there is no server."""
        services = self.network.services
        if services is None:
            return None
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        body = b"" if value is None else json.dumps(value).encode()
        assert self.network.server is not None
        task = loop_now().create_task(
            serve(services, Request(method, path, headers, body), self.network.seen),
            context=context_of(self.network.server),
        )
        await asyncio.wait({task})
        if task.cancelled() or task.exception() is not None:
            return None
        answer = task.result()
        return json.loads(answer.body) if answer.body else {}
