"""Who calls: decided from the bearer token alone, before a byte of the body is read."""

from __future__ import annotations

from aiohttp import web

from holdfast_contract.errors import NotAuthenticated
from holdfast_server.api.calls import Caller, ConnectedAgent, Newcomer, Person
from holdfast_server.api.routes import Audience
from holdfast_server.api.services import Services
from holdfast_server.auth.tokens import hash_token
from holdfast_server.catalog import enrolment, tokens
from holdfast_server.catalog.scopes import scope_of
from holdfast_server.control.open_calls import UNKNOWN_TOKEN

TOKEN_CHARS_MAX = 256
"""No token of ours is longer; a longer one is not even hashed."""


async def caller_of(audience: Audience, token_hash: bytes, services: Services) -> Caller:
    """Return who calls a route for `audience` with the token of that hash.

    Raises:
        NotAuthenticated: it is not one that counts here now; always told alike.
    """
    if audience is Audience.AGENT:
        connection = services.hub.of_token(token_hash)
        if connection is None:
            raise NotAuthenticated(UNKNOWN_TOKEN)
        return ConnectedAgent(connection)
    return await services.workers.run(_from_catalog, services, audience, token_hash)


def bearer_hash(request: web.Request) -> bytes:
    """Return the hash of the token that a request brings.

    Raises:
        NotAuthenticated: none, or nothing that could be one.
    """
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token or len(token) > TOKEN_CHARS_MAX:
        raise NotAuthenticated(
            "a bearer token is needed", hint="the server's own one is in DIR/admin.token"
        )
    return hash_token(token)


def _from_catalog(services: Services, audience: Audience, token_hash: bytes) -> Caller:
    now = services.clock.now_ns()
    if audience is Audience.PEOPLE:
        found = tokens.find(services.catalog, token_hash)
        if found is None or found.revoked_ns is not None:
            raise NotAuthenticated(UNKNOWN_TOKEN)
        if not tokens.counts_at(found.created_ns, found.expires_ns, now):
            raise NotAuthenticated(UNKNOWN_TOKEN)
        return Person(
            found.id,
            found.role,
            scope=scope_of(found.domains),
            label=found.label,
            expires_ns=found.expires_ns,
        )
    newcomer = enrolment.find(services.catalog, token_hash)
    if (
        newcomer is None
        or newcomer.revoked_ns is not None
        or not tokens.counts_at(newcomer.created_ns, newcomer.expires_ns, now)
    ):
        raise NotAuthenticated(
            "the enrolment token is unknown, used, expired or revoked",
            hint="make a new one: holdfast enrol-token create DOMAIN",
        )
    return Newcomer(newcomer)
