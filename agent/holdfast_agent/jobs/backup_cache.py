"""The tree cache in a backup's life: used when it describes the parent, otherwise rebuilt."""

from __future__ import annotations

from holdfast_agent.crypto.keys import DomainKeys
from holdfast_agent.ports import Cancel, ChunkSource, Progress
from holdfast_agent.snapshots.chunks import ChunkReader
from holdfast_agent.snapshots.snapshot import Found, Snapshot
from holdfast_agent.sorting import RecordSorter
from holdfast_agent.state.cache import CacheHeader, TreeCache
from holdfast_agent.state.directory import StateDirectory
from holdfast_agent.tree.block import block_ids, decode_extents_block
from holdfast_agent.tree.entry import EntryType, Extent
from holdfast_agent.tree.known import KnownTreeLost, NewPage
from holdfast_agent.tree.page import decode_page, page_ids
from holdfast_contract.errors import (
    Damaged,
    HoldfastError,
    InvalidInput,
    Refused,
    UnsupportedVersion,
)
from holdfast_contract.ids import ChunkId
from holdfast_contract.logs import get_logger

_log = get_logger(__name__)


def open_cache(state: StateDirectory) -> TreeCache | None:
    """Return the cache, None where the state directory cannot hold one."""
    try:
        return TreeCache(state)
    except KnownTreeLost as lost:
        _log.warning("no tree cache: this backup reads everything", reason=str(lost))
        return None


def describes(cache: TreeCache, parent: bytes, keys: DomainKeys) -> CacheHeader | None:
    """Return the cache's header if it describes the snapshot `parent` of this domain."""
    try:
        header = cache.header()
    except KnownTreeLost:
        return None
    fits = header is not None and header.snapshot == parent and header.domain == keys.domain_id
    return header if fits else None


class Rebuilding:
    """Makes a cache anew from the parent snapshot, page by page."""

    def __init__(
        self,
        cache: TreeCache,
        chunks: ChunkSource,
        keys: DomainKeys,
        cancel: Cancel,
        *,
        client: str,
    ) -> None:
        self._cache = cache
        self._source = chunks
        self._keys = keys
        self._cancel = cancel
        self._client = client

    def run(self, parent: bytes, progress: Progress) -> CacheHeader | None:
        """Fill the cache with the snapshot `parent`; None when the server does not give it.

        What is damaged is left out: it is read from the volume instead.

        Raises:
            WrongKey: the parent is of another domain.
            Refused: it is a snapshot of another client, whose word about this one's files would
                count.
        """
        self._cache.clear()
        self._cache.begin()
        reader = ChunkReader(self._keys, self._source)
        try:
            snapshot = Snapshot(parent, keys=self._keys, source=self._source, chunks=reader)
            if snapshot.body.client != self._client:
                raise Refused(
                    "the server names a snapshot of another client as the parent of this backup"
                )
            refs = RecordSorter(32)
            for found in snapshot.walk(on_damage=_note_damage):
                self._cancel.check()
                progress.add(moved=1)
                if found.entry.stat.type == EntryType.DIRECTORY:
                    self._take(snapshot, found, refs)
        except Damaged as damage:
            _log.warning("the parent cannot be read: everything is read anew", reason=str(damage))
            self._cache.abandon()
            return None
        finally:
            reader.close()
        body = snapshot.body
        header = CacheHeader(
            domain=body.domain,
            lineage=body.lineage,
            dataset=body.dataset,
            snapshot=parent,
            agent_time_ns=body.agent_time_ns,
            refs_set=body.refs_set,
            refs_count=body.refs_count,
            # How deep the parent's refs lie is not known here: the next list is a full one.
            refs_depth=-1,
        )
        self._cache.finish(header, refs.sorted())
        refs.close()
        self._cache.apply()
        return header

    def _take(self, snapshot: Snapshot, found: Found, refs: RecordSorter) -> None:
        try:
            for extent in snapshot.extents(found.entry):
                self._take_page(snapshot, found.path, extent, refs)
        except (Damaged, InvalidInput, UnsupportedVersion) as damage:
            _note_damage(found.path, damage)

    def _take_page(
        self, snapshot: Snapshot, path: bytes, extent: Extent, refs: RecordSorter
    ) -> None:
        data = bytes(snapshot.part(extent))
        page = decode_page(data, ChunkId(extent.chunk), extent.offset)
        extra = []
        for stat, content in zip(page.stats, page.contents, strict=True):
            if content.spill:
                ids = self._block_ids(snapshot, content.extents, content.spill)
                extra.append((stat.name, b"".join(ids)))
                refs.add(ids)
        refs.add((extent.chunk, *page_ids(data)))
        self._cache.put(
            NewPage(
                directory=path,
                first=page.stats[0].name,
                last=page.stats[-1].name,
                chunk=extent.chunk,
                offset=extent.offset,
                data=data,
                extra=tuple(extra),
                content_ids=tuple({c.content_id for c in page.contents if c.content_id}),
                has_links=any(content.link_group for content in page.contents),
            )
        )

    def _block_ids(self, snapshot: Snapshot, blocks: tuple[Extent, ...], spill: int) -> list[bytes]:
        """Return the distinct ids that an entry's blocks name, whatever the level."""
        found: set[bytes] = set()
        for block in blocks:
            data = snapshot.part(block)
            found.update(block_ids(data))
            if spill == 2:
                inner = decode_extents_block(data, ChunkId(block.chunk), block.offset)
                found.update(self._block_ids(snapshot, tuple(inner), 1))
        return sorted(found)


def _note_damage(path: bytes, damage: HoldfastError) -> None:
    _log.warning("a part of the parent is damaged: read anew", reason=damage.message)
