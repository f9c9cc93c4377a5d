"""The network: requests and control channels between agents and the server, and what befalls them.

A request may get lost, arrive late or twice (a repetition whose first attempt was still under way),
or break in the middle of its body; its answer may get lost, come late or torn. A control channel
delivers in order, now and then twice, and breaks at any moment: each end notices in its own time.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import web

from holdfast_agent.transport.channel import Channel as AgentChannel
from holdfast_agent.transport.http import Body, Reply, _problem
from holdfast_contract.errors import HoldfastError, InvalidInput, Unreachable
from holdfast_contract.protocol.control import (
    Message,
    ToServer,
    decode_to_server,
    encode,
)
from holdfast_server.api.middleware import WAITING, endpoint, observe, tell_errors
from holdfast_server.api.routes import Route
from holdfast_server.api.services import SERVICES, Services
from holdfast_server.api.table import ROUTES
from tests.simulation.loop import MACHINE, Machine, loop_now, running
from tests.simulation.threads import Event

_ROUTES = [
    (route, re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", route.path) + r"\Z"))
    for route in ROUTES
]


@dataclass
class Weather:
    """Chances of what may befall one request, answer or message; all zero: a fair day."""

    lost: float = 0.0
    answer_lost: float = 0.0
    doubled: float = 0.0
    torn: float = 0.0
    late: float = 0.0
    breaks: float = 0.0
    """Of a control channel, at each message."""


@dataclass(frozen=True)
class Answer:
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    is_torn: bool = False


Observe = Callable[[Route, "SimRequest", Answer], None]


class Network:
    """Between all agents and one server."""

    def __init__(self, rng: Random, trace: Callable[..., None]) -> None:
        self.rng = rng
        self.trace = trace
        self.weather = Weather()
        self.server: Machine | None = None
        self.services: Services | None = None
        self.links: list[Link] = []
        self.under_way: set[Exchange] = set()
        self.seen: Observe = lambda route, request, answer: None

    def delay(self) -> float:
        """Return how long one way takes."""
        if self.rng.random() < self.weather.late:
            return self.rng.uniform(0.5, 20.0)
        return self.rng.uniform(0.0005, 0.02)

    def up(self, machine: Machine, services: Services) -> None:
        """Let a server be reached."""
        self.server, self.services = machine, services

    def down(self) -> None:
        """Break every connection with a server that has gone."""
        self.server = self.services = None
        for link in list(self.links):
            link.broken()
        for exchange in sorted(self.under_way, key=lambda e: e.number):
            exchange.fail("the connection was reset", self.rng.uniform(0, 0.05))

    # --- requests
    def begin(self, request: Request) -> Exchange:
        """Send a request on its way."""
        exchange = Exchange(self, request, self.rng.getrandbits(30))
        self.under_way.add(exchange)
        weather, chance = self.weather, self.rng.random
        if self.server is None:
            exchange.fail("nobody listens", self.delay())
        elif chance() < weather.lost:
            self.trace("lost", request.method, request.path)
            exchange.fail("the request got lost", self.rng.uniform(0.01, 5.0))
        elif chance() < weather.torn:
            self._deliver(exchange, is_torn=True)
            exchange.fail("the connection broke", self.delay())
        else:
            self._deliver(exchange, is_torn=False)
            if chance() < weather.doubled:
                self.trace("doubled", request.method, request.path)
                exchange.fail("the connection broke", self.rng.uniform(0, 0.05))
        return exchange

    def _deliver(self, exchange: Exchange, *, is_torn: bool) -> None:
        server = self.server
        loop = loop_now()

        def arrive() -> None:
            if server is None or server.is_down or self.server is not server:
                exchange.fail("the connection was reset", self.delay())
                return
            context = exchange.context_of(server)
            loop.create_task(self._serve(exchange, is_torn=is_torn), context=context)

        loop.call_later(self.delay(), arrive)

    async def _serve(self, exchange: Exchange, *, is_torn: bool) -> None:
        services = self.services
        assert services is not None
        answer = await serve(services, exchange.request, self.seen, is_torn=is_torn)
        self.trace("answer", exchange.request.method, exchange.request.path, answer.status)
        if self.rng.random() < self.weather.answer_lost:
            self.trace("answer lost", exchange.request.path)
            exchange.fail("the answer got lost", self.rng.uniform(0.01, 5.0))
            return
        loop_now().call_later(self.delay(), exchange.answered, answer)

    # --- control channels
    def dial(self) -> Link:
        """Connect an agent with the server.

        Raises:
            Unreachable: there is none, or the attempt got lost.
        """
        if self.server is None or self.rng.random() < self.weather.lost:
            raise Unreachable("the server does not answer")
        link = Link(self)
        self.links.append(link)
        services = self.services
        assert services is not None

        async def serve_channel() -> None:
            # Where it fails the server's middleware tells, and the connection is over.
            with suppress(HoldfastError):
                await services.reception.serve(link.server)

        loop_now().create_task(serve_channel(), context=context_of(self.server))
        return link


def context_of(machine: Machine) -> Any:
    """Return a context in which everything belongs to `machine`."""
    import contextvars

    context = contextvars.Context()
    context.run(MACHINE.set, machine)
    return context


@dataclass(frozen=True)
class Request:
    """A request as it is sent."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    seconds: float = 0.0
    """How long the second half of the body takes."""


