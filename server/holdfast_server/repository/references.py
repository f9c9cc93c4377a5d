"""Refs as the server reads them: whole lists decoded through their chain, streamed and checked."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import BinaryIO, Final, NamedTuple

from blake3 import blake3

from holdfast_contract.errors import (
    Damaged,
    InvalidInput,
    NoSpace,
    NotFound,
    StoreFailed,
    TooLarge,
    UnsupportedVersion,
)
from holdfast_contract.format.layout import ReadAt
from holdfast_contract.format.refs import (
    HASH_BYTES,
    HEADER_BYTES,
    ID_BYTES,
    RefsHeader,
    RefsKind,
    apply_difference,
    checked_ids,
    decode_difference,
    decode_full,
    read_header,
)
from holdfast_contract.ids import ClientName, DomainId, ObjectName
from holdfast_contract.limits import MIB, REFS_DEPTH_MAX
from holdfast_contract.logs import get_logger
from holdfast_server.catalog import events, references, state
from holdfast_server.catalog.connection import Tx
from holdfast_server.catalog.references import RefsRow
from holdfast_server.catalog.schema import ObjectKind
from holdfast_server.repository.deposits import Deposits
from holdfast_server.repository.names import object_name
from holdfast_server.repository.parts import Parts
from holdfast_server.repository.sessions import Sessions, require_name

_log = get_logger(__name__)
_PIECE_BYTES: Final = MIB
INDEX_BYTES_MAX: Final = 128 * MIB
"""Lists kept in memory for readers, at 32 bytes an id; a larger one is kept alone."""


class NewRefs(NamedTuple):
    """Refs that are being committed; `base` is the object that they are a difference to."""

    domain: DomainId
    ulid: str
    header: RefsHeader
    base: RefsRow | None

    @property
    def depth(self) -> int:
        """Differences from here down to a full list."""
        return 0 if self.base is None else self.base.depth + 1

    @property
    def is_same_as_base(self) -> bool:
        """Whether the list is its base's: nothing came and nothing went."""
        return self.base is not None and self.header.added == self.header.removed == 0


