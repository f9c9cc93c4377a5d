"""One call of a route: who calls, with what, and what the handler may use."""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Concatenate, ParamSpec, TypeVar

from aiohttp import web

from holdfast_contract.errors import NotFound, UsageError
from holdfast_contract.ids import ClientName, is_ulid
from holdfast_contract.limits import PAGE_ROWS_MAX
from holdfast_server.api.services import Services
from holdfast_server.catalog import clients
from holdfast_server.catalog.connection import Catalog
from holdfast_server.catalog.enrolment import EnrolTokenRecord
from holdfast_server.catalog.scopes import Scope
from holdfast_server.control.events import DONE, Act
from holdfast_server.control.hub import AgentConnection

P = ParamSpec("P")
T = TypeVar("T")

_TARGET = re.compile(r"[A-Za-z0-9._-]{1,100}")
LABEL_CHARS_SHOWN = 100
"""Of a token's label, in every event of an act with it."""
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
    scope: Scope
    """The domains for which the token is good."""
    label: str = ""
    expires_ns: int | None = None


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
    is_recorded: bool = False
    """The act that this request is stands among the events."""

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what blocks in a thread; an agent's calls wait for each other beyond a few."""
        if not isinstance(self.caller, ConnectedAgent):
            return await self.services.workers.run(call, *args, **kwargs)
        async with self.caller.connection.share.calls:
            return await self.services.workers.run(call, *args, **kwargs)

    @property
    def agent(self) -> AgentConnection:
        """The agent that calls; only behind routes for agents."""
        assert isinstance(self.caller, ConnectedAgent)
        return self.caller.connection

    @property
    def person(self) -> Person:
        """The person that calls; only behind routes for people."""
        assert isinstance(self.caller, Person)
        return self.caller

    @property
    def scope(self) -> Scope:
        """The domains of which the person that calls may know."""
        return self.person.scope

    @property
    def by(self) -> str:
        """The id of the token with which a person or a newcomer calls, for events."""
        if isinstance(self.caller, Newcomer):
            return self.caller.enrol_token.id
        return self.caller.token if isinstance(self.caller, Person) else ""

    @property
    def who(self) -> dict[str, str]:
        """Who calls, and with which request: what every act's event tells."""
        told = {"by": self.by, "request": self.request_id}
        if isinstance(self.caller, Person):
            told |= {"role": self.caller.role, "name": self.caller.label[:LABEL_CHARS_SHOWN]}
        return {name: value for name, value in told.items() if value}

    async def act(
        self,
        act: Act,
        change: Callable[Concatenate[Catalog, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Change the catalog; in the same transaction it is recorded who did it."""
        details = {**act.details, **self.who, "outcome": DONE}
        events = self.services.events
        done = await events.act(replace(act, details=details), change, *args, **kwargs)
        self.is_recorded = True
        return done

    async def record(self, kind: str, message: str, *, client: str = "", **details: Any) -> None:
        """Record an act that was done, with who did it."""
        told = {**details, **self.who, "outcome": DONE}
        await self.services.events.add(kind, message, client=client, **told)
        self.is_recorded = True

    @property
    def target(self) -> dict[str, str]:
        """What of the path names the thing that an act is for; only what has the form of a name."""
        found = self.request.match_info
        named = {name: found[name] for name in ("domain", "name", "id") if name in found}
        return {f"on_{name}": text for name, text in named.items() if _TARGET.fullmatch(text)}

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

    async def client(self) -> ClientName:
        """Return the client that the path names by `{domain}/{name}`.

        Raises:
            InvalidInput: it cannot be one.
            NotFound: it is not enrolled, or of a domain of which the caller may not know.
        """
        name = ClientName.parse(f"{self.part('domain')}/{self.part('name')}")
        await self.run(clients.get, self.services.catalog, name, self.scope)
        return name

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