class Exchange:
    """One request and its answer, whatever comes of them."""

    def __init__(self, network: Network, request: Request, number: int) -> None:
        self.network = network
        self.request = request
        self.number = number
        self._over = Event()
        self._answer: Answer | None = None
        self._failure = ""

    @staticmethod
    def context_of(machine: Machine) -> Any:
        return context_of(machine)

    def fail(self, why: str, delay: float) -> None:
        """Have the sender learn, after `delay`, that there will be no answer."""
        loop_now().call_later(delay, self._end, None, why)

    def answered(self, answer: Answer) -> None:
        """Hand the answer over."""
        self._end(answer, "")

    def _end(self, answer: Answer | None, why: str) -> None:
        if not self._over.is_set():
            self._answer, self._failure = answer, why
            self.network.under_way.discard(self)
            self._over.set()

    def wait(self) -> Answer:
        """Return the answer.

        Raises:
            Unreachable: there is none.
        """
        self._over.wait()
        if self._answer is None:
            raise Unreachable(f"the server does not answer: {self._failure}")
        return self._answer

    def abort(self) -> None:
        """Give the answer up."""
        self._end(None, "the request was cancelled")


# --- the server's end of requests


class SimContent:
    """A request's body as it arrives."""

    def __init__(self, data: bytes, seconds: float, *, is_torn: bool) -> None:
        half = len(data) // 2
        self._pieces = [data[half:], data[:half]] if data else []
        self._seconds = seconds
        self._is_torn = is_torn
        if is_torn:
            del self._pieces[:1]

    async def readany(self) -> bytes:
        await asyncio.sleep(self._seconds if len(self._pieces) == 1 else 0)
        if self._pieces:
            return self._pieces.pop() or await self.readany()
        if self._is_torn:
            raise ConnectionResetError("the connection broke")
        return b""


class SimTransport:
    """The connection below a request."""

    def __init__(self) -> None:
        self.is_aborted = False

    def abort(self) -> None:
        self.is_aborted = True


class SimRequest(dict[Any, Any]):
    """What handlers see of a request."""

    def __init__(
        self, services: Services, request: Request, match: Mapping[str, str], *, is_torn: bool
    ) -> None:
        super().__init__()
        path, _, query = request.path.partition("?")
        self.app = {SERVICES: services, WAITING: {}}
        self.method = request.method
        self.path = path
        self.headers = request.headers
        self.match_info = match
        self.query = dict(parse_qsl(query, keep_blank_values=True))
        self.content = SimContent(request.body, request.seconds, is_torn=is_torn)
        self.body = request.body
        self.content_length = len(request.body)
        self.content_type = request.headers.get("Content-Type", "")
        self.protocol = None
        self.transport = SimTransport()


