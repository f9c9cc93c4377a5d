"""Clients: protected pods by name, what their pods allow, and where their history stands."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import RowMapping, bindparam, delete, func, insert, select, update

from holdfast_contract.errors import Conflict, NotFound
from holdfast_contract.ids import ZERO_HASH, ClientName, SnapshotId
from holdfast_server.catalog.connection import Catalog, Tx
from holdfast_server.catalog.packing import pack, unpack
from holdfast_server.catalog.schema import clients, snapshots
from holdfast_server.catalog.scopes import EVERYWHERE, Scope


class ClientRecord(NamedTuple):
    """A client; `head` is its newest snapshot ever committed (zero bytes: none yet)."""

    key: int
    name: ClientName
    domain_key: int
    identity: bytes
    enrolled_ns: int
    revoked_ns: int | None
    seen_ns: int | None
    version: str
    roots: list[bytes]
    restore: str
    restore_roots: list[bytes]
    browse: str
    limit_upload: int
    limit_download: int
    head_seq: int
    head: SnapshotId
    accepted: bytes | None


def _client(row: RowMapping) -> ClientRecord:
    values = dict(row)
    values["name"] = ClientName(values["name"])
    values["roots"] = unpack(list[bytes], values["roots"])
    values["restore_roots"] = unpack(list[bytes], values["restore_roots"])
    return ClientRecord(**values)


_BY_NAME = select(clients).where(clients.c.name == bindparam("name"))
"""Made once: to make a query anew costs three times what SQLite needs for it."""
_BY_KEY = select(clients).where(clients.c.key == bindparam("key"))


def find(tx: Tx, name: ClientName) -> ClientRecord | None:
    """Return a client, or None."""
    row = tx.execute(_BY_NAME, {"name": name}).mappings().one_or_none()
    return None if row is None else _client(row)


def require(tx: Tx, name: ClientName) -> ClientRecord:
    """Return a client.

    Raises:
        NotFound: it is not enrolled.
    """
    found = find(tx, name)
    if found is None:
        raise _absent(name)
    return found


def by_key(tx: Tx, key: int) -> ClientRecord:
    """Return the client that a row names by its key."""
    return _client(tx.execute(_BY_KEY, {"key": key}).mappings().one())


def get(catalog: Catalog, name: ClientName, scope: Scope = EVERYWHERE) -> ClientRecord:
    """Return a client within `scope`.

    Raises:
        NotFound: it is not enrolled, or foreign.
    """
    query = select(clients).where(clients.c.name == name, scope.of_clients(clients.c.name))
    with catalog.read() as tx:
        row = tx.execute(query).mappings().one_or_none()
    if row is None:
        raise _absent(name)
    return _client(row)


def _absent(name: ClientName) -> NotFound:
    return NotFound(f"no such client: {name}")


def listed(
    catalog: Catalog, *, after: str = "", limit: int = 1000, scope: Scope = EVERYWHERE
) -> list[ClientRecord]:
    """Return clients within `scope` by name, at most `limit` beginning behind `after`."""
    query = select(clients).where(clients.c.name > after, scope.of_clients(clients.c.name))
    with catalog.read() as tx:
        rows = tx.execute(query.order_by(clients.c.name).limit(limit)).mappings()
        return [_client(row) for row in rows]


def relatives(tx: Tx, name: ClientName) -> list[ClientRecord]:
    """Return the other replicas of a client's workload, by name; none where it is no replica."""
    if name.workload == name:
        return []
    # "-" stands before "." in ASCII: between the two lies what begins with the workload's name.
    first, last = f"{name.workload}-", f"{name.workload}."
    query = select(clients).where(clients.c.name > first, clients.c.name < last)
    found = [_client(row) for row in tx.execute(query.order_by(clients.c.name)).mappings()]
    return [client for client in found if client.name.is_relative_of(name)]


def count(catalog: Catalog, scope: Scope = EVERYWHERE) -> int:
    """Return the number of clients within `scope`."""
    query = select(func.count()).select_from(clients).where(scope.of_clients(clients.c.name))
    with catalog.read() as tx:
        return tx.execute(query).scalar_one()


