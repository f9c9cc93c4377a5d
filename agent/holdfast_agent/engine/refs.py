"""The refs object: every id that the snapshot needs, in full or as a difference to the parent's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import BinaryIO, Final, NamedTuple

from holdfast_agent.sorting import OpenSpool, only_in_first
from holdfast_contract.format.refs import RefsSet, encode_difference, encode_full
from holdfast_contract.ids import DomainId

_ID_BYTES: Final = 32
_BATCH: Final = 4096
DEPTH_MAX: Final = 15
"""One less than readers accept: what a server recodes may add one."""


class RefsBase(NamedTuple):
    """The parent's refs, as far as a difference may build on them."""

    ulid: str
    refs_set: bytes
    depth: int
    """Differences below which it lies itself."""
    ids: Callable[[], Iterable[bytes]]
    """Gives the ids, ascending; called several times."""


class BuiltRefs:
    """The refs object of one snapshot, in a spool; and its ids, to be kept for the next one."""

    def __init__(
        self,
        domain_id: DomainId,
        ids: Iterable[bytes],
        base: RefsBase | None,
        open_spool: OpenSpool,
    ) -> None:
        self._ids = open_spool()
        self.body: BinaryIO = open_spool()
        whole = RefsSet()
        for batch in _batches(ids):
            whole.update(batch)
            self._ids.write(b"".join(batch))
        self.count = whole.count
        self.refs_set = whole.digest()
        self.depth = 0
        if base is None or not self._write_difference(domain_id, base):
            encode_full(domain_id, self.ids(), self.count, self.refs_set, self._write)
        self.length = self.body.tell()

    def ids(self) -> Iterator[bytes]:
        """Yield the ids, ascending."""
        position = 0
        while True:
            # Several readers may take turns: each says where it is.
            self._ids.seek(position)
            blob = self._ids.read(_BATCH * _ID_BYTES)
            if not blob:
                return
            position += len(blob)
            yield from (blob[at : at + _ID_BYTES] for at in range(0, len(blob), _ID_BYTES))

    def close(self) -> None:
        """Forget both."""
        self._ids.close()
        self.body.close()

    def _write(self, data: bytes) -> None:
        self.body.write(data)

    def _write_difference(self, domain_id: DomainId, base: RefsBase) -> bool:
        """Write a difference if the chain permits one and it is shorter; tell whether."""
        if base.depth < 0 or base.depth + 1 > DEPTH_MAX:
            return False
        added = sum(1 for _ in only_in_first(self.ids(), base.ids()))
        removed = sum(1 for _ in only_in_first(base.ids(), self.ids()))
        if added + removed >= self.count:
            return False
        encode_difference(
            domain_id,
            (self.refs_set, self.count),
            (base.ulid, base.refs_set),
            (only_in_first(self.ids(), base.ids()), added),
            (only_in_first(base.ids(), self.ids()), removed),
            self._write,
        )
        self.depth = base.depth + 1
        return True


def _batches(ids: Iterable[bytes]) -> Iterator[list[bytes]]:
    iterator = iter(ids)
    while batch := list(islice(iterator, _BATCH)):
        yield batch
