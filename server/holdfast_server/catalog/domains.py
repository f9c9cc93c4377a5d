"""Domains: one scope of keys and of dedup each."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from sqlalchemy import RowMapping, Select, bindparam, func, insert, select, update

from holdfast_contract.errors import Conflict, NotFound
from holdfast_contract.ids import DomainId
from holdfast_server.catalog.connection import Catalog, Tx
from holdfast_server.catalog.packing import pack, unpack
from holdfast_server.catalog.schema import SnapshotState, clients, domains, server_state, snapshots
from holdfast_server.catalog.scopes import EVERYWHERE, Scope


class DomainRecord(NamedTuple):
    """A domain as the catalog knows it; `object` and `object_hash` name its newest record."""

    key: int
    domain: DomainId
    name: str
    created_ns: int
    revision: int
    object: str
    object_hash: bytes
    record: int
    recipients: list[bytes]
    epochs: list[int]
    share_references: bool

    @property
    def hex(self) -> str:
        """The domain's id as in names of objects."""
        return self.domain.hex()


class DomainCounts(NamedTuple):
    """What belongs to a domain."""

    clients: int
    snapshots: int


def _domain(row: RowMapping) -> DomainRecord:
    return DomainRecord(
        row["key"],
        DomainId(row["domain_id"]),
        row["name"],
        row["created_ns"],
        row["revision"],
        row["object"],
        row["object_hash"],
        row["record"],
        unpack(list[bytes], row["recipients"]),
        unpack(list[int], row["epochs"]),
        row["share_references"],
    )


_BY_KEY = select(domains).where(domains.c.key == bindparam("key"))
"""Made once: to make a query anew costs three times what SQLite needs for it."""


@cache
def _select() -> Select[tuple[object, ...]]:
    """Domains whose record is durable: others are not known yet."""
    durable = select(server_state.c.record_durable).scalar_subquery()
    return select(domains).where(domains.c.record <= durable)


def _one(
    tx: Tx, query: Select[tuple[object, ...]], what: str, values: dict[str, str] | None = None
) -> DomainRecord:
    row = tx.execute(query, values).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no such domain: {what}")
    return _domain(row)


def get(catalog: Catalog, name: str, scope: Scope = EVERYWHERE) -> DomainRecord:
    """Return the domain of that name within `scope`.

    Raises:
        NotFound: there is none.
    """
    with catalog.read() as tx:
        if scope is EVERYWHERE:
            return named(tx, name)
        query = _select().where(domains.c.name == name, scope.of_domains(domains.c.name))
        return _one(tx, query, name)


@cache
def _named() -> Select[tuple[object, ...]]:
    return _select().where(domains.c.name == bindparam("name"))


def named(tx: Tx, name: str) -> DomainRecord:
    """Return the domain of that name.

    Raises:
        NotFound: there is none.
    """
    return _one(tx, _named(), name, {"name": name})


def of_id(tx: Tx, domain: DomainId) -> DomainRecord:
    """Return the domain of that id, durable or not.

    Raises:
        NotFound: there is none.
    """
    return _one(tx, select(domains).where(domains.c.domain_id == domain), domain.hex())


def by_id(catalog: Catalog, domain: DomainId) -> DomainRecord:
    """Return the domain of that id.

    Raises:
        NotFound: there is none.
    """
    with catalog.read() as tx:
        return _one(tx, _select().where(domains.c.domain_id == domain), domain.hex())


def by_key(tx: Tx, key: int) -> DomainRecord:
    """Return the domain that a row names by its key."""
    row = tx.execute(_BY_KEY, {"key": key}).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no such domain: {key}")
    return _domain(row)


def listed(
    catalog: Catalog, *, after: str = "", limit: int = 1000, scope: Scope = EVERYWHERE
) -> list[DomainRecord]:
    """Return domains within `scope` by name, at most `limit` beginning behind `after`."""
    query = _select().where(domains.c.name > after, scope.of_domains(domains.c.name))
    with catalog.read() as tx:
        rows = tx.execute(query.order_by(domains.c.name).limit(limit)).mappings()
        return [_domain(row) for row in rows]


