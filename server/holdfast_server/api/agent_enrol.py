"""Enrolment, and the records that an agent needs of its domain."""

from __future__ import annotations

from holdfast_contract.errors import Conflict, InvalidInput, NotAuthenticated, NotFound
from holdfast_contract.format.identity import IdentityBody, decode_identity_body, split_identity
from holdfast_contract.ids import ClientName
from holdfast_contract.protocol.http import (
    EnrolBegin,
    EnrolFinish,
    EnrolOffer,
    IdentityAnswer,
)
from holdfast_server.api.calls import Call, Newcomer
from holdfast_server.api.services import Services
from holdfast_server.api.tokens import client_of
from holdfast_server.catalog import clients, domains, enrolment
from holdfast_server.catalog.enrolment import EnrolTokenRecord
from holdfast_server.control.channel import WebSocketChannel


def _enrol_token(call: Call) -> EnrolTokenRecord:
    assert isinstance(call.caller, Newcomer)
    return call.caller.enrol_token


async def begin_enrolment(call: Call) -> EnrolOffer:
    """Tell a newcomer its name, its domain and what is known of it."""
    return await call.run(_offer, call.services, _enrol_token(call), call.body)


def _offer(services: Services, token: EnrolTokenRecord, body: EnrolBegin) -> EnrolOffer:
    client = _client(token, body.client, body.sign_key)
    domain = domains.get(services.catalog, token.domain)
    is_known = _is_known(services, client)
    if is_known and token.client is None and token.used_ns is None:
        raise Conflict(
            f"the name {client} is taken",
            hint="give the pod another name, or make a token for this one: --client",
        )
    current = services.repository.current_identity(client) if is_known else None
    offer = EnrolOffer(
        client=client,
        domain=domain.domain,
        domain_record=services.repository.domain_record(domain.name),
        identity=current.record if current else None,
    )
    if is_known:
        head = services.repository.head(client)
        offer.head_seq, offer.head = head.seq, head.snapshot if head.seq else None
    return offer


def _is_known(services: Services, client: ClientName) -> bool:
    try:
        clients.get(services.catalog, client)
    except NotFound:
        return False
    return True


def _client(token: EnrolTokenRecord, proposed: str | None, sign_key: bytes) -> ClientName:
    """Return the name that a token gives, or that a newcomer proposes."""
    if token.used_ns is not None:
        if token.used_key != sign_key or token.used_client is None:
            raise NotAuthenticated(
                "the enrolment token was used already",
                hint="make a new one: holdfast enrol-token create DOMAIN",
            )
        return token.used_client
    if token.client is not None:
        return token.client
    if proposed is None:
        raise InvalidInput(
            "the token names no client, and the agent proposes none", hint="set HOLDFAST_CLIENT"
        )
    return client_of(token.domain, proposed)


async def finish_enrolment(call: Call) -> IdentityAnswer:
    """Make the newcomer's identity record count; again with the same key, the same happens."""
    body: EnrolFinish = call.body
    token, services = _enrol_token(call), call.services
    identity, is_again = await call.run(_enrol, services, token, body)
    kind = "enrolled-again" if is_again else "enrolled"
    message = "client enrolled with a new identity" if is_again else "client enrolled"
    await call.record(
        kind, message, client=body.client, enrol_token=token.id, identity=identity.hex()
    )
    return IdentityAnswer(client=body.client, identity=identity)


def _enrol(services: Services, token: EnrolTokenRecord, body: EnrolFinish) -> tuple[bytes, bool]:
    record = _identity_body(body.record)
    client = _client(token, body.client, record.sign_key)
    if body.client != client or record.client != client:
        raise InvalidInput("the identity record is not for the offered name")
    is_again = _is_known(services, client)
    if is_again and token.client is None and token.used_ns is None:
        raise Conflict(f"the name {client} is taken")
    # Claimed before it is used: of two keys with one token only the first gets any further.
    enrolment.consume(services.catalog, token.hash, client=client, sign_key=record.sign_key)
    identity = services.repository.enrol(client, body.record, record.sign_key)
    if is_again:
        clients.reinstate(services.catalog, client)
    return identity, is_again


def _identity_body(record: bytes) -> IdentityBody:
    return decode_identity_body(split_identity(record).body)


async def put_identity(call: Call) -> IdentityAnswer:
    """Make another identity record with the same signing key count."""
    body: EnrolFinish = call.body
    services, agent = call.services, call.agent
    if body.client != agent.client:
        raise InvalidInput("the identity record is not for this client")
    identity = await call.run(services.repository.enrol, agent.client, body.record, agent.sign_key)
    return IdentityAnswer(client=agent.client, identity=identity)


async def get_own_domain(call: Call) -> bytes:
    """Return the newest record of the agent's domain."""
    return await call.run(call.services.repository.domain_record, call.agent.client.domain)


async def get_domain_identity(call: Call) -> bytes:
    """Return an identity record of the agent's domain."""
    return await call.run(
        call.services.repository.identity_record, call.agent.client.domain, call.hash("hash")
    )


async def open_control(call: Call) -> object:
    """Serve the control channel until it closes."""
    channel = WebSocketChannel()
    response = await channel.open(call.request)
    await call.services.reception.serve(channel)
    return response
