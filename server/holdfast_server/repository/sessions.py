"""Upload sessions: names are reserved in blocks before a byte exists under them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from holdfast_contract.errors import InvalidInput, NotFound, Refused, TooMany
from holdfast_contract.ids import ClientName, SessionId
from holdfast_contract.limits import HAVE_IDS_MAX, MIB, RESERVED_NAMES_MAX
from holdfast_server.catalog import chunks, clients, domains, objects, sessions
from holdfast_server.catalog.clients import ClientRecord
from holdfast_server.catalog.connection import Tx
from holdfast_server.catalog.domains import DomainRecord
from holdfast_server.catalog.schema import ObjectKind, ObjectState
from holdfast_server.catalog.sessions import SessionRow
from holdfast_server.repository.names import kind_of_folder
from holdfast_server.repository.parts import Parts

ID_BYTES: Final = 32
FIRST_PACKS: Final = 4
"""Pack names that a session begins with: a small backup needs no second request, and each name is a
row for ever."""
UNUSED_NAMES_MAX: Final = 1024
"""Names without an object that one session may hold."""
SMALL_PACKS_MAX: Final = 1024
BYTES_A_PACK: Final = MIB
"""Beyond so many packs a session gets a name for each so many bytes that it has stored: an agent
closes a pack at 16 MiB, and each pack is rows and a file for ever."""
LISTS_MAX: Final = 16
"""Refs, and manifests, that one session may store: one for each round of its commit, more for what
a restart sends again. They may use the reserve of a full store."""
EPOCH_MAX: Final = (1 << 32) - 1
_UPLOADED: Final = (ObjectKind.PACK, ObjectKind.REFS, ObjectKind.MANIFEST)


@dataclass(frozen=True)
class Session:
    """An open session with names (ULIDs) for its packs, its refs and its manifest."""

    id: SessionId
    packs: list[str]
    refs: str
    manifest: str


class Uploader(NamedTuple):
    """Who uploads into which session."""

    client: ClientRecord
    session: SessionRow
    domain: DomainRecord


class Sessions:
    """Opens and closes sessions, and answers `have` within them."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def open(self, client: ClientName, job: str) -> Session:
        """Open the session of a job, or find it again: then with fresh names.

        Raises:
            NotFound, Refused: the client is not enrolled, or revoked; the job is another client's.
        """
        self._parts.require_writable()
        session = self._parts.new_ulid()
        names = [self._parts.new_ulid() for _ in range(FIRST_PACKS + 2)]
        now = self._parts.clock.now_ns()

        def work(tx: Tx) -> SessionId:
            found = _active_client(tx, client)
            row = sessions.of_job(tx, job) or sessions.open_session(
                tx,
                session=session,
                job=job,
                client_key=found.key,
                domain_key=found.domain_key,
                now_ns=now,
            )
            if row.client_key != found.key or row.closed_ns is not None:
                raise NotFound(f"no such job: {job[:40]}")
            _register(tx, row, ObjectKind.PACK, names[2:], now)
            _register(tx, row, ObjectKind.REFS, names[:1], now)
            _register(tx, row, ObjectKind.MANIFEST, names[1:2], now)
            return SessionId(row.session)

        found = self._parts.catalog.write(work)
        return Session(found, packs=names[2:], refs=names[0], manifest=names[1])

    def more_names(self, client: ClientName, session: str, kind: str, count: int) -> list[str]:
        """Reserve `count` more names for `packs`, `refs` or `manifests`.

        Raises:
            InvalidInput: a wrong count or kind.
            TooMany: the session has many names that it has not used.
        """
        self._parts.require_writable()
        wanted = kind_of_folder(kind)
        if wanted not in _UPLOADED or not 1 <= count <= RESERVED_NAMES_MAX:
            raise InvalidInput(f"1 to {RESERVED_NAMES_MAX} names of packs, refs or manifests")
        names = [self._parts.new_ulid() for _ in range(count)]
        now = self._parts.clock.now_ns()

        def work(tx: Tx) -> None:
            uploader = self.require_open(tx, client, session)
            _register(tx, uploader.session, wanted, names, now)

        self._parts.catalog.write(work)
        return names

    def require_open(self, tx: Tx, client: ClientName, session: str) -> Uploader:
        """Return who uploads.

        Raises:
            NotFound: no open session of this client has that id.
            Refused: the client is revoked.
        """
        found = _active_client(tx, client)
        row = sessions.require(tx, session, found.key)
        if row.closed_ns is not None:
            raise NotFound(f"no such session: {session[:40]}")
        return Uploader(found, row, domains.by_key(tx, row.domain_key))

    def have(self, client: ClientName, session: str, ids: bytes, epoch_min: int) -> bytes:
        """Return one byte an id: 1 if it is live in the client's domain, else 0: send it.

        `ids`: at most 4,096 ids one after the other. The answer is a hint: commit checks again.

        Raises:
            InvalidInput: not such a list, or an epoch outside 1 to 2^32 - 1.
        """
        self._parts.require_writable()
        count, rest = divmod(len(ids), ID_BYTES)
        if rest or count > HAVE_IDS_MAX or not 0 <= epoch_min <= EPOCH_MAX:
            raise InvalidInput(f"have: at most {HAVE_IDS_MAX} ids of {ID_BYTES} bytes")
        asked = [ids[at : at + ID_BYTES] for at in range(0, len(ids), ID_BYTES)]
        with self._parts.catalog.read() as tx:
            uploader = self.require_open(tx, client, session)
            live = chunks.live_ids(tx, uploader.domain.key, asked, epoch_min=epoch_min)
            known = sessions.confirmed(tx, uploader.session.key, live)
        new = live - known
        if new:
            key = uploader.session.key
            self._parts.catalog.write(lambda tx: sessions.confirm(tx, key, new))
        return bytes(chunk_id in live for chunk_id in asked)

    def close(self, job: str) -> None:
        """End the session of a job that is over, if it has one."""
        now = self._parts.clock.now_ns()
        self._parts.catalog.write(lambda tx: sessions.close(tx, job, now))


def _active_client(tx: Tx, client: ClientName) -> ClientRecord:
    found = clients.require(tx, client)
    if found.revoked_ns is not None:
        raise Refused(f"{client} is revoked")
    return found


def _register(tx: Tx, row: SessionRow, kind: ObjectKind, names: list[str], now: int) -> None:
    if objects.unused(tx, row.key) + len(names) > UNUSED_NAMES_MAX:
        raise TooMany("the session holds many names that it has not used")
    if kind is ObjectKind.PACK:
        had, _, stored_bytes = objects.of_session(tx, row.key, kind)
        if had + len(names) > SMALL_PACKS_MAX + stored_bytes // BYTES_A_PACK:
            raise TooMany("the session has stored many packs that are very small")
    objects.register(tx, names, kind, now_ns=now, domain_key=row.domain_key, session_key=row.key)


def require_name(tx: Tx, uploader: Uploader, ulid: str, kind: ObjectKind) -> None:
    """Raise NotFound unless `ulid` was reserved for such an object in this session.

    Raises:
        TooMany: the session has stored many objects of this kind.
    """
    row = objects.find(tx, ulid)
    if row is None or row.session_key != uploader.session.key or row.kind is not kind:
        raise NotFound(f"no such name in this session: {ulid[:40]}")
    if kind is not ObjectKind.PACK and row.state is ObjectState.REGISTERED:
        _, stored, _ = objects.of_session(tx, row.session_key, kind)
        if stored >= LISTS_MAX:
            raise TooMany(f"the session has stored {stored} objects of this kind already")
