"""Enrolment tokens: each makes one client known, once."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import RowMapping, func, insert, select, update

from holdfast_contract.errors import NotAuthenticated, NotFound
from holdfast_contract.ids import ClientName, new_ulid
from holdfast_server.catalog.connection import Catalog, Tx
from holdfast_server.catalog.schema import enrol_tokens
from holdfast_server.catalog.scopes import EVERYWHERE, Scope
from holdfast_server.catalog.tokens import counts_at


class EnrolTokenRecord(NamedTuple):
    """An enrolment token; `client` is set where it is good for one name only."""

    id: str
    hash: bytes
    domain: str
    client: ClientName | None
    created_ns: int
    expires_ns: int
    revoked_ns: int | None
    used_ns: int | None
    used_client: ClientName | None
    used_key: bytes | None


def _token(row: RowMapping) -> EnrolTokenRecord:
    return EnrolTokenRecord(
        row["token"],
        row["hash"],
        row["domain"],
        None if row["client"] is None else ClientName(row["client"]),
        row["created_ns"],
        row["expires_ns"],
        row["revoked_ns"],
        row["used_ns"],
        None if row["used_client"] is None else ClientName(row["used_client"]),
        row["used_key"],
    )


def create(
    catalog: Catalog,
    *,
    token_hash: bytes,
    domain: str,
    client: ClientName | None,
    expires_ns: int,
) -> EnrolTokenRecord:
    """Keep a new token's hash (32 bytes) and return its row."""
    row = EnrolTokenRecord(
        new_ulid(catalog.clock),
        token_hash,
        domain,
        client,
        catalog.clock.now_ns(),
        expires_ns,
        None,
        None,
        None,
        None,
    )
    values = row._asdict()
    values["token"] = values.pop("id")

    def work(tx: Tx) -> EnrolTokenRecord:
        tx.execute(insert(enrol_tokens).values(**values))
        return row

    return catalog.write(work)


def find(catalog: Catalog, token_hash: bytes) -> EnrolTokenRecord | None:
    """Return the token of that hash, revoked, expired and used ones too."""
    with catalog.read() as tx:
        return _find(tx, token_hash)


def _find(tx: Tx, token_hash: bytes) -> EnrolTokenRecord | None:
    query = select(enrol_tokens).where(enrol_tokens.c.hash == token_hash)
    row = tx.execute(query).mappings().one_or_none()
    return None if row is None else _token(row)


def listed(
    catalog: Catalog, *, after: str = "", limit: int = 1000, scope: Scope = EVERYWHERE
) -> list[EnrolTokenRecord]:
    """Return tokens for domains within `scope`, oldest first, `limit` beginning behind `after`."""
    within = scope.of_domains(enrol_tokens.c.domain)
    query = select(enrol_tokens).where(enrol_tokens.c.token > after, within)
    query = query.order_by(enrol_tokens.c.token).limit(limit)
    with catalog.read() as tx:
        return [_token(row) for row in tx.execute(query).mappings()]


def revoke(catalog: Catalog, token: str, scope: Scope = EVERYWHERE) -> None:
    """Make a token worthless at once; doing it again keeps the first time.

    Raises:
        NotFound: there is none of that id for a domain within `scope`.
    """
    now = catalog.clock.now_ns()
    within = scope.of_domains(enrol_tokens.c.domain)

    def work(tx: Tx) -> None:
        query = update(enrol_tokens).where(enrol_tokens.c.token == token, within)
        done = tx.execute(query.values(revoked_ns=func.coalesce(enrol_tokens.c.revoked_ns, now)))
        if done.rowcount != 1:
            raise NotFound(f"no such enrolment token: {token[:40]}")

    catalog.write(work)


def consume(
    catalog: Catalog, token_hash: bytes, *, client: ClientName, sign_key: bytes
) -> EnrolTokenRecord:
    """Use a token for `client` with this key; the same use again works until it expires.

    Raises:
        NotAuthenticated: unknown, revoked, expired, used otherwise, or for another client.
    """
    now = catalog.clock.now_ns()

    def work(tx: Tx) -> EnrolTokenRecord:
        found = _find(tx, token_hash)
        if found is None or not _is_good(found, client, sign_key, now):
            raise NotAuthenticated("the enrolment token is unknown, used, expired or revoked")
        query = update(enrol_tokens).where(enrol_tokens.c.hash == token_hash)
        used_ns = now if found.used_ns is None else found.used_ns
        tx.execute(query.values(used_ns=used_ns, used_client=client, used_key=sign_key))
        return found._replace(used_ns=used_ns, used_client=client, used_key=sign_key)

    return catalog.write(work)


def _is_good(token: EnrolTokenRecord, client: ClientName, sign_key: bytes, now: int) -> bool:
    fits = client.domain == token.domain and token.client in (None, client)
    fresh = token.used_ns is None or (token.used_client, token.used_key) == (client, sign_key)
    is_good = token.revoked_ns is None and counts_at(token.created_ns, token.expires_ns, now)
    return fits and fresh and is_good