def counts(catalog: Catalog, key: int) -> DomainCounts:
    """Return how much belongs to a domain."""
    with catalog.read() as tx:
        of = select(func.count()).select_from(clients).where(clients.c.domain_key == key)
        shown = select(func.count()).select_from(snapshots)
        shown = shown.where(
            snapshots.c.domain_key == key,
            snapshots.c.state == SnapshotState.STANDING,
            snapshots.c.record <= select(server_state.c.record_durable).scalar_subquery(),
        )
        return DomainCounts(tx.execute(of).scalar_one(), tx.execute(shown).scalar_one())


def pending(tx: Tx, name: str, domain: DomainId) -> DomainRecord | None:
    """Return a domain that takes this name or id, durable or not."""
    taken = (domains.c.name == name) | (domains.c.domain_id == domain)
    rows = tx.execute(select(domains).where(taken)).mappings().all()
    return _domain(rows[0]) if rows else None


class StoredDomain(NamedTuple):
    """What the catalog takes from a domain record that has been stored as `object`."""

    object: str
    object_hash: bytes
    recipients: list[bytes]
    epochs: list[int]
    share_references: bool


def add(
    tx: Tx, name: str, domain: DomainId, stored: StoredDomain, *, created_ns: int, record: int
) -> int:
    """Insert a domain of revision 1 and return its key.

    Raises:
        Conflict: name or id is taken.
    """
    if pending(tx, name, domain) is not None:
        raise Conflict(f"a domain of this name or id exists: {name}")
    done = tx.execute(
        insert(domains).values(
            domain_id=domain,
            name=name,
            created_ns=created_ns,
            revision=1,
            record=record,
            **_columns(stored),
            commit_last=0,
            leave_last=0,
        )
    )
    assert done.inserted_primary_key is not None
    return int(done.inserted_primary_key[0])


def _columns(stored: StoredDomain) -> dict[str, object]:
    packed = {"recipients": pack(stored.recipients), "epochs": pack(stored.epochs)}
    return stored._asdict() | packed


def set_record(tx: Tx, key: int, stored: StoredDomain, *, revision: int, record: int) -> None:
    """Make another domain record count: exactly the next revision.

    Raises:
        Conflict: a newer one counts already.
    """
    query = update(domains).where(domains.c.key == key, domains.c.revision == revision - 1)
    done = tx.execute(query.values(revision=revision, record=record, **_columns(stored)))
    if done.rowcount != 1:
        raise Conflict("another domain record was stored meanwhile", hint="read it and try again")


def next_commit(tx: Tx, key: int) -> int:
    """Give out the next number of the domain's commit log."""
    return _next(tx, key, "commit_last", 1)


def leave_last(tx: Tx, key: int) -> int:
    """Return the last number of the domain's leave-live log."""
    query = select(domains.c.leave_last).where(domains.c.key == key)
    return int(tx.execute(query).scalar_one())


def next_leaves(tx: Tx, key: int, count: int) -> int:
    """Give out `count` numbers of the leave-live log; return the first."""
    return _next(tx, key, "leave_last", count)


def _next(tx: Tx, key: int, column: str, count: int) -> int:
    last = int(tx.execute(select(domains.c[column]).where(domains.c.key == key)).scalar_one())
    tx.execute(update(domains).where(domains.c.key == key).values({column: last + count}))
    return last + 1


def count(catalog: Catalog, scope: Scope = EVERYWHERE) -> int:
    """Return the number of domains within `scope`."""
    known = _select().where(scope.of_domains(domains.c.name))
    with catalog.read() as tx:
        query = select(func.count()).select_from(known.subquery())
        return tx.execute(query).scalar_one()