class References:
    """Takes refs objects in and decodes them."""

    def __init__(self, parts: Parts, sessions: Sessions, deposits: Deposits) -> None:
        self._parts = parts
        self._sessions = sessions
        self._deposits = deposits
        self._indexes: OrderedDict[int, RefsIndex] = OrderedDict()
        self._broken: set[int] = set()
        """Committed lists that could not be read the last time; found again after a restart."""
        self._lock = Lock()

    def put(self, client: ClientName, session: str, ulid: str, body: BinaryIO, length: int) -> None:
        """Store a refs object of `length` bytes, read from `body`, under a reserved name.

        The same bytes under the same name again change nothing.

        Raises:
            NotFound, Refused: no such open session or name of this client.
            InvalidInput, TooLarge, UnsupportedVersion: not a refs object of the client's domain.
            Conflict: other bytes lie under the name.
        """
        self._parts.require_writable()
        with self._parts.catalog.read() as tx:
            uploader = self._sessions.require_open(tx, client, session)
            require_name(tx, uploader, ulid, ObjectKind.REFS)
        domain = uploader.domain.domain
        head = body.read(HEADER_BYTES)
        header = read_header(head)
        if header.domain_id != domain or header.object_bytes != length:
            raise InvalidInput("refs: of another domain or length")
        name = object_name(ObjectKind.REFS, domain, ulid)
        with self._parts.store.begin(name, bytes_max=length, may_use_reserve=True) as incoming:
            hasher = blake3()
            for piece in _pieces(head, body, length):
                hasher.update(piece)
                incoming.write(piece)
            self._deposits.finish(
                ObjectKind.REFS, domain, ulid, incoming, (length, hasher.digest())
            )

    def opened(self, tx: Tx, domain: DomainId, ulid: str, client_key: int) -> NewRefs:
        """Return refs that a client wants to commit.

        Raises:
            InvalidInput: the base is not the refs object of a standing snapshot of this client, or
                the chain becomes too long.
        """
        head = self._parts.store.get(object_name(ObjectKind.REFS, domain, ulid), 0, HEADER_BYTES)
        header = read_header(head)
        if header.kind == RefsKind.FULL:
            return NewRefs(domain, ulid, header, None)
        base = references.of_own_snapshot(tx, header.base, client_key)
        if base is None or base.refs_set != header.base_set:
            raise InvalidInput(
                "refs: the base is not the list of a snapshot that stands",
                hint="send a full list",
            )
        if base.depth >= REFS_DEPTH_MAX:
            raise InvalidInput("refs: too many differences below", hint="send a full list")
        found = NewRefs(domain, ulid, header, base)
        if found.is_same_as_base and (header.refs_set, header.count) != (base.refs_set, base.ids):
            raise InvalidInput("refs: without a change, yet another list than the base")
        return found

    def new_ids(self, refs: NewRefs) -> Iterator[bytes]:
        """Yield the ids of refs that are being committed, ascending, checked at the end.

        Raises:
            InvalidInput, UnsupportedVersion: they are not what their header says.
            Damaged: an object below them is not what was stored.
        """
        name = object_name(ObjectKind.REFS, refs.domain, refs.ulid)
        if refs.base is None:
            yield from decode_full(self._reader(name))
            return
        yield from self._applied(name, self.ids(refs.domain, refs.base.object_key))

    def ids(self, domain: DomainId, object_key: int) -> Iterator[bytes]:
        """Yield the ids of a committed refs object, ascending, checked at the end.

        Raises:
            Damaged: an object of its chain is not what was stored.
        """
        with self._parts.catalog.read() as tx:
            chain = references.chain(tx, object_key)
        names = [object_name(ObjectKind.REFS, domain, row.ulid) for row in chain]
        found = self._full(names[-1])
        for name in reversed(names[:-1]):
            found = _blamed(self._applied, name, found)
        return self._noted(object_key, checked_as_stored(found, chain[0], names[0]))

    def _noted(self, object_key: int, ids: Iterator[bytes]) -> Iterator[bytes]:
        """Yield `ids`, and note whether they could be read to their end."""
        try:
            yield from ids
        except Damaged as damage:
            with self._lock:
                is_new = object_key not in self._broken
                self._broken.add(object_key)
            if is_new:
                self._tell(damage)
            raise
        else:
            with self._lock:
                self._broken.discard(object_key)

    def _tell(self, damage: Damaged) -> None:
        """Record the event; never in the way of the reader."""
        _log.warning("a list of chunks is damaged", reason=damage.message)
        if self._parts.refusal:
            return

        def work(tx: Tx) -> None:
            now = state.receive_time(tx, self._parts.clock)
            message = f"a list of chunks is damaged: {damage.message}"
            events.record(tx, now, "refs-damaged", message, details=damage.details)

        try:
            self._parts.catalog.write(work)
        except (NoSpace, StoreFailed) as exc:
            _log.warning("damage could not be recorded", error=exc.message)

    def is_broken(self, object_key: int) -> bool:
        """Tell whether a committed list is known to be unreadable: no base for a difference."""
        with self._lock:
            return object_key in self._broken

    def _full(self, name: ObjectName) -> Iterator[bytes]:
        return _blamed(lambda name, below: decode_full(self._reader(name)), name, iter(()))

    def _applied(self, name: ObjectName, below: Iterator[bytes]) -> Iterator[bytes]:
        size = self._parts.store.size(name)
        difference = decode_difference(self._read_at(name, size), size)
        header = difference.header
        whole = apply_difference(below, difference.added(), difference.removed())
        return checked_ids(whole, header.refs_set, header.count)

    def _read_at(self, name: ObjectName, size: int) -> ReadAt:
        def read_at(offset: int, length: int) -> bytes:
            length = max(min(length, size - offset), 0)
            return self._parts.store.get(name, offset, length) if length else b""

        return read_at

    def _reader(self, name: ObjectName) -> Callable[[int], bytes]:
        size = self._parts.store.size(name)
        position, window = 0, memoryview(b"")

        def read(count: int) -> bytes:
            nonlocal position, window
            if not window and position < size:
                length = min(max(count, _PIECE_BYTES), size - position)
                window = memoryview(self._parts.store.get(name, position, length))
                position += length
            piece, window = window[:count], window[count:]
            return bytes(piece)

        return read

    def index(self, domain: DomainId, object_key: int) -> RefsIndex:
        """Return a committed list for look-ups, from memory where it was asked for lately.

        Raises:
            Damaged: an object of its chain is not what was stored.
        """
        with self._lock:
            found = self._indexes.get(object_key)
            if found is not None:
                self._indexes.move_to_end(object_key)
                return found
        made = RefsIndex(b"".join(self.ids(domain, object_key)))
        with self._lock:
            self._indexes[object_key] = made
            while len(self._indexes) > 1 and self._index_bytes() > INDEX_BYTES_MAX:
                self._indexes.popitem(last=False)
        return made

    def _index_bytes(self) -> int:
        return sum(index.size_bytes for index in self._indexes.values())


