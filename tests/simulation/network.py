"""The network: requests and control channels between agents and the server, and what befalls them.

A request may get lost, arrive late or twice (a repetition whose first attempt was still under way),
or break in the middle of its body; its answer may get lost, come late or torn. A control channel
delivers in order, now and then twice, and breaks at any moment: each end notices in its own time.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Any

from holdfast_contract.errors import HoldfastError, Unreachable
from holdfast_server.api.services import Services
from tests.simulation.answering import Answer, Observe, Request, serve
from tests.simulation.links import Link
from tests.simulation.loop import MACHINE, Machine, loop_now
from tests.simulation.threads import Event


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
            serving = self._serve(exchange, is_torn=is_torn)
            loop.create_task(serving, context=context_of(server))

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
    context = contextvars.Context()
    context.run(MACHINE.set, machine)
    return context


class Exchange:
    """One request and its answer, whatever comes of them."""

    def __init__(self, network: Network, request: Request, number: int) -> None:
        self.network = network
        self.request = request
        self.number = number
        self._over = Event()
        self._answer: Answer | None = None
        self._failure = ""

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
