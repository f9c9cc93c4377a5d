"""How an agent becomes known: one token, one identity record, signed up by the domain's key."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from holdfast_agent.transport.http import Body, HttpClient
from holdfast_contract import limits
from holdfast_contract.errors import InvalidInput
from holdfast_contract.protocol.http import EnrolBegin, EnrolFinish, EnrolOffer, IdentityAnswer

_T = TypeVar("_T")


def enrol(
    client: HttpClient,
    *,
    name: str | None,
    sign_key: bytes,
    make_record: Callable[[EnrolOffer], bytes],
) -> tuple[EnrolOffer, bytes, bytes]:
    """Enrol by the bearer token of `client`; return the offer, the record and its hash.

    The same token with the same `sign_key` works again within its time to live, so a crash
    anywhere in between costs nothing.

    Raises:
        NotAuthenticated: token unknown, used by another key, expired or revoked.
        Conflict: the proposed name is taken.
    """
    begin = EnrolBegin(client=name, sign_key=sign_key)
    answer = client.call("POST", "/agent/v1/enrol/begin", body=Body.json(begin)).body
    offer = _decoded(answer, EnrolOffer)
    record = make_record(offer)
    finish = EnrolFinish(client=offer.client, record=record)
    answer = client.call("POST", "/agent/v1/enrol/finish", body=Body.json(finish)).body
    return offer, record, _decoded(answer, IdentityAnswer).identity


def renew_identity(client: HttpClient, *, name: str, record: bytes) -> bytes:
    """Replace the identity record of a connected agent; return the new hash."""
    body = Body.json(EnrolFinish(client=name, record=record))
    answer = client.call("PUT", "/agent/v1/identity", body=body).body
    return _decoded(answer, IdentityAnswer).identity


def domain_record(client: HttpClient) -> bytes:
    """Return the domain record of the connected agent's domain; the caller checks its MAC."""
    return client.call("GET", "/agent/v1/domain", reply_bytes_max=limits.DOMAIN_BYTES_MAX).body


def _decoded(data: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidInput("the server's answer is malformed") from exc
