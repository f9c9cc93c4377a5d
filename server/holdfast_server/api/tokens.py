"""Tokens for people and programs, and for enrolment: their secrets are shown once, never kept."""

from __future__ import annotations

from holdfast_contract.errors import Conflict
from holdfast_contract.ids import ClientName, check_domain_name
from holdfast_contract.protocol.http import EnrolTokenCreate, Listing, TokenCreate, TokenRow
from holdfast_server.api.calls import Call
from holdfast_server.api.replies import listing
from holdfast_server.api.rows import enrol_token_row, token_row
from holdfast_server.auth.tokens import TokenKind, hash_token, new_token
from holdfast_server.catalog import domains, enrolment, tokens
from holdfast_server.control.events import Act

NANOSECONDS = 1_000_000_000


async def list_tokens(call: Call) -> Listing:
    """Return tokens, oldest first."""
    page = call.page()
    found = await call.run(tokens.listed, call.services.catalog, after=page.after, limit=page.limit)
    return listing([token_row(row) for row in found], page.limit, found[-1].id if found else "")


async def create_token(call: Call) -> TokenRow:
    """Make a token; the answer is the only place where its secret is shown."""
    body: TokenCreate = call.body
    services = call.services
    secret = new_token(TokenKind.API, services.random)
    expires_ns = None
    if body.ttl_seconds is not None:
        expires_ns = services.clock.now_ns() + body.ttl_seconds * NANOSECONDS
    for name in body.domains:
        await call.run(domains.get, services.catalog, check_domain_name(name))
    limited = f" for {', '.join(body.domains)}" if body.domains else ""
    record = await call.act(
        Act(
            "token-created",
            f"token created: {body.role}{limited}",
            tell=lambda row: {"id": row.id},
        ),
        tokens.create,
        token_hash=hash_token(secret),
        role=body.role,
        domains=body.domains,
        expires_ns=expires_ns,
        label=body.label,
    )
    return token_row(record, secret)


async def revoke_token(call: Call) -> None:
    """Make a token worthless at once, also for what is under way with it."""
    token = call.ulid("id")
    act = Act("token-revoked", "token revoked", details={"id": token})
    token_hash = await call.act(act, tokens.revoke, token)
    call.services.open_calls.end(token_hash)


async def list_enrol_tokens(call: Call) -> Listing:
    """Return enrolment tokens, oldest first."""
    page = call.page()
    found = await call.run(
        enrolment.listed,
        call.services.catalog,
        after=page.after,
        limit=page.limit,
        scope=call.scope,
    )
    rows = [enrol_token_row(row) for row in found]
    return listing(rows, page.limit, found[-1].id if found else "")


def client_of(domain: str, given: str) -> ClientName:
    """Return the client that `given` names; a bare name is taken within `domain`.

    Raises:
        InvalidInput: it cannot name a client.
        Conflict: it is of another domain.
    """
    client = ClientName.parse(given if "/" in given else f"{domain}/{given}")
    if client.domain != domain:
        raise Conflict(f"{client} is not of the domain {domain}")
    return client


async def create_enrol_token(call: Call) -> TokenRow:
    """Make a one-time token for one client of a domain."""
    body: EnrolTokenCreate = call.body
    services = call.services
    await call.run(domains.get, services.catalog, body.domain, call.scope)
    client = None if body.client is None else client_of(body.domain, body.client)
    secret = new_token(TokenKind.ENROL, services.random)
    record = await call.act(
        Act(
            "token-created",
            f"enrolment token created for {client or body.domain}",
            client=client or "",
            tell=lambda row: {"id": row.id},
        ),
        enrolment.create,
        token_hash=hash_token(secret),
        domain=body.domain,
        client=client,
        expires_ns=services.clock.now_ns() + body.ttl_seconds * NANOSECONDS,
    )
    return enrol_token_row(record, secret)


async def revoke_enrol_token(call: Call) -> None:
    """Make an enrolment token worthless at once."""
    token = call.ulid("id")
    act = Act("token-revoked", "enrolment token revoked", details={"id": token})
    await call.act(act, enrolment.revoke, token, call.scope)
