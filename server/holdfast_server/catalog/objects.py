"""Names of objects. A name is registered before a byte exists under it, and never used again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from sqlalchemy import RowMapping, bindparam, case, func, insert, select, update

from holdfast_contract.errors import Conflict
from holdfast_server.catalog.connection import Tx
from holdfast_server.catalog.schema import ObjectKind, ObjectState, objects


class ObjectRow(NamedTuple):
    """A registered name; `length` and `digest` are known once it is stored."""

    key: int
    ulid: str
    kind: ObjectKind
    state: ObjectState
    domain_key: int | None
    session_key: int | None
    registered_ns: int
    length: int | None
    digest: bytes | None


def _object(row: RowMapping) -> ObjectRow:
    values = dict(row)
    values["kind"] = ObjectKind(values["kind"])
    values["state"] = ObjectState(values["state"])
    return ObjectRow(**values)


_BY_ULID = select(objects).where(objects.c.ulid == bindparam("ulid"))
"""Made once: to make a query anew costs three times what SQLite needs for it."""
_BY_KEY = select(objects).where(objects.c.key == bindparam("key"))
_STATE = select(objects.c.state).where(objects.c.key == bindparam("key"))
_UNUSED = (
    select(func.count())
    .select_from(objects)
    .where(
        objects.c.session_key == bindparam("session"),
        objects.c.state == ObjectState.REGISTERED,
    )
)

_OF_SESSION = select(
    func.count(),
    func.coalesce(func.sum(case((objects.c.state == ObjectState.STORED, 1), else_=0)), 0),
    func.coalesce(func.sum(objects.c.length), 0),
).where(objects.c.session_key == bindparam("session"), objects.c.kind == bindparam("of"))


def register(
    tx: Tx,
    ulids: Iterable[str],
    kind: ObjectKind,
    *,
    now_ns: int,
    domain_key: int | None,
    session_key: int | None = None,
) -> None:
    """Register new names."""
    same = {
        "kind": kind,
        "state": ObjectState.REGISTERED,
        "domain_key": domain_key,
        "session_key": session_key,
        "registered_ns": now_ns,
    }
    tx.execute(insert(objects), [same | {"ulid": ulid} for ulid in ulids])


def find(tx: Tx, ulid: str) -> ObjectRow | None:
    """Return a name's row, or None."""
    row = tx.execute(_BY_ULID, {"ulid": ulid}).mappings().one_or_none()
    return None if row is None else _object(row)


def by_key(tx: Tx, key: int) -> ObjectRow:
    """Return the object that a row names by its key."""
    return _object(tx.execute(_BY_KEY, {"key": key}).mappings().one())


def unused(tx: Tx, session_key: int) -> int:
    """Return how many names of a session have no stored object."""
    return int(tx.execute(_UNUSED, {"session": session_key}).scalar_one())


def of_session(tx: Tx, session_key: int, kind: ObjectKind) -> tuple[int, int, int]:
    """Return how many names of a kind a session has, how many are stored, and their bytes."""
    names, count, length = tx.execute(_OF_SESSION, {"session": session_key, "of": kind}).one()
    return names, count, length


def mark_stored(tx: Tx, key: int, *, length: int, digest: bytes) -> bool:
    """Make an object count that lies durable in the store. False: it counted before.

    Raises:
        Conflict: its name was fenced, or other bytes count under it.
    """
    query = update(objects).where(objects.c.key == key, objects.c.state == ObjectState.REGISTERED)
    done = tx.execute(query.values(state=ObjectState.STORED, length=length, digest=digest))
    if done.rowcount == 1:
        return True
    found = by_key(tx, key)
    if found.state is not ObjectState.STORED or found.digest != digest:
        raise Conflict(f"the name {found.ulid} is used up", hint="take another name")
    return False


def is_standing(tx: Tx, key: int) -> bool:
    """Tell whether an object is stored and not fenced."""
    return bool(tx.execute(_STATE, {"key": key}).scalar_one() == ObjectState.STORED)


def replayed(
    tx: Tx,
    ulid: str,
    kind: ObjectKind,
    *,
    now_ns: int,
    domain_key: int | None,
    length: int,
    digest: bytes,
) -> int:
    """Return the key of an object that the store has and a journal record names."""
    found = find(tx, ulid)
    if found is None:
        register(tx, [ulid], kind, now_ns=now_ns, domain_key=domain_key)
        found = find(tx, ulid)
        assert found is not None
    mark_stored(tx, found.key, length=length, digest=digest)
    return found.key
