"""Tokens of people and programs: the catalog knows their hashes only."""

from __future__ import annotations

from typing import Final, NamedTuple

from sqlalchemy import RowMapping, bindparam, func, insert, select, update

from holdfast_contract.errors import NotFound
from holdfast_contract.ids import new_ulid
from holdfast_server.catalog.connection import Catalog, Tx
from holdfast_server.catalog.packing import pack, unpack
from holdfast_server.catalog.schema import tokens

CLOCK_TOLERANCE_NS: Final = 300 * 1_000_000_000
"""A clock may be corrected by so much without a token ceasing to count."""


class TokenRecord(NamedTuple):
    """A token; whether it still counts is for the caller to say, from the times."""

    id: str
    hash: bytes
    role: str
    domains: list[str]
    label: str
    created_ns: int
    expires_ns: int | None
    revoked_ns: int | None


def counts_at(created_ns: int, expires_ns: int | None, now_ns: int) -> bool:
    """Tell whether a token counts now, by its time to live alone.

    One with a time to live does not count before it was made: a clock that was set back by years
    would let it live again long after its end.
    """
    if expires_ns is None:
        return True
    return created_ns - CLOCK_TOLERANCE_NS <= now_ns < expires_ns


def _token(row: RowMapping) -> TokenRecord:
    return TokenRecord(
        row["token"],
        row["hash"],
        row["role"],
        unpack(list[str], row["domains"]),
        row["label"],
        row["created_ns"],
        row["expires_ns"],
        row["revoked_ns"],
    )


def create(
    catalog: Catalog,
    *,
    token_hash: bytes,
    role: str,
    domains: list[str],
    expires_ns: int | None = None,
    label: str = "",
) -> TokenRecord:
    """Keep a new token's hash (32 bytes) and return its row."""
    row = TokenRecord(
        new_ulid(catalog.clock),
        token_hash,
        role,
        domains,
        label,
        catalog.clock.now_ns(),
        expires_ns,
        None,
    )
    values = row._asdict() | {"domains": pack(domains)}
    values["token"] = values.pop("id")

    def work(tx: Tx) -> TokenRecord:
        tx.execute(insert(tokens).values(**values))
        return row

    return catalog.write(work)


_BY_HASH = select(tokens).where(tokens.c.hash == bindparam("hash"))
"""Made once: to make a query anew costs three times what SQLite needs for it."""


def find(catalog: Catalog, token_hash: bytes) -> TokenRecord | None:
    """Return the token of that hash, revoked and expired ones too."""
    with catalog.read() as tx:
        row = tx.execute(_BY_HASH, {"hash": token_hash}).mappings().one_or_none()
        return None if row is None else _token(row)


def listed(catalog: Catalog, *, after: str = "", limit: int = 1000) -> list[TokenRecord]:
    """Return tokens by id, oldest first, at most `limit` beginning behind `after`."""
    query = select(tokens).where(tokens.c.token > after).order_by(tokens.c.token).limit(limit)
    with catalog.read() as tx:
        return [_token(row) for row in tx.execute(query).mappings()]


def revoke(catalog: Catalog, token: str) -> bytes:
    """Make a token worthless at once and return its hash; doing it again keeps the first time.

    Raises:
        NotFound: there is none of that id.
    """
    now = catalog.clock.now_ns()

    def work(tx: Tx) -> bytes:
        query = update(tokens).where(tokens.c.token == token)
        done = tx.execute(query.values(revoked_ns=func.coalesce(tokens.c.revoked_ns, now)))
        if done.rowcount != 1:
            raise NotFound(f"no such token: {token[:40]}")
        return bytes(tx.execute(select(tokens.c.hash).where(tokens.c.token == token)).scalar_one())

    return catalog.write(work)
