"""One call of a route: who calls, with what, and what the handler may use."""

from __future__ import annotations

import binascii
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from aiohttp import web

from holdfast_contract.errors import NotFound, UsageError
from holdfast_contract.ids import ClientName, is_ulid
from holdfast_contract.limits import PAGE_ROWS_MAX
from holdfast_server.api.services import Services
from holdfast_server.catalog.enrolment import EnrolTokenRecord
from holdfast_server.control.hub import AgentConnection

P = ParamSpec("P")
T = TypeVar("T")

PAGE_ROWS = 200
"""Rows of a page whose caller does not say how many."""


@dataclass(frozen=True)
class Nobody:
    """A caller of an open route."""


@dataclass(frozen=True)
class Person:
    """A holder of a token for people and programs."""

    token: str
    """Id of the token, never the secret."""
    role: str


@dataclass(frozen=True)
class Newcomer:
    """A holder of an enrolment token."""

    enrol_token: EnrolTokenRecord


@dataclass(frozen=True)
class ConnectedAgent:
    """An agent with a live control connection."""

    connection: AgentConnection


Caller = Nobody | Person | Newcomer | ConnectedAgent


@dataclass(frozen=True)
class Page:
    """Which rows of a list are asked for."""

    limit: int
    after: str


@dataclass
class Call:
    """A request on its way through a handler."""

    request: web.Request
    services: Services
    caller: Caller
    request_id: str
    body: Any = None
    """Decoded as the route's row says."""

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what blocks in a thread."""
        return await self.services.workers.run(call, *args, **kwargs)

    @property
    def agent(self) -> AgentConnection:
        """The agent that calls; only behind routes for agents."""
        assert isinstance(self.caller, ConnectedAgent)
        return self.caller.connection

    @property
    def by(self) -> str:
        """The id of the token with which a person calls, for events."""
        return self.caller.token if isinstance(self.caller, Person) else ""

    def part(self, name: str) -> str:
        """Return a part of the path, decoded."""
        return self.request.match_info[name]

    def ulid(self, name: str) -> str:
        """Return a part of the path that is a ULID.

        Raises:
            NotFound: it is none, so nothing has this name.
        """
        text = self.part(name)
        if not is_ulid(text):
            raise NotFound(f"no such {name}")
        return text

    def hash(self, name: str) -> bytes:
        """Return a part of the path that is a hash.

        Raises:
            NotFound: it is none, so nothing has this name.
        """
        found = _hash(self.part(name))
        if found is None:
            raise NotFound(f"no such {name}")
        return found

    def client(self) -> ClientName:
        """Return the client that the path names by `{domain}/{name}`.

        Raises:
            InvalidInput: it cannot be one.
        """
        return ClientName.parse(f"{self.part('domain')}/{self.part('name')}")

    def text(self, name: str) -> str:
        """Return a parameter behind the question mark, empty when it is not there."""
        return self.request.query.get(name, "")

    def number(self, name: str, default: int, *, least: int = 0, most: int) -> int:
        """Return a parameter that is a whole number.

        Raises:
            UsageError: it is not, or out of bounds.
        """
        text = self.text(name)
        if not text:
            return default
        if not (text.isascii() and text.isdigit() and len(text) <= 18):
            raise UsageError(f"{name}: a whole number is expected")
        if not least <= int(text) <= most:
            raise UsageError(f"{name}: between {least} and {most}")
        return int(text)

    def hash_after(self) -> bytes:
        """Return the parameter `after` of a list of hashes, empty for its begin.

        Raises:
            UsageError: it is no hash.
        """
        text = self.text("after")
        found = _hash(text) if text else b""
        if found is None:
            raise UsageError("after: 64 hex digits are expected")
        return found

    def page(self) -> Page:
        """Return which rows are asked for.

        Raises:
            UsageError: `limit` is not a number from 1 to 1,000.
        """
        limit = self.number("limit", PAGE_ROWS, least=1, most=PAGE_ROWS_MAX)
        return Page(limit, self.text("after"))

    def number_after(self) -> int:
        """Return the parameter `after` of a list that is numbered, 0 for its begin."""
        return self.number("after", 0, most=(1 << 62))


def _hash(text: str) -> bytes | None:
    if len(text) != 64 or text != text.lower():
        return None
    try:
        return binascii.unhexlify(text)
    except (binascii.Error, ValueError):
        return None