def set_identity(
    tx: Tx,
    name: ClientName,
    domain_key: int,
    identity: bytes,
    *,
    enrolled_ns: int,
    has_accepted: bool = False,
) -> int:
    """Make `identity` the client's, known from now on if it was not; return its key.

    `has_accepted`: the record takes up the history that an administrator accepted.
    """
    found = find(tx, name)
    if found is not None:
        values = {"identity": identity} | ({"accepted": None} if has_accepted else {})
        tx.execute(update(clients).where(clients.c.key == found.key).values(values))
        return found.key
    done = tx.execute(
        insert(clients).values(
            name=name,
            domain_key=domain_key,
            identity=identity,
            enrolled_ns=enrolled_ns,
            version="",
            roots=pack([]),
            restore="",
            restore_roots=pack([]),
            browse="",
            limit_upload=0,
            limit_download=0,
            head_seq=0,
            head=ZERO_HASH,
        )
    )
    assert done.inserted_primary_key is not None
    return int(done.inserted_primary_key[0])


def seen(
    catalog: Catalog,
    name: ClientName,
    *,
    version: str,
    roots: list[bytes],
    restore: str,
    restore_roots: list[bytes],
    browse: str,
) -> None:
    """Remember what a connected agent told of itself, now.

    Raises:
        NotFound: the client is not enrolled.
    """
    _change(
        catalog,
        name,
        seen_ns=catalog.clock.now_ns(),
        version=version,
        roots=pack(roots),
        restore=restore,
        restore_roots=pack(restore_roots),
        browse=browse,
    )


def touched(catalog: Catalog, name: ClientName) -> None:
    """Remember that the client was connected until now."""
    _change(catalog, name, seen_ns=catalog.clock.now_ns())


def set_limits(
    catalog: Catalog,
    name: ClientName,
    *,
    upload: int | None = None,
    download: int | None = None,
) -> ClientRecord:
    """Set limits in bytes a second (0: none; None: as it is) and return the client.

    Raises:
        NotFound: the client is not enrolled.
    """
    wanted = {"limit_upload": upload, "limit_download": download}
    values = {column: value for column, value in wanted.items() if value is not None}
    return _change(catalog, name, **values)


def revoke(catalog: Catalog, name: ClientName) -> ClientRecord:
    """Refuse the client from now on; doing it again keeps the first time.

    Raises:
        NotFound: the client is not enrolled.
    """
    return _change(catalog, name, revoked_ns=func.coalesce(clients.c.revoked_ns, _now(catalog)))


def accept(catalog: Catalog, name: ClientName) -> ClientRecord:
    """Let the client go on from the head that stands now, although it may remember a newer one.

    Raises:
        NotFound: the client is not enrolled.
    """
    return _change(catalog, name, accepted=clients.c.head)


def reinstate(catalog: Catalog, name: ClientName) -> ClientRecord:
    """Let a revoked client back in: it proved itself anew.

    Raises:
        NotFound: the client is not enrolled.
    """
    return _change(catalog, name, revoked_ns=None)


def _now(catalog: Catalog) -> int:
    return catalog.clock.now_ns()


def _change(catalog: Catalog, name: ClientName, **values: object) -> ClientRecord:
    def work(tx: Tx) -> ClientRecord:
        found = require(tx, name)
        if values:
            tx.execute(update(clients).where(clients.c.key == found.key).values(**values))
        return require(tx, name)

    return catalog.write(work)


def forget(catalog: Catalog, name: ClientName) -> None:
    """Remove a client without snapshots; what it uploaded waits to be collected.

    Raises:
        NotFound: the client is not enrolled.
        Conflict: it has snapshots.
    """

    def work(tx: Tx) -> None:
        found = require(tx, name)
        query = select(snapshots.c.key).where(snapshots.c.client_key == found.key).limit(1)
        if tx.execute(query).first() is not None:
            raise Conflict(f"{name} has snapshots", hint="revoke it: holdfast client revoke")
        tx.execute(delete(clients).where(clients.c.key == found.key))

    catalog.write(work)


def set_head(tx: Tx, key: int, *, seq: int, snapshot: SnapshotId, prev: bytes) -> None:
    """Move the head by one; `prev` is what it was."""
    where = (clients.c.key == key, clients.c.head_seq == seq - 1, clients.c.head == prev)
    done = tx.execute(update(clients).where(*where).values(head_seq=seq, head=snapshot))
    assert done.rowcount == 1, "the head moved inside a transaction that had checked it"
