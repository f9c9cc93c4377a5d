"""Who calls: decided from the bearer token alone, before a byte of the body is read."""

from __future__ import annotations

from aiohttp import web

from holdfast_contract.errors import NotAuthenticated
from holdfast_server.api.calls import Caller, ConnectedAgent, Newcomer, Nobody, Person
from holdfast_server.api.routes import Audience
from holdfast_server.api.services import Services
from holdfast_server.auth.tokens import hash_token
from holdfast_server.catalog import enrolment, tokens

TOKEN_CHARS_MAX = 256
"""No token of ours is longer; a longer one is not even hashed."""


async def caller_of(request: web.Request, audience: Audience, services: Services) -> Caller:
    """Return who calls a route for `audience`.

    Raises:
        NotAuthenticated: no token, or not one that counts here now; always told alike.
    """
    if audience in (Audience.OPEN, Audience.PROOF):
        return Nobody()
    token_hash = hash_token(_bearer(request))
    if audience is Audience.AGENT:
        connection = services.hub.of_token(token_hash)
        if connection is None:
            raise _wrong()
        return ConnectedAgent(connection)
    return await services.workers.run(_from_catalog, services, audience, token_hash)


def _bearer(request: web.Request) -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token or len(token) > TOKEN_CHARS_MAX:
        raise NotAuthenticated(
            "a bearer token is needed", hint="the server's own one is in DIR/admin.token"
        )
    return token


def _wrong() -> NotAuthenticated:
    return NotAuthenticated("the token is unknown, expired or revoked")


def _from_catalog(services: Services, audience: Audience, token_hash: bytes) -> Caller:
    now = services.clock.now_ns()
    if audience is Audience.PEOPLE:
        found = tokens.find(services.catalog, token_hash)
        if found is None or found.revoked_ns is not None:
            raise _wrong()
        if found.expires_ns is not None and found.expires_ns <= now:
            raise _wrong()
        return Person(found.id, found.role)
    newcomer = enrolment.find(services.catalog, token_hash)
    if newcomer is None or newcomer.revoked_ns is not None or newcomer.expires_ns <= now:
        raise NotAuthenticated(
            "the enrolment token is unknown, used, expired or revoked",
            hint="make a new one: holdfast enrol-token create DOMAIN",
        )
    return Newcomer(newcomer)