class SimStreamed(web.StreamResponse):
    """An answer that is written piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []

    @property
    def prepared(self) -> bool:
        return True

    async def prepare(self, request: Any) -> None:
        return None

    async def write(self, data: Any) -> None:
        self.pieces.append(bytes(data))
        await asyncio.sleep(0)

    async def write_eof(self, data: bytes = b"") -> None:
        return None


async def serve(
    services: Services, request: Request, seen: Observe, *, is_torn: bool = False
) -> Answer:
    """Have the server's own routes and middleware answer."""
    path = request.path.partition("?")[0]
    for route, pattern in _ROUTES:
        match = pattern.match(path)
        if match and route.method == request.method:
            break
    else:
        raise AssertionError(f"no route for {request.method} {path}")
    found = SimRequest(services, request, match.groupdict(), is_torn=is_torn)
    handler: Any = partial(_told, handler=endpoint(route))
    response = await observe(found, handler)  # type: ignore[arg-type]
    body = b"".join(response.pieces) if isinstance(response, SimStreamed) else _body(response)
    answer = Answer(
        response.status, dict(response.headers), body, is_torn=found.transport.is_aborted
    )
    seen(route, found, answer)
    return answer


async def _told(request: web.Request, *, handler: Any) -> web.StreamResponse:
    return await tell_errors(request, handler)


def _body(response: web.StreamResponse) -> bytes:
    assert isinstance(response, web.Response)
    body = response.body
    return bytes(body) if isinstance(body, (bytes, bytearray)) else b""


# --- the agent's end of requests


class SimHttpClient:
    """What the agent takes for its HTTP client; the network comes in place of a TLS context."""

    def __init__(
        self, url: str, context: Any, *, bearer: Callable[[], str], user_agent: str, kept: object
    ) -> None:
        self._network: Network = context
        self._bearer = bearer
        self._aborted = False
        self._busy: list[Exchange] = []

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Body | None = None,
        headers: Mapping[str, str] | None = None,
        reply_bytes_max: int = 0,
    ) -> Reply:
        answer = self._exchange(method, path, body, dict(headers or {}))
        if answer.is_torn:
            raise Unreachable("the server's answer ended early")
        return Reply(answer.status, answer.headers, answer.body)

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        body: Body | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[SimStream]:
        yield SimStream(self._exchange(method, path, body, dict(headers or {})))

    def _exchange(
        self, method: str, path: str, body: Body | None, headers: dict[str, str]
    ) -> Answer:
        headers["Authorization"] = f"Bearer {self._bearer()}"
        data = b""
        if body is not None:
            headers["Content-Type"] = body.content_type
            data = b"".join(bytes(part) for part in body.parts())
        if self._aborted:
            raise Unreachable("the request was cancelled")
        exchange = self._network.begin(Request(method, path, headers, data))
        self._busy.append(exchange)
        try:
            answer = exchange.wait()
        finally:
            self._busy.remove(exchange)
        if answer.status >= 300:
            raise _problem(_Refusal(answer))  # type: ignore[arg-type]
        return answer

    def abort(self) -> None:
        self._aborted = True
        for exchange in list(self._busy):
            exchange.abort()

    def close(self) -> None:
        pass


class _Refusal:
    """An answer of 300 or more, as the agent's client reads it."""

    def __init__(self, answer: Answer) -> None:
        self.status = answer.status
        self._body = answer.body

    def read(self, size: int) -> bytes:
        return self._body[:size]


class SimStream:
    """An answer that is read piece by piece."""

    def __init__(self, answer: Answer) -> None:
        self.status = answer.status
        self.headers = answer.headers
        self._answer = answer
        self._at = 0

    def read(self, size: int) -> bytes:
        piece = self._answer.body[self._at : self._at + size]
        self._at += len(piece)
        if len(piece) < size and self._answer.is_torn:
            raise Unreachable("the connection broke")
        return piece

    def read_exactly(self, size: int) -> bytes:
        data = self.read(size)
        if len(data) != size:
            raise Unreachable("the server's answer ended early")
        return data

    def read_exactly_into(self, buffer: memoryview) -> None:
        buffer[:] = self.read_exactly(len(buffer))

    def finish(self) -> None:
        if self.read(1):
            raise InvalidInput("the server's answer is longer than it should be")


# --- control channels


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


def is_error(error: BaseException) -> bool:
    """Tell whether an error is one of the product's."""
    return isinstance(error, HoldfastError)


__all__ = [
    "Answer",
    "Network",
    "Person",
    "Request",
    "SimChannel",
    "SimHttpClient",
    "Weather",
    "running",
]