class RefsIndex:
    """A list of ids for look-ups: 32 bytes an id, about 5 microseconds a look-up."""

    def __init__(self, joined: bytes) -> None:
        self._joined = joined

    @property
    def size_bytes(self) -> int:
        """Memory that it takes."""
        return len(self._joined)

    def _id(self, index: int) -> bytes:
        return self._joined[index * ID_BYTES : (index + 1) * ID_BYTES]

    def __contains__(self, chunk_id: bytes) -> bool:
        """Tell whether the list has this id."""
        count = len(self._joined) // ID_BYTES
        at = bisect_left(range(count), chunk_id, key=self._id)
        return at < count and self._id(at) == chunk_id


def _pieces(head: bytes, body: BinaryIO, length: int) -> Iterator[bytes]:
    """Yield an object in pieces; its own hash, in the last 32 bytes, is checked on the way."""
    hasher, held, left = blake3(), head, length - len(head)
    while left:
        piece = body.read(min(_PIECE_BYTES, left))
        if not piece:
            raise InvalidInput("refs: shorter than announced")
        left -= len(piece)
        held += piece
        if len(held) > HASH_BYTES:
            hasher.update(held[:-HASH_BYTES])
            yield held[:-HASH_BYTES]
            held = held[-HASH_BYTES:]
    if hasher.digest() != held:
        raise InvalidInput("refs: damaged on the way")
    yield held


@contextmanager
def _blame(name: ObjectName) -> Iterator[None]:
    """What does not decode although it was checked when it came is damaged."""
    try:
        yield
    except (InvalidInput, TooLarge, UnsupportedVersion, NotFound) as exc:
        raise Damaged(f"object {name} is damaged: {exc.message}", object=name) from exc


def _blamed(
    decode: Callable[[ObjectName, Iterator[bytes]], Iterator[bytes]],
    name: ObjectName,
    below: Iterator[bytes],
) -> Iterator[bytes]:
    with _blame(name):
        yield from decode(name, below)


def checked_as_stored(ids: Iterable[bytes], row: RefsRow, name: ObjectName) -> Iterator[bytes]:
    """Yield ids that must be the list that was committed."""
    return _blamed(lambda name, ids: checked_ids(ids, row.refs_set, row.ids), name, iter(ids))


def only_in_first(first: Iterable[bytes], second: Iterable[bytes]) -> Iterator[bytes]:
    """Yield what of `first` is not in `second`; both ascend."""
    others = iter(second)
    other = next(others, None)
    for item in first:
        while other is not None and other < item:
            other = next(others, None)
        if item != other:
            yield item


def in_both(first: Iterable[bytes], second: Iterable[bytes]) -> Iterator[bytes]:
    """Yield what is in `first` and in `second`; both ascend."""
    others = iter(second)
    other = next(others, None)
    for item in first:
        while other is not None and other < item:
            other = next(others, None)
        if other is None:
            return
        if item == other:
            yield item
